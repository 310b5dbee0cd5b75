"""Scaling of ROI series to the range that a network expects."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bsym_bids.errors import BadDataError, UsageError

#: A spread below this share of the largest deviation is no spread, nor one below `_ROUNDING` of the
#: location: one ROI at thousands of its interquartile range would drown the others.
TINY_SPREAD = 1e-2
_ROUNDING = 1e-10


def scale(
    timeseries: NDArray[np.float64], kept: NDArray[np.bool_], method: str = "robust"
) -> NDArray[np.float64]:
    """Centre and scale every ROI by itself.

    Parameters
    ----------
    timeseries : ndarray, shape (T, N)
        Series; columns of NaN stay so.
    kept : ndarray of bool, shape (T,)
        Frames that the statistics are taken from; all frames are scaled.
    method : str
        ``robust``: (x - median) / interquartile range; ``zscore``: (x - mean) / sample standard
        deviation; ``none``: as it is.

    Returns
    -------
    ndarray, shape (T, N)
        An ROI without spread, or with values further than 100 times the spread from the centre,
        cannot be scaled and is NaN: missing.
    """
    if method == "none":
        return timeseries
    if method not in ("robust", "zscore"):
        raise UsageError(f"unknown scaling {method!r}", hint="choose robust, zscore or none")
    values = timeseries[kept]
    if len(values) < 2:
        raise BadDataError(
            f"{len(values)} kept frames are too few to scale by",
            hint="choose a higher --fd-threshold, or exclude the run",
        )
    if method == "robust":
        low, location, high = np.percentile(values, [25, 50, 75], axis=0)
        spread = high - low
    else:
        location, spread = values.mean(axis=0), values.std(axis=0, ddof=1)
    largest = np.abs(values - location).max(axis=0)
    flat = spread <= np.maximum(TINY_SPREAD * largest, _ROUNDING * np.abs(location))
    return (timeseries - location) / np.where(flat, np.nan, spread)
