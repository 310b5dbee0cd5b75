"""Edges of a matrix over ROIs as a vector, and what they are by network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

#: The seven networks of Yeo et al. 2011 and the subcortex, in the order of figures and tables.
NETWORKS = ("Vis", "SomMot", "DorsAttn", "SalVentAttn", "Limbic", "Cont", "Default", "Subcortex")
_LARGEST_CORRELATION = 1 - 1e-7  # keeps Fisher's z finite


def fisher_z(correlation: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return Fisher's z; correlations of 1 become a finite 8.4, NaN stays."""
    bounded = np.clip(correlation, -_LARGEST_CORRELATION, _LARGEST_CORRELATION)
    return np.arctanh(np.asarray(bounded, dtype=np.float64))


def edges_of(matrix: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return what lies above the diagonal of (..., R, R), row by row: (..., R (R - 1) / 2)."""
    rows, columns = np.triu_indices(matrix.shape[-1], 1)
    return matrix[..., rows, columns]


def networks_in_order(networks: Sequence[str]) -> tuple[str, ...]:
    """Return the networks that ROIs have, once each: those of `NETWORKS` first, then others."""
    present = dict.fromkeys(networks)
    known = [name for name in NETWORKS if name in present]
    return (*known, *(name for name in present if name not in NETWORKS))


def memberships(networks: Sequence[str]) -> NDArray[np.bool_]:
    """Return which ROI is in which network.

    Parameters
    ----------
    networks : sequence of str
        Of each of the R ROIs.

    Returns
    -------
    ndarray of bool, shape (K, R)
        Rows as `networks_in_order` has them.
    """
    labels = np.asarray(networks)
    return np.stack([labels == name for name in networks_in_order(networks)])


def network_pair_means(
    matrix: NDArray[np.floating], networks: Sequence[str]
) -> NDArray[np.float64]:
    """Average a matrix over the ROIs of each pair of networks.

    Parameters
    ----------
    matrix : ndarray, shape (R, R)
        The diagonal does not count, nor does what is NaN.
    networks : sequence of str
        Of each ROI.

    Returns
    -------
    ndarray, shape (K, K)
        Rows and columns as `networks_in_order` has them; NaN for pairs without a value.
    """
    members = memberships(networks).astype(np.float64)
    values = np.array(matrix, dtype=np.float64)
    np.fill_diagonal(values, np.nan)
    finite = np.isfinite(values)
    total = members @ np.where(finite, values, 0) @ members.T
    count = members @ finite @ members.T
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def edges_to_matrix(edges: NDArray[np.floating], n_rois: int) -> NDArray[np.float64]:
    """Return the symmetric matrix (R, R) of a vector of edges; its diagonal is NaN."""
    matrix = np.full((n_rois, n_rois), np.nan)
    rows, columns = np.triu_indices(n_rois, 1)
    matrix[rows, columns] = matrix[columns, rows] = edges
    return matrix
