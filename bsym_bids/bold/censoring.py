"""Censoring: which frames are left out of all estimates, and what stands in for them."""

from __future__ import annotations

import numpy as np
import scipy  # of which parts are loaded when they are used
from numpy.typing import NDArray

from bsym_bids.errors import BadDataError


def censor(
    framewise_displacement: NDArray[np.float64] | None,
    threshold: float | None,
    non_steady_state: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Mark the frames that are left out (Power et al. 2012, doi:10.1016/j.neuroimage.2011.10.018).

    Parameters
    ----------
    framewise_displacement : ndarray, shape (T,), optional
        In mm.
    threshold : float, optional
        Frames with more displacement than this are censored; None or 0 censors none for motion.
    non_steady_state : ndarray of bool, shape (T,)
        Frames before steady state, which are always censored.

    Returns
    -------
    ndarray of bool, shape (T,)
        True where censored.
    """
    censored = np.array(non_steady_state, dtype=bool)
    if not threshold:
        return censored
    if framewise_displacement is None:
        raise BadDataError(
            "censoring by motion needs framewise_displacement, which the confounds lack or have "
            "gaps in",
            hint="leave --fd-threshold out, or use confounds with that column complete",
        )
    return censored | (framewise_displacement > threshold)


def span_of(kept: NDArray[np.bool_]) -> slice:
    """Return the frames from the first to the last that is kept."""
    frames = np.flatnonzero(kept)
    return slice(int(frames[0]), int(frames[-1]) + 1)


def bridge(series: NDArray[np.float64], kept: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Put a cubic spline through the kept frames in place of the others, ahead of a filter.

    Parameters
    ----------
    series : ndarray, shape (T, N)
        Series whose first and last frames are kept.
    kept : ndarray of bool, shape (T,)
        Frames to go through.

    Returns
    -------
    ndarray, shape (T, N)
    """
    if kept.all():
        return series
    frames = np.flatnonzero(kept)
    return np.where(
        kept[:, None],
        series,
        scipy.interpolate.CubicSpline(frames, series[kept])(np.arange(len(series))),
    )


def fill_censored(values: NDArray[np.float64], kept: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Make a contiguous series of cleaned kept frames.

    Inside, censored frames are interpolated monotonically (PCHIP, Fritsch & Carlson 1980): they
    never leave the range of the kept frames around them, as a cubic spline does over long gaps. At
    both ends the nearest kept frame is held.

    Parameters
    ----------
    values : ndarray, shape (kept frames, N)
        Cleaned values of the kept frames.
    kept : ndarray of bool, shape (T,)
        Where they belong.

    Returns
    -------
    ndarray, shape (T, N)
    """
    if kept.all():
        return values
    frames = np.flatnonzero(kept)
    filled = scipy.interpolate.PchipInterpolator(frames, values, axis=0)(np.arange(kept.size))
    filled[kept] = values
    filled[: frames[0]] = values[0]
    filled[frames[-1] + 1 :] = values[-1]
    return filled
