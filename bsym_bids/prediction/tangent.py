"""Functional connectivity in the tangent space of a fixed reference.

Correlation matrices are not a vector space: entries hang together, as the matrix has to be positive
definite. Its logarithm, taken where the reference is the unit, is free of that (Varoquaux et al.
2010, doi:10.1007/978-3-642-15705-9_25), and predicts better than correlations in most comparisons
(Dadi et al. 2019, doi:10.1016/j.neuroimage.2019.02.062). The usual reference is the mean of the
cohort, which is then learned from the very people that are to be predicted; here it is the average
of an independent cohort, and nothing is learned.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from bsym_bids.atlas.group import group_functional_connectivity
from bsym_bids.errors import BadDataError


def oas_shrinkage(correlation: NDArray[np.float64], n_samples: float) -> float:
    """Return how far to shrink a correlation matrix towards the unit matrix.

    Oracle approximating shrinkage, Chen et al. 2010 (doi:10.1109/TSP.2010.2053029), eq. 23, without
    its terms of 2/p as in scikit-learn: they are nothing for hundreds of ROIs.

    Parameters
    ----------
    correlation : ndarray, shape (p, p)
        Of p standardised series.
    n_samples : float
        Independent samples that it rests on.

    Returns
    -------
    float
        Between 0 and 1.
    """
    p = len(correlation)
    mean_square = float(np.mean(correlation**2))
    scale = float(np.trace(correlation)) / p
    spread = (n_samples + 1) * (mean_square - scale**2 / p)
    return min((mean_square + scale**2) / spread, 1.0) if spread > 0 else 1.0


def complete(
    matrix: NDArray[np.float64], present: NDArray[np.bool_], reference: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Fill in the ROIs that a covariance lacks so that they say nothing beyond the others.

    Of all normal distributions with the given covariance of the present ROIs, the one that is
    nearest to the reference (Kullback-Leibler): absent ROIs depend on present ones as they do
    there. It is positive definite, and as far from the reference, by the logarithm, as the present
    ROIs are by themselves. With the reference's own rows and columns in their place it might be no
    covariance at all.

    Parameters
    ----------
    matrix : ndarray, shape (R, R)
        Positive definite over the present ROIs; what it holds elsewhere does not matter.
    present : ndarray of bool, shape (R,)
        ROIs that it has.
    reference : ndarray, shape (R, R)
        Positive definite.

    Returns
    -------
    ndarray, shape (R, R)
        Positive definite.
    """
    absent = ~present
    if not absent.any():
        return matrix
    across = reference[np.ix_(present, absent)]
    slopes = np.linalg.solve(reference[np.ix_(present, present)], across)
    given = matrix[np.ix_(present, present)]
    rest = reference[np.ix_(absent, absent)] - across.T @ slopes
    full = np.empty_like(reference)
    full[np.ix_(present, present)] = given
    full[np.ix_(present, absent)] = given @ slopes
    full[np.ix_(absent, present)] = full[np.ix_(present, absent)].T
    full[np.ix_(absent, absent)] = rest + slopes.T @ given @ slopes
    return full


def to_tangent(matrix: NDArray[np.float64], whitening: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logarithm of a positive definite (R, R), whitened by G^-1/2 of the reference G.

    Raises
    ------
    BadDataError
        It is not positive definite.
    """
    values, vectors = np.linalg.eigh(whitening @ matrix @ whitening)
    if values[0] <= 0:
        raise BadDataError("these correlations are of no series: they are not positive definite")
    return (vectors * np.log(values)) @ vectors.T


def tangent_features(correlation: NDArray[np.float64], n_samples: float) -> NDArray[np.float64]:
    """Return functional connectivity in tangent space as a vector.

    Parameters
    ----------
    correlation : ndarray, shape (450, 450)
        NaN in rows and columns of ROIs that are missing.
    n_samples : float
        Independent samples that it rests on, at least 1: for the degrees of freedom that cleaning
        leaves, an upper bound, as frames are correlated beyond what filters do.

    Returns
    -------
    ndarray, shape (101475,)
        What lies above the diagonal, row by row, times the root of 2, then the diagonal: inner
        products are those of the matrices. NaN for missing ROIs.

    Raises
    ------
    BadDataError
        Values are missing in other places than rows and columns of ROIs; `n_samples` is below 1.
    """
    present = np.isfinite(np.diag(correlation))
    known = correlation[np.ix_(present, present)]
    if not np.isfinite(known).all():
        raise BadDataError("n/a in single cells instead of rows and columns of ROIs")
    if not n_samples >= 1:
        raise BadDataError(f"degrees of freedom are {n_samples:g} instead of 1 or more")
    tangent = np.full(correlation.shape, np.nan)
    if present.any():
        shrinkage = oas_shrinkage(known, n_samples)
        shrunk = np.full(correlation.shape, np.nan)
        shrunk[np.ix_(present, present)] = (1 - shrinkage) * (known + known.T) / 2
        shrunk[present, present] += shrinkage
        reference, whitening = _reference()
        whole = to_tangent(complete(shrunk, present, reference), whitening)
        tangent[np.ix_(present, present)] = whole[np.ix_(present, present)]
    above = np.triu_indices(len(tangent), 1)
    return np.concatenate([np.sqrt(2) * tangent[above], np.diag(tangent)])


@cache
def _reference() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the average of an independent cohort, and what whitens it."""
    reference = group_functional_connectivity()
    values, vectors = np.linalg.eigh(reference)
    return reference, (vectors / np.sqrt(values)) @ vectors.T
