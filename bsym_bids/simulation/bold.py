"""Simulated ROI series with a known functional connectivity, and the artefacts in them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bsym_bids import atlas

_HEAD_RADIUS_MM = 50  # Power et al. 2012
_HIGH_PASS_HZ = 0.008
_REPETITION_TIMES = (0.72, 0.8, 2.0)  # s
_LOW_PASS_HZ, _LOW_PASS_SHARE = 0.15, 1 / 3  # of runs are low-passed
_SIGNAL_HZ = 0.3  # above this there is noise alone
_EXPONENTS = (0.3, 1.0)
_NOISE_SHARES = (0.02, 0.15)  # of an ROI's variance
_MOVING_SHARE = 1 / 3  # of runs have residues of motion
_MOST_JERKS, _JERK_SIZE, _JERK_SECONDS = 5, 2.0, 2.0
_MOTION = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")


@dataclass(frozen=True)
class Spectrum:
    """Of the BOLD signal: a power law between two frequencies.

    Attributes
    ----------
    exponent : float
        Power falls with frequency to this power.
    lowest, highest : float
        In Hz; outside of them there is nothing.
    """

    exponent: float = 0.5
    lowest: float = 0.01
    highest: float = 0.15


def series_with(
    correlation: NDArray[np.float64],
    n_volumes: int,
    repetition_time: float,
    rng: np.random.Generator,
    spectrum: Spectrum = Spectrum(),
) -> NDArray[np.float64]:
    """Return series (T, 450) of unit variance with a correlation and the spectrum of BOLD."""
    white = rng.standard_normal((n_volumes, len(correlation)))
    frequencies = np.fft.rfftfreq(n_volumes, repetition_time)
    amplitude = np.zeros_like(frequencies)
    inside = (frequencies >= spectrum.lowest) & (frequencies <= spectrum.highest)
    amplitude[inside] = frequencies[inside] ** (-spectrum.exponent / 2)
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


@dataclass(frozen=True)
class Run:
    """A simulated run as it is after cleaning.

    Attributes
    ----------
    timeseries : ndarray, shape (T, 450)
        Clean series with what cleaning leaves of noise and motion.
    repetition_time : float
        In seconds.
    """

    timeseries: NDArray[np.float64]
    repetition_time: float


def draw_run(correlation: NDArray[np.float64], seconds: float, rng: np.random.Generator) -> Run:
    """Draw a run of a person, of one scanner and one way of cleaning among several.

    Repetition time, steepness of the spectrum and the cut-offs of the filter differ between runs,
    as they do between studies. Each ROI has noise of its own, and some runs have residues of head
    motion: brief excursions of all ROIs at once, each by an amount of its own.

    Parameters
    ----------
    correlation : ndarray, shape (450, 450)
        Of the person.
    seconds : float
        Length of the run.
    rng : numpy.random.Generator
        Source of all that is drawn.
    """
    repetition_time = float(rng.choice(_REPETITION_TIMES))
    count = int(np.ceil(seconds / repetition_time))
    nyquist = 0.5 / repetition_time
    highest = _LOW_PASS_HZ if rng.random() < _LOW_PASS_SHARE else nyquist
    signal_spectrum = Spectrum(rng.uniform(*_EXPONENTS), _HIGH_PASS_HZ, min(highest, _SIGNAL_HZ))
    noise_spectrum = Spectrum(0.0, _HIGH_PASS_HZ, highest)
    signal = series_with(correlation, count, repetition_time, rng, signal_spectrum)
    noise = series_with(np.eye(atlas.N_ROIS), count, repetition_time, rng, noise_spectrum)
    share = rng.uniform(*_NOISE_SHARES) * rng.uniform(0.5, 1.5, atlas.N_ROIS)
    series = np.sqrt(1 - share) * signal + np.sqrt(share) * noise
    if rng.random() < _MOVING_SHARE:
        series = series + _motion_residue(count, repetition_time, rng)
    return Run(series, repetition_time)


def _motion_residue(
    count: int, repetition_time: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return excursions (T, 450) at a few moments, each dying away within seconds."""
    moments = np.zeros((count, 1))
    jerks = rng.integers(1, _MOST_JERKS + 1)
    moments[rng.integers(0, count, jerks)] = rng.normal(0, _JERK_SIZE, (jerks, 1))
    decay = np.exp(-np.arange(0, 5 * _JERK_SECONDS, repetition_time) / _JERK_SECONDS)
    course = np.convolve(moments[:, 0], decay)[:count]
    return np.outer(course, rng.normal(1, 0.5, atlas.N_ROIS))
