"""Nuisance regression, filtering and censoring of ROI series, in an order that fits together.

Filtering before the regression of unfiltered confounds brings back what was filtered out (Lindquist
et al. 2019, doi:10.1002/hbm.24528). So the Butterworth filter is applied to series and confounds
alike, and the cosine filter is part of the regression. Coefficients come from kept frames only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy  # of which parts are loaded when they are used
from numpy.typing import NDArray

from bsym_bids.bold.censoring import bridge, fill_censored, span_of
from bsym_bids.bold.filtering import butterworth, check_cutoffs, cosine_drift, passed_share
from bsym_bids.errors import BadDataError, UsageError

# What is left of a series or regressor below this share of its size is rounding, not signal.
_ROUNDING = 1e-9
_MIN_KEPT = 3


@dataclass(frozen=True, eq=False)
class Denoised:
    """Cleaned series, and what cleaning cost.

    Attributes
    ----------
    timeseries : ndarray, shape (T, N)
        Contiguous series; censored frames are interpolated.
    n_regressors : int
        Independent regressors (rank), trend and cosines included.
    degrees_of_freedom : int
        What regressors and filter leave of the kept frames.
    """

    timeseries: NDArray[np.float64]
    n_regressors: int
    degrees_of_freedom: int


def denoise(
    timeseries: NDArray[np.float64],
    repetition_time: float,
    confounds: NDArray[np.float64] | None = None,
    censored: NDArray[np.bool_] | None = None,
    *,
    high_pass: float = 0.0,
    low_pass: float = 0.0,
    filter: str = "butterworth",
    detrend: bool = True,
) -> Denoised:
    """Regress confounds out, filter and censor.

    At kept frames the result is that of ``nilearn.signal.clean(standardize=None)``, but for one
    thing: without a Butterworth filter the linear trend runs along the time of the frames, and not
    along the list of those that are kept. Columns with anything but numbers at kept frames are
    unmeasured: they come back as NaN and touch no other. So does a column of which regression and
    filter leave nothing but rounding.

    Parameters
    ----------
    timeseries : ndarray, shape (T, N)
        ROI series.
    repetition_time : float
        In seconds.
    confounds : ndarray, shape (T, K), optional
        Regressors.
    censored : ndarray of bool, shape (T,), optional
        Frames that count for nothing.
    high_pass, low_pass : float
        Cut-offs in Hz; 0 is none.
    filter : str
        ``butterworth`` or ``cosine``; the latter has no low-pass.
    detrend : bool
        Remove mean and linear trend.

    Returns
    -------
    Denoised

    Raises
    ------
    UsageError
        Cut-offs that cannot be.
    BadDataError
        Nothing measured, or too few kept frames for the regressors and the filter.
    """
    check_cutoffs(high_pass, low_pass, repetition_time)
    if filter == "cosine" and low_pass:
        raise UsageError(
            "the cosine filter has no low-pass",
            hint="choose a strategy with 'filter: butterworth', or --low-pass 0",
        )
    n_volumes = len(timeseries)
    kept = np.ones(n_volumes, dtype=bool) if censored is None else ~censored
    confounds = np.empty((n_volumes, 0)) if confounds is None else confounds
    measured = np.isfinite(timeseries[kept]).all(axis=0)
    _check_enough(measured, kept)
    series = np.asarray(timeseries[:, measured], dtype=np.float64)
    if filter == "butterworth" and (high_pass or low_pass):
        prepared = _filtered(series, confounds, kept, repetition_time, high_pass, low_pass, detrend)
    else:
        prepared = _with_drifts(series, confounds, kept, repetition_time, high_pass, detrend)
    residual, rank = _residual(prepared.series, prepared.regressors)
    freedom = prepared.freedom - rank
    n_given = prepared.regressors.shape[1]
    if freedom < 1 or n_given >= kept.sum():
        raise BadDataError(
            f"{n_given} regressors and the filter leave no degrees of freedom in "
            f"{int(kept.sum())} kept frames of {n_volumes}",
            hint="use fewer regressors or a higher --fd-threshold, or exclude the run",
        )
    gone = residual.std(axis=0) <= _ROUNDING * np.abs(series[kept]).max(axis=0)
    filled = fill_censored(residual, kept)
    filled[:, gone] = np.nan
    cleaned = np.full(timeseries.shape, np.nan)
    cleaned[:, measured] = filled
    return Denoised(cleaned, rank, freedom)


@dataclass(frozen=True, eq=False)
class _Prepared:
    """Series and regressors at kept frames, and the degrees of freedom before regression."""

    series: NDArray[np.float64]
    regressors: NDArray[np.float64]
    freedom: int


def _check_enough(measured: NDArray[np.bool_], kept: NDArray[np.bool_]) -> None:
    if not measured.any():
        raise BadDataError(
            "no ROI is measured",
            hint="check that the images cover the brain and are in the space they claim",
        )
    if kept.sum() < _MIN_KEPT:
        raise BadDataError(
            f"censoring leaves {int(kept.sum())} of {kept.size} frames",
            hint="choose a higher --fd-threshold, or exclude the run",
        )


def _filtered(
    series: NDArray[np.float64],
    confounds: NDArray[np.float64],
    kept: NDArray[np.bool_],
    repetition_time: float,
    high_pass: float,
    low_pass: float,
    detrend: bool,
) -> _Prepared:
    """Detrend and filter series and confounds alike, across bridged censored frames.

    Frames before the first and after the last kept one stay out, so that nothing made up reaches
    the filter's ends.
    """
    span = span_of(kept)
    inside = kept[span]
    together = bridge(np.hstack([series, confounds])[span], inside)
    if detrend:
        together = scipy.signal.detrend(together, axis=0)
    together = butterworth(together, repetition_time, high_pass, low_pass)[inside]
    regressors = together[:, series.shape[1] :]
    size = np.abs(confounds[kept]).max(axis=0)
    passed = passed_share(high_pass, low_pass, repetition_time)
    lost = 0 if high_pass else 1 + detrend  # a high-pass filter takes mean and trend with it
    return _Prepared(
        series=together[:, : series.shape[1]],
        regressors=regressors[:, regressors.std(axis=0) > _ROUNDING * size],
        freedom=int(kept.sum() * passed) - lost,
    )


def _with_drifts(
    series: NDArray[np.float64],
    confounds: NDArray[np.float64],
    kept: NDArray[np.bool_],
    repetition_time: float,
    high_pass: float,
    detrend: bool,
) -> _Prepared:
    """Make slow drifts regressors beside the confounds: a trend in time, and cosines."""
    n_volumes = len(series)
    drifts = [cosine_drift(n_volumes, repetition_time, high_pass)]
    if detrend:
        drifts.append(np.arange(n_volumes, dtype=np.float64)[:, None])
    series = series[kept]
    return _Prepared(
        series=series - series.mean(axis=0) if detrend else series,
        regressors=np.hstack([confounds, *drifts])[kept],
        freedom=int(kept.sum()) - 1,
    )


def _residual(
    series: NDArray[np.float64], regressors: NDArray[np.float64]
) -> tuple[NDArray[np.float64], int]:
    """Project series off the standardised regressors; return what is left, and their rank."""
    centred = regressors - regressors.mean(axis=0)
    spread = centred.std(axis=0, ddof=1)
    varying = spread > 0
    if not varying.any():
        return series.copy(), 0
    basis, triangle, _ = scipy.linalg.qr(
        centred[:, varying] / spread[varying], mode="economic", pivoting=True
    )
    diagonal = np.abs(np.diag(triangle))
    tolerance = diagonal[0] * max(centred.shape) * np.finfo(np.float64).eps
    basis = basis[:, diagonal > tolerance]
    return series - basis @ (basis.T @ series), basis.shape[1]
