"""Functional connectivity."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bsym_bids.errors import BadDataError

_MIN_FRAMES = 3
_ROUNDING = 1e-10


def functional_connectivity(
    timeseries: NDArray[np.float64], kept: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return Pearson correlations between ROIs.

    Parameters
    ----------
    timeseries : ndarray, shape (T, N)
        ROI series.
    kept : ndarray of bool, shape (T,)
        Frames that count.

    Returns
    -------
    ndarray, shape (N, N)
        Symmetric, 1 on the diagonal; rows and columns of ROIs that are missing or constant are NaN,
        diagonal included.

    Raises
    ------
    BadDataError
        Fewer than three kept frames.
    """
    values = timeseries[kept]
    if len(values) < _MIN_FRAMES:
        raise BadDataError(
            f"{len(values)} kept frames are too few for functional connectivity",
            hint="choose a higher --fd-threshold, or exclude the run",
        )
    size = np.abs(values).max(axis=0)
    centred = values - values.mean(axis=0)
    norm = np.linalg.norm(centred, axis=0)
    usable = norm > _ROUNDING * size * np.sqrt(len(values))  # NaN compares false
    unit = centred[:, usable] / norm[usable]
    correlation = np.clip(unit.T @ unit, -1, 1)
    np.fill_diagonal(correlation, 1)
    matrix = np.full((timeseries.shape[1],) * 2, np.nan)
    matrix[np.ix_(usable, usable)] = correlation
    return matrix
