"""The people of simulated cohorts: relatives, sites, labels, confounds."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bsym_bids import atlas
from bsym_bids.simulation.cohort_patterns import Floats, roi_rows

_FD_MEDIAN, _FD_SPREAD = 0.15, 0.4  # mm, and of the logarithm
_VOLUME_SPREAD = 0.1  # of the total, between people
_CENSORED_SHARE, _MOST_CENSORED = 0.06, 0.5  # at median displacement, and at most


@dataclass(frozen=True)
class Detour:
    """A way from the label to features that leads through a confound.

    Attributes
    ----------
    kind : str
        ``fc`` or ``sc``: whose features follow the confound, and with it what comes of them.
    confound : str
        ``mean_fd`` or ``roi_volume``.
    by_label : float
        Share of the variance of the confound that the label explains (of the logarithm of
        displacement; for displacement itself it is 0.92 times that).
    of_features : float
        Share of the variance of the features' score that the confound explains.
    """

    kind: str = "fc"
    confound: str = "mean_fd"
    by_label: float = 0.6
    of_features: float = 0.8


@dataclass(frozen=True)
class Families:
    """People who are like each other.

    Attributes
    ----------
    size : int
        Members of a family.
    likeness : float
        Correlation of two members in all that is drawn: features around the mean, scores, label.
    """

    size: int = 2
    likeness: float = 0.95


@dataclass(frozen=True)
class Sites:
    """Scanners whose connectivity differs.

    Attributes
    ----------
    count : int
        Number of sites, of equal size.
    by_label : float
        Share of the variance of the label (before it is cut into classes) between sites.
    shift : float
        Spread of the sites' means of each feature, in spreads between people.
    scaling : float
        Spread of the logarithm of what deviations from the mean are multiplied by.
    """

    count: int = 2
    by_label: float = 0.4
    shift: float = 0.5
    scaling: float = 0.2


class People:
    """Draws for people of whom relatives share a part; each named draw is one of its own.

    Parameters
    ----------
    n : int
        How many.
    seed : int
        Not negative.
    families : Families, optional
        Relatives; without, everyone is for themselves.
    """

    def __init__(self, n: int, seed: int, families: Families | None) -> None:
        self.n = n
        self._seed = seed
        size, self.likeness = (families.size, families.likeness) if families else (1, 1.0)
        self.family = np.arange(n) // size
        self.n_families = int(self.family[-1]) + 1

    def rng(self, name: str) -> np.random.Generator:
        """Return a generator for one purpose, whatever else is drawn."""
        return np.random.default_rng([self._seed, zlib.crc32(name.encode())])

    def normal(self, name: str, kin: bool = True) -> Floats:
        """Return (N,) standard normal numbers; relatives' are correlated unless not ``kin``."""
        rng = self.rng(name)
        if not kin:
            return rng.standard_normal(self.n)
        shared = rng.standard_normal(self.n_families)[self.family]
        if self.likeness == 1:
            return shared
        own = rng.standard_normal(self.n)
        return np.sqrt(self.likeness) * shared + np.sqrt(1 - self.likeness) * own


def deal_sites(people: People, sites: Sites) -> NDArray[np.int64]:
    """Return the site of everyone; relatives have the same."""
    order = people.rng("site").permutation(people.n_families) % sites.count
    return order[people.family]


def label_latent(people: People, sites: Sites | None, site: NDArray[np.int64]) -> Floats:
    """Return (N,) standard normal numbers that the label is made from, with the part of sites."""
    own = people.normal("label")
    if sites is None or sites.count == 1:
        return own
    places = np.arange(sites.count) - (sites.count - 1) / 2
    between = places[site] / places.std()
    return np.sqrt(sites.by_label) * between + np.sqrt(1 - sites.by_label) * own


def draw_confounds(
    people: People, label: Floats, detour: Detour | None, n_rois: int, n_volumes: int
) -> tuple[dict[str, Floats], Floats]:
    """Return the confounds, and the one of the detour with a mean of 0 and a variance of 1."""

    def latent(name: str) -> Floats:
        noise = people.normal(name, kin=False)
        if detour is None or detour.confound != name:
            return noise
        return np.sqrt(detour.by_label) * label + np.sqrt(1 - detour.by_label) * noise

    displacement = _FD_MEDIAN * np.exp(_FD_SPREAD * latent("mean_fd"))
    censored = _CENSORED_SHARE * (displacement / _FD_MEDIAN) ** 2
    kept = np.round(n_volumes * (1 - np.minimum(censored, _MOST_CENSORED)))
    usual = float(atlas.roi_volumes()[roi_rows(n_rois)].sum())
    volume = usual * (1 + _VOLUME_SPREAD * latent("roi_volume").clip(-5, 5))
    confounds = {"mean_fd": displacement, "frames_kept": kept, "roi_volume": volume}
    variance = np.expm1(_FD_SPREAD**2)  # of a lognormal variable, over the square of its mean
    mean_fd = _FD_MEDIAN * np.exp(_FD_SPREAD**2 / 2)
    if detour is None or detour.confound == "mean_fd":
        return confounds, (displacement - mean_fd) / (mean_fd * np.sqrt(variance))
    return confounds, (volume - usual) / (_VOLUME_SPREAD * usual)


def label_correlation(detour: Detour | None) -> float:
    """Return the correlation of the label with the confound of the detour."""
    if detour is None:
        return 0.0
    # Of a normal variable with its exponential.
    bent = _FD_SPREAD / np.sqrt(np.expm1(_FD_SPREAD**2)) if detour.confound == "mean_fd" else 1.0
    return float(np.sqrt(detour.by_label) * bent)
