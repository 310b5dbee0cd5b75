"""Correction of predicted numbers for regression to the mean ("age bias"), beside the prediction.

Predictions of the young are too high and of the old too low, the more so the less is known, so that
their difference from age goes with age. The correction of Cole et al. (2018,
doi:10.1038/mp.2017.62), see de Lange & Cole (2020, doi:10.1016/j.nicl.2020.102229): predictions are
regressed on labels, prediction = intercept + slope * label, and corrected = (prediction -
intercept) / slope. It needs nobody's own label to correct them, as that of Beheshti et al. (2019,
doi:10.1016/j.nicl.2019.102063) does, which therefore makes any prediction look good.

The regression is on the out-of-fold predictions of the other folds of the repeat, never on the
units that are corrected. (Those other predictions are by models that were trained on them, too.)
Corrected predictions err more than uncorrected ones, and are in no score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bsym_bids.prediction.records import Folds, Predictions, Target
from bsym_bids.prediction.scores import scored_units
from bsym_bids.prediction.weighted import mean_of_known

#: Predictions that follow the label less than this cannot be corrected: errors would be
#: multiplied by more than ten.
LEAST_SLOPE = 0.1
#: A line through fewer units says nothing.
LEAST_UNITS = 10


@dataclass(frozen=True, eq=False)
class BiasCorrected:
    """Predictions that are corrected for their regression to the mean.

    Attributes
    ----------
    values : ndarray, shape (N,)
        Of those out of fold, the mean over repeats; of the others, by the line through all
        out-of-fold predictions. NaN for units without a prediction, and for all if there is a
        reason.
    slope, intercept : float
        Of that line: what is predicted where the label is larger by 1, and where it is 0.
    reason : str
        Why nothing could be corrected; else empty.
    """

    values: NDArray[np.float64]
    slope: float
    intercept: float
    reason: str = ""


def correct_bias(target: Target, predictions: Predictions, folds: Folds) -> BiasCorrected:
    """Correct predicted numbers for their regression to the mean.

    Nothing is corrected if a slope is below `LEAST_SLOPE` in any fold: those for whom it is not
    would be chosen by chance.

    Parameters
    ----------
    target : Target
        Numbers.
    predictions : Predictions
        Of one candidate.
    folds : Folds
        In which they were predicted.

    Returns
    -------
    BiasCorrected
    """
    predicted = predictions.out_of_fold
    known = scored_units(target, predictions)
    corrected = np.full(predicted.shape, np.nan)
    slopes = []
    for repeat, assignment in enumerate(folds.assignment):
        for fold in np.unique(assignment[known[repeat]]):
            own = known[repeat] & (assignment == fold)
            others = known[repeat] & (assignment != fold)
            slope, intercept = _line(target.values[others], predicted[repeat, others])
            slopes.append(slope)
            if slope >= LEAST_SLOPE:
                corrected[repeat, own] = (predicted[repeat, own] - intercept) / slope
    means = mean_of_known(np.where(known, predicted, np.nan))
    there = np.isfinite(means)
    slope, intercept = _line(target.values[there], means[there])
    reason = _reason([*slopes, slope])
    if reason:
        return BiasCorrected(np.full(len(there), np.nan), slope, intercept, reason)
    others = (predictions.unlabelled - intercept) / slope
    return BiasCorrected(np.where(there, mean_of_known(corrected), others), slope, intercept)


def _line(labels: NDArray[np.float64], predicted: NDArray[np.float64]) -> tuple[float, float]:
    """Return slope and intercept of predictions on labels; NaN if there is no line."""
    if len(labels) < LEAST_UNITS or np.ptp(labels) == 0:
        return math.nan, math.nan
    centred = labels - labels.mean()
    slope = float(centred @ predicted / (centred @ centred))
    return slope, float(predicted.mean() - slope * labels.mean())


def _reason(slopes: list[float]) -> str:
    if not np.isfinite(slopes).all():
        return f"fewer than {LEAST_UNITS} units with different labels to fit the correction"
    least = min(slopes)
    if least < LEAST_SLOPE:
        return (
            f"predictions follow the label too little (slope {least:.2f}, at least "
            f"{LEAST_SLOPE:g} is needed)"
        )
    return ""
