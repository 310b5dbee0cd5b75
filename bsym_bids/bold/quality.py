"""Numbers that tell how good a run is, before and after cleaning."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsym_bids.bold.cleaning import CleanedRun


def run_quality(
    raw: NDArray[np.float64], cleaned: CleanedRun, connectivity: NDArray[np.float64]
) -> dict[str, Any]:
    """Collect the quality of one run.

    Parameters
    ----------
    raw : ndarray, shape (T, N)
        ROI series before cleaning.
    cleaned : CleanedRun
        The same run, cleaned.
    connectivity : ndarray, shape (N, N)
        Its functional connectivity.

    Returns
    -------
    dict
        Plain numbers; None where a number cannot be had. ``fd_dvars_correlation_raw`` and
        ``..._cleaned`` correlate framewise displacement with DVARS over ROIs (root mean square of
        the change since the frame before, Power et al. 2012), and
        ``fd_global_change_correlation_raw`` and ``..._cleaned`` with the size of the change of the
        mean over ROIs, in pairs of kept frames.
    """
    kept = ~cleaned.censored
    n_volumes = len(raw)
    displacement = cleaned.framewise_displacement
    quality: dict[str, Any] = {
        "n_volumes": n_volumes,
        "repetition_time": cleaned.repetition_time,
        "duration": n_volumes * cleaned.repetition_time,
        "fd_mean": None if displacement is None else float(displacement.mean()),
        "fd_max": None if displacement is None else float(displacement.max()),
        "n_censored": int(cleaned.censored.sum()),
        "percent_censored": float(100 * cleaned.censored.mean()),
        "n_regressors": cleaned.n_regressors,
        "degrees_of_freedom": cleaned.degrees_of_freedom,
        "n_rois": int(np.isfinite(cleaned.timeseries).all(axis=0).sum()),
        "tsnr_median": _median_tsnr(raw[kept]),
        "fc_mean_absolute": _mean_absolute(connectivity),
    }
    for stage, series in (("raw", raw), ("cleaned", cleaned.timeseries)):
        dvars, change = _changes(series, kept)
        quality[f"fd_dvars_correlation_{stage}"] = _correlation(displacement, dvars)
        quality[f"fd_global_change_correlation_{stage}"] = _correlation(displacement, change)
    return quality


def _median_tsnr(raw: NDArray[np.float64]) -> float | None:
    """Median over ROIs of mean / standard deviation over time."""
    values = raw[:, np.isfinite(raw).all(axis=0)]
    spread = values.std(axis=0)
    varying = spread > 0
    if not varying.any():
        return None
    return float(np.median(values.mean(axis=0)[varying] / spread[varying]))


def _mean_absolute(connectivity: NDArray[np.float64]) -> float | None:
    """Mean size of the correlation of two ROIs."""
    edges = connectivity[np.triu_indices_from(connectivity, k=1)]
    edges = edges[np.isfinite(edges)]
    return float(np.abs(edges).mean()) if edges.size else None


def _changes(
    series: NDArray[np.float64], kept: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return DVARS and the size of the global change per frame; NaN next to censored frames."""
    values = series[:, np.isfinite(series).all(axis=0)]
    step = np.diff(values, axis=0)
    step[~(kept[1:] & kept[:-1])] = np.nan
    first = [np.nan]
    if not values.shape[1]:
        return np.full(len(series), np.nan), np.full(len(series), np.nan)
    dvars = np.sqrt((step**2).mean(axis=1))
    return np.concatenate([first, dvars]), np.concatenate([first, np.abs(step.mean(axis=1))])


def _correlation(
    displacement: NDArray[np.float64] | None, change: NDArray[np.float64]
) -> float | None:
    if displacement is None:
        return None
    usable = np.isfinite(change)
    x, y = displacement[usable], change[usable]
    if x.size < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])
