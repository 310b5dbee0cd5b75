"""Simulated ROI series with a known functional connectivity, and the artefacts to remove."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bsym_bids import atlas

_LOWEST_HZ, _HIGHEST_HZ = 0.01, 0.15  # where resting-state BOLD has its power
_HEAD_RADIUS_MM = 50  # Power et al. 2012
_MOTION = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
_N_INDIVIDUAL = 8


def connectivity(age: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the correlation matrix of one person.

    A factor model: everybody shares a global factor, one per network, and one per pair of
    homotopic networks' hemispheres; a person has factors of their own; with age the default network
    holds together less.

    Parameters
    ----------
    age : float
        In years.
    rng : numpy.random.Generator
        Source of what is individual.

    Returns
    -------
    ndarray, shape (450, 450)
        Positive definite, diagonal 1.
    """
    networks = np.array(atlas.networks())
    sides = np.array([roi.hemisphere for roi in atlas.rois()])
    loadings = [np.full(atlas.N_ROIS, 0.5)]
    for network in dict.fromkeys(networks):
        members = networks == network
        strength = 0.8 - (0.006 * (age - 20) if network == "Default" else 0.0)
        loadings.append(members * strength)
        loadings += [(members & (sides == side)) * 0.3 for side in "LR"]
    loadings += list(0.25 * rng.standard_normal((_N_INDIVIDUAL, atlas.N_ROIS)))
    factors = np.stack(loadings)
    covariance = factors.T @ factors + 0.35 * np.eye(atlas.N_ROIS)
    spread = np.sqrt(np.diag(covariance))
    return covariance / np.outer(spread, spread)


def series_with(
    correlation: NDArray[np.float64],
    n_volumes: int,
    repetition_time: float,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Return series (T, 450) of unit variance with a correlation and the spectrum of BOLD."""
    white = rng.standard_normal((n_volumes, len(correlation)))
    frequencies = np.fft.rfftfreq(n_volumes, repetition_time)
    amplitude = np.zeros_like(frequencies)
    inside = (frequencies >= _LOWEST_HZ) & (frequencies <= _HIGHEST_HZ)
    amplitude[inside] = frequencies[inside] ** -0.25
    coloured = np.fft.irfft(np.fft.rfft(white, axis=0) * amplitude[:, None], n_volumes, axis=0)
    mixed = coloured @ np.linalg.cholesky(correlation).T
    return mixed / mixed.std(axis=0)


@dataclass(frozen=True)
class Artefacts:
    """What is added to the signal, and the confounds that explain it.

    Attributes
    ----------
    confounds : dict of str to ndarray
        Columns of the confounds table, shape (T,) each; NaN where fMRIPrep writes n/a.
    in_rois : ndarray, shape (T, 450)
        What motion, physiology and drift add to each ROI.
    """

    confounds: dict[str, NDArray[np.float64]]
    in_rois: NDArray[np.float64]


def artefacts(n_volumes: int, repetition_time: float, rng: np.random.Generator) -> Artefacts:
    """Simulate head motion, physiological noise and scanner drift."""
    motion = _motion(n_volumes, rng)
    physiology = rng.standard_normal((n_volumes, 2))
    physiology = 0.5 * (physiology + np.roll(physiology, 1, axis=0))
    drift = np.linspace(-1, 1, n_volumes)[:, None] * rng.standard_normal(atlas.N_ROIS)
    standard = (motion - motion.mean(axis=0)) / motion.std(axis=0)
    in_rois = standard @ (0.3 * rng.standard_normal((6, atlas.N_ROIS)))
    in_rois += physiology @ np.abs(rng.normal(0.5, 0.2, (2, atlas.N_ROIS)))
    in_rois += drift
    base = dict(zip(_MOTION, motion.T, strict=True))
    base["csf"], base["white_matter"] = (1000 + 10 * physiology).T
    base["global_signal"] = 1000 + 10 * in_rois.mean(axis=1)
    confounds: dict[str, NDArray[np.float64]] = {}
    for name, column in base.items():
        derivative = np.diff(column, prepend=np.nan)
        confounds[name] = column
        confounds[f"{name}_derivative1"] = derivative
        confounds[f"{name}_power2"] = column**2
        confounds[f"{name}_derivative1_power2"] = derivative**2
    step = np.abs(np.diff(motion, axis=0, prepend=np.nan))
    confounds["framewise_displacement"] = step[:, :3].sum(axis=1) + _HEAD_RADIUS_MM * step[
        :, 3:
    ].sum(axis=1)
    change = np.diff(in_rois, axis=0, prepend=np.nan)
    confounds["dvars"] = 10 * np.sqrt((change**2).mean(axis=1))
    return Artefacts(confounds, in_rois)


def _motion(n_volumes: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return translations (mm) and rotations (rad), shape (T, 6): slow drift and a few jerks."""
    walk = np.cumsum(rng.standard_normal((n_volumes, 6)), axis=0)
    jerks = rng.random((n_volumes, 1)) < 3 / n_volumes
    walk += np.cumsum(jerks * rng.normal(0, 15, (n_volumes, 6)), axis=0)
    return walk * np.array([0.02, 0.02, 0.02, 0.0003, 0.0003, 0.0003])
