"""Group-average connectomes of young adults on the 450 ROIs.

They come with 400 cortical parcels and 14 subcortical structures (Larivière et al. 2021, see the
README beside the file). The 50 subcortical ROIs are filled in from the structures that they lie in:
to everything outside of it, an ROI is connected as its structure is. What no average tells is how
ROIs of one structure are connected to each other; for that there are the two constants below.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bsym_bids.atlas.table import N_ROIS, rois

#: Correlation of two ROIs of one subcortical structure, by fiat.
WITHIN_STRUCTURE_CORRELATION = 0.6
#: Percentile of all edges that stands for the edge of two ROIs of one subcortical structure.
WITHIN_STRUCTURE_PERCENTILE = 90

_STRUCTURES = {
    "HIP": "hippo",
    "THA": "thal",
    "PUT": "put",
    "CAU": "caud",
    "AMY": "amyg",
    "NAc": "accumb",
    "GP": "pal",
}


def group_file() -> Path:
    """Return the packaged file of both averages."""
    return Path(__file__).parents[1] / "data" / "group" / "hcp_group_schaefer400_sctx14.npz"


@cache
def group_functional_connectivity() -> NDArray[np.float64]:
    """Return the average correlation matrix.

    Returns
    -------
    ndarray, shape (450, 450)
        tanh of the average Fisher's z; diagonal 1, positive definite. Read-only.
    """
    fisher, parents = _read("functional")
    correlation = np.tanh(fisher)[np.ix_(parents, parents)]
    correlation[_siblings(parents)] = WITHIN_STRUCTURE_CORRELATION
    np.fill_diagonal(correlation, 1.0)
    correlation.setflags(write=False)
    return correlation


@cache
def group_streamline_counts() -> NDArray[np.float64]:
    """Return the average streamline counts.

    The streamlines of a subcortical structure are dealt out to its ROIs in equal parts.

    Returns
    -------
    ndarray, shape (450, 450)
        Symmetric, 0 where there is no edge and on the diagonal. Read-only.
    """
    logarithm, parents = _read("structural")
    counts = np.where(logarithm > 0, np.exp(logarithm), 0.0)
    inside = np.percentile(counts[counts > 0], WITHIN_STRUCTURE_PERCENTILE)
    share = 1 / np.bincount(parents, minlength=len(counts))[parents]
    counts = counts[np.ix_(parents, parents)] * np.outer(share, share)
    counts[_siblings(parents)] = inside
    np.fill_diagonal(counts, 0.0)
    counts.setflags(write=False)
    return counts


def _read(name: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return an average, and for each ROI the row of the parcel or structure that it lies in."""
    with np.load(group_file(), allow_pickle=False) as file:
        matrix, labels = file[name].astype(np.float64), [str(label) for label in file["labels"]]
    rows = {label: row for row, label in enumerate(labels)}
    parents = np.array([rows[_parent(roi.name, roi.hemisphere)] for roi in rois()])
    return (matrix + matrix.T) / 2, parents


def _parent(roi: str, hemisphere: str) -> str:
    """Return the label of the parcel or structure that an ROI lies in."""
    if roi.startswith("7Networks_"):
        return roi
    structure = next(label for part, label in _STRUCTURES.items() if part in roi)
    return hemisphere + structure


def _siblings(parents: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return the pairs of different ROIs that lie in one structure, (450, 450)."""
    return (parents[:, None] == parents) & ~np.eye(N_ROIS, dtype=bool)
