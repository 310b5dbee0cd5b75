"""What is the same for all simulated cohorts: kinds of features, averages, patterns."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsym_bids import atlas
from bsym_bids.atlas.group import group_functional_connectivity, group_streamline_counts

Floats = NDArray[np.float64]
Features = NDArray[np.float32]

#: Kinds of features. What comes from the network is made from the connectivity that it would see.
SOURCE_OF = {
    "fc": "fc",
    "sc": "sc",
    "bs_functional": "fc",
    "bs_functional_mean": "fc",
    "bs_structural": "sc",
}
KINDS = tuple(SOURCE_OF)
EDGE_KINDS = ("fc", "sc", "bs_functional")
#: Spread between people that amplitudes are reckoned from: of an edge, or of a dimension.
SPREAD = {
    "fc": 0.15,
    "sc": 0.29,
    "bs_functional": 0.14,
    "bs_functional_mean": 0.13,
    "bs_structural": 0.31,
}
#: What the similarity of embeddings is of connectivity, in Fisher's z.
SIMILARITY_GAIN = 0.6
_PATTERN_SEED = 20_260
_SIGNAL_MODES = 10
_DEPTH = 0.12  # share of the streamlines behind the average that a person has
_LEAST_COUNT = 30  # edges below it change their logarithm in steps: no signal there


@dataclass(frozen=True, eq=False)
class Direction:
    """Where the features of a kind carry something.

    Attributes
    ----------
    pattern : ndarray, shape (F,)
        Unit vector.
    offset : float
        Inner product of the pattern and the features of someone with a score of 0.
    amplitude : float
        Distance along the pattern that a score of 1 makes.
    """

    pattern: Features
    offset: float
    amplitude: float

    def scores(self, features: NDArray[np.floating]) -> Floats:
        """Return the scores (N,) of features (N, F)."""
        along = features.astype(np.float64) @ self.pattern.astype(np.float64)
        return (along - self.offset) / self.amplitude


def roi_rows(n_rois: int) -> NDArray[np.int64]:
    """Return which ROIs of the atlas a cohort of so many ROIs has."""
    return np.linspace(0, atlas.N_ROIS - 1, n_rois).astype(np.int64)


@cache
def mean_features(kind: str, n_rois: int, width: int) -> Features:
    """Return the average (F,) around which people vary; 0 marks edges that nobody has."""
    rows = roi_rows(n_rois)
    upper = np.triu_indices(n_rois, 1)
    if kind == "sc":
        counts = _DEPTH * group_streamline_counts()[np.ix_(rows, rows)][upper]
        return np.log10(1 + counts).astype(np.float32)
    if kind in EDGE_KINDS:
        fisher = np.arctanh(group_functional_connectivity()[np.ix_(rows, rows)][upper])
        return (fisher * (1 if kind == "fc" else SIMILARITY_GAIN)).astype(np.float32)
    return pattern_rng(kind, n_rois, width).standard_normal(n_rois * width, np.float32)


@cache
def direction_of(kind: str, of: str, n_rois: int, width: int, share: float) -> Direction:
    """Return the pattern of a kind, and how far a score of 1 lies along it."""
    mean = mean_features(kind, n_rois, width)
    pattern = _draw_pattern(kind, of, n_rois, width)
    if of == "confound":
        label = _draw_pattern(kind, "label", n_rois, width)
        pattern = pattern - (pattern @ label) * label
        pattern /= np.linalg.norm(pattern)
    varying = np.count_nonzero(mean)
    return Direction(
        pattern.astype(np.float32),
        offset=float(pattern @ mean.astype(np.float64)),
        amplitude=float(np.sqrt(share * varying) * SPREAD[kind]),
    )


def _draw_pattern(kind: str, of: str, n_rois: int, width: int) -> Floats:
    """Return a unit vector (F,): the network's similarity has that of the FC it comes from."""
    if kind not in EDGE_KINDS:
        pattern = pattern_rng(kind, of).standard_normal(n_rois * width)
        return pattern / np.linalg.norm(pattern)
    rng = pattern_rng(SOURCE_OF[kind], of)
    if kind != "sc":
        return smooth_pattern(rng, n_rois)
    rows, columns = np.triu_indices(n_rois, 1)
    labels = np.array(atlas.networks())[roi_rows(n_rois)]
    network = np.unique(labels, return_inverse=True)[1]
    blocks = rng.standard_normal((network.max() + 1,) * 2)
    pattern = (blocks + blocks.T)[network[rows], network[columns]]
    pattern = pattern + 0.5 * rng.standard_normal(len(pattern))
    pattern[mean_features("sc", n_rois, 0) < np.log10(1 + _LEAST_COUNT)] = 0
    return pattern / np.linalg.norm(pattern)


def smooth_pattern(rng: np.random.Generator, n_rois: int) -> Floats:
    """Return a unit vector (E,) of edges within the strongest modes of average connectivity.

    From where there is little, little can be taken away before a matrix is no matrix of
    correlations any more.
    """
    modes = fc_modes(n_rois)[:, -_SIGNAL_MODES:]
    mixing = rng.standard_normal((modes.shape[1],) * 2)
    pattern = (modes @ (mixing + mixing.T) @ modes.T)[np.triu_indices(n_rois, 1)]
    return pattern / np.linalg.norm(pattern)


@cache
def fc_modes(n_rois: int) -> Floats:
    """Return the modes of the average (R, R), eigenvectors by the root of their values, rising."""
    rows = roi_rows(n_rois)
    values, vectors = np.linalg.eigh(group_functional_connectivity()[np.ix_(rows, rows)])
    signs = np.sign(vectors[np.abs(vectors).argmax(0), np.arange(n_rois)])  # the library's choice
    return vectors * signs * np.sqrt(values.clip(0))


def pattern_rng(*purpose: Any) -> np.random.Generator:
    """Return a generator of what is the same for all cohorts."""
    return np.random.default_rng([_PATTERN_SEED, zlib.crc32(repr(purpose).encode())])
