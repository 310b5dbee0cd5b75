"""Scaling of ROI series to the range that a network expects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bsym_bids.errors import BadDataError, UsageError

#: A spread below this share of the largest deviation is no spread, nor one below `_ROUNDING` of the
#: location: one ROI at thousands of its interquartile range would drown the others.
TINY_SPREAD = 1e-2
_ROUNDING = 1e-10


@dataclass(frozen=True, eq=False)
class RoiStatistics:
    """What ROIs are scaled by when it is not taken from the run itself.

    Attributes
    ----------
    location, spread : ndarray, shape (N,)
        Taken away, and divided by; NaN for ROIs without any.
    """

    location: NDArray[np.float64]
    spread: NDArray[np.float64]


def scale(
    timeseries: NDArray[np.float64],
    kept: NDArray[np.bool_],
    method: str | RoiStatistics = "robust",
) -> NDArray[np.float64]:
    """Centre and scale every ROI by itself.

    Parameters
    ----------
    timeseries : ndarray, shape (T, N)
        Series; columns of NaN stay so.
    kept : ndarray of bool, shape (T,)
        Frames that the statistics are taken from; all frames are scaled.
    method : str or RoiStatistics
        ``robust``: (x - median) / interquartile range; ``zscore``: (x - mean) / sample standard
        deviation; ``none``: as it is; statistics: (x - location) / spread.

    Returns
    -------
    ndarray, shape (T, N)
        An ROI without spread, or with values further than 100 times the spread from the centre,
        cannot be scaled and is NaN: missing. With statistics, that holds for them and for the run's
        own interquartile range.

    Raises
    ------
    UsageError
        An unknown method.
    BadDataError
        Fewer than two kept frames, or statistics that no ROI of the run is anywhere near.
    """
    given = method if isinstance(method, RoiStatistics) else None
    if method == "none":
        return timeseries
    if given is None and method not in ("robust", "zscore"):
        raise UsageError(f"unknown scaling {method!r}", hint="choose robust, zscore or none")
    values = timeseries[kept]
    if len(values) < 2:
        raise BadDataError(
            f"{len(values)} kept frames are too few to scale by",
            hint="choose a higher --fd-threshold, or exclude the run",
        )
    if method == "zscore":
        location, spread = values.mean(axis=0), values.std(axis=0, ddof=1)
    else:
        low, location, high = np.percentile(values, [25, 50, 75], axis=0)
        spread = high - low
    flat = _is_flat(values, location, spread)
    if given is not None:
        varying = np.isfinite(spread) & ~flat
        location, spread = given.location, given.spread
        flat |= _is_flat(values, location, spread)
        if varying.any() and not (varying & np.isfinite(spread) & ~flat).any():
            raise BadDataError(
                "no ROI can be scaled by the statistics that are given: values lie further than "
                f"{1 / TINY_SPREAD:.0f} times their spread away",
                hint="see whether this run is in other units than the others; --scaling robust "
                "scales each run by itself",
            )
    return (timeseries - location) / np.where(flat, np.nan, spread)


def _is_flat(
    values: NDArray[np.float64], location: NDArray[np.float64], spread: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Tell which ROIs have no spread to speak of; False for those without values."""
    largest = np.abs(values - location).max(axis=0)
    return spread <= np.maximum(TINY_SPREAD * largest, _ROUNDING * np.abs(location))
