"""Ridge or logistic regression of one target on one set of features, with a permutation test."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from bsym_bids.pool import Workers
from bsym_bids.prediction import logistic
from bsym_bids.prediction.kernels import Kernel
from bsym_bids.prediction.nuisance import Confounds
from bsym_bids.prediction.records import Folds, Predictions, Target
from bsym_bids.prediction.ridge import (
    OutOfFold,
    Regression,
    fit_ridge,
    nested_ridges,
    residual_gram,
)

#: Decimals of scores for classes of 0 and 1 that are more than rounding in single precision.
_TIED = 5
#: Permutations that are regressed at once: bounds the memory.
_AT_ONCE = 1000


@dataclass(frozen=True, eq=False)
class Fit:
    """A regression on all labelled units.

    Attributes
    ----------
    dual : ndarray, shape (N, m)
        Weight of each unit's features, less their regression on the confounds; m is 1 for numbers
        and for two classes, else the number of classes.
    intercept : ndarray, shape (m,)
        Prediction, or logits, at the training mean.
    penalty : float
        As a multiple of `Kernel.scale`.
    training : ndarray of bool, shape (N,)
        Who trained.
    confounds : Confounds
        What was regressed out of the features.
    """

    dual: NDArray[np.float64]
    intercept: NDArray[np.float64]
    penalty: float
    training: NDArray[np.bool_]
    confounds: Confounds


def predict_linear(
    key: str,
    kernel: Kernel,
    target: Target,
    folds: Folds,
    confounds: Confounds,
    permuted: NDArray[np.float64],
    workers: Workers | None = None,
    blind: Folds | None = None,
) -> tuple[Predictions, Fit]:
    """Predict a target from features, everyone out of fold, and the unlabelled by all.

    Numbers: ridge regression. Classes: logistic regression. Penalties are chosen in inner folds.
    The permutation test of classes is one of the least-squares classifier (ridge regression on
    indicators of the classes) on the same features and folds, under true and permuted labels: the
    logistic one would take thousands of times as long.

    Parameters
    ----------
    key : str
        Of the candidate.
    kernel : Kernel
        Its features.
    target : Target
        The labels.
    folds : Folds
        Who is predicted by whom.
    confounds : Confounds
        Regressed out of the features in training, as far as they can be (`Confounds.estimable`).
    permuted : ndarray, shape (N, permutations)
        Permuted labels, as `bsym_bids.prediction.exchange.permuted_labels` returns them.
    workers : Workers, optional
        Processes that share the work; without them it is done here.
    blind : Folds, optional
        Folds that were dealt without a look at classes, for the permutation test; default: the
        same ones, for numbers.

    Returns
    -------
    predictions : Predictions
    fit : Fit
        What predicts the unlabelled.
    """
    blind = blind or folds
    members = kernel.present & target.labelled
    confounds = confounds.estimable((folds, blind), members)
    regression = Regression(kernel, confounds, blind)
    statistic, null = np.nan, np.empty(0)
    if target.is_regression or permuted.shape[1]:
        found, statistic, null = _nested_ridge_and_null(regression, target, permuted, workers)
        out_of_fold = found.values[:, :, 0]
    if not target.is_regression:
        regression = Regression(kernel, confounds, folds, logistic.PENALTIES)
        found = logistic.nested_logistic(regression, target.values, len(target.classes), workers)
        out_of_fold = found.values
    fit = _fit_all(regression, target, _overall(found.penalties))
    unlabelled = kernel.present & ~target.labelled
    return (
        Predictions(
            candidate=key,
            out_of_fold=out_of_fold,
            unlabelled=_on_rows(_apply(regression, fit, target), unlabelled),
            null_scores=null,
            null_statistic=statistic,
            training_mean=training_means(target, folds, members),
        ),
        fit,
    )


def predict_mean(target: Target, folds: Folds) -> Predictions:
    """Predict the mean of the training labels, or the shares of their classes, for everyone."""
    means = training_means(target, folds, target.labelled)
    whole = _mean_of(target, target.labelled)
    unlabelled = np.broadcast_to(whole, (len(target.values), *whole.shape))
    return Predictions(
        candidate="mean",
        out_of_fold=means,
        unlabelled=_on_rows(unlabelled, ~target.labelled),
        null_scores=np.empty(0),
        null_statistic=np.nan,
        training_mean=means,
    )


def training_means(target: Target, folds: Folds, members: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the mean label, or the shares of the classes, in the training folds of each member.

    Returns
    -------
    ndarray, shape (repeats, N) or (repeats, N, classes)
        NaN for units that are not members.
    """
    shape = (folds.n_repeats, len(target.values), len(target.classes))
    means = np.full(shape[:2] if target.is_regression else shape, np.nan)
    for repeat, assignment in enumerate(folds.assignment):
        for fold in np.unique(assignment[members]):
            tested = members & (assignment == fold)
            means[repeat, tested] = _mean_of(target, members & ~tested)
    return means


def _mean_of(target: Target, units: NDArray[np.bool_]) -> NDArray[np.float64]:
    if target.is_regression:
        return target.values[units].mean()
    counts = np.bincount(target.values[units].astype(int), minlength=len(target.classes))
    return counts / counts.sum()


def _overall(penalties: NDArray[np.float64]) -> float:
    """Return the penalty for the fit to everyone: the median of those of the folds, by order."""
    chosen = np.sort(penalties[np.isfinite(penalties)])
    return float(chosen[len(chosen) // 2])


def _fit_all(regression: Regression, target: Target, penalty: float) -> Fit:
    training = regression.members
    if target.is_regression:
        fitted = fit_ridge(regression, training, target.values[:, None], penalty)
        return Fit(fitted.dual, fitted.intercept, penalty, training, regression.confounds)
    members = np.flatnonzero(training)
    inner = residual_gram(regression, training)[np.ix_(members, members)]
    points, bound = logistic.points_of(inner)
    fits = logistic.fit_many(
        points,
        bound,
        np.ones((len(members), 1)),
        logistic.indicators(target.values[members], len(target.classes)),
        np.ones((len(members), 1), bool),
        np.array([penalty * regression.kernel.scale(training)]),
    )
    dual = np.zeros((len(training), fits.weights.shape[2]))
    dual[members] = points @ (fits.weights[:, 0] / bound[:, None])
    return Fit(dual, fits.intercepts[0], penalty, training, regression.confounds)


def _apply(regression: Regression, fit: Fit, target: Target) -> NDArray[np.float64]:
    """Return the prediction of every unit, (N,) or (N, classes)."""
    raw = residual_gram(regression, fit.training) @ fit.dual + fit.intercept
    return raw[:, 0] if target.is_regression else logistic.probabilities(raw)


def _on_rows(values: NDArray[np.float64], rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.where(rows.reshape(-1, *[1] * (values.ndim - 1)), values, np.nan)


def _nested_ridge_and_null(
    regression: Regression,
    target: Target,
    permuted: NDArray[np.float64],
    workers: Workers | None,
) -> tuple[OutOfFold, float, NDArray[np.float64]]:
    """Predict the labels (N,) and permutations of them (N, permutations), all at once.

    Returns
    -------
    OutOfFold
        Of the true labels, or of the indicators of their classes.
    statistic : float
        R2 of the true labels, or the area under the ROC curve; NaN without permutations.
    null : ndarray, shape (permutations,)
        That of each permutation.
    """
    own = _columns(target, target.values[:, None])
    outputs = own.shape[1]
    parts = [permuted[:, at : at + _AT_ONCE] for at in range(0, permuted.shape[1], _AT_ONCE)]
    found, null = None, [np.empty(0)]
    for part in parts:
        # In single precision: centred, so that no digits are lost.
        shuffled = _columns(target, part - np.nanmean(part, axis=0) * target.is_regression)
        shuffled = shuffled.astype(np.float32)
        sets = [shuffled] if found else [shuffled, own]
        nested = nested_ridges(regression, sets, outputs=outputs, workers=workers)
        found = found or nested[1]
        null.append(_statistics(regression, target, shuffled, nested[0].values))
    if found is None:
        (found,) = nested_ridges(regression, [own], outputs=outputs, workers=workers)
        return found, np.nan, np.empty(0)
    statistic = _statistics(regression, target, own, found.values)[0]
    return found, float(statistic), np.concatenate(null)


def _columns(target: Target, labels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what is regressed: labels (N, k), or indicators of their classes side by side."""
    if target.is_regression:
        return labels
    coded = [logistic.indicators(column, len(target.classes)) for column in labels.T]
    return np.concatenate(coded, axis=1)


def _statistics(
    regression: Regression,
    target: Target,
    columns: NDArray[np.floating],
    predicted: NDArray[np.floating],
) -> NDArray[np.float64]:
    """Return R2, or the area under the ROC curve, of each set of labels: mean over repeats.

    Parameters
    ----------
    columns : ndarray, shape (N, k * outputs)
        As `_columns` returns them.
    predicted : ndarray, shape (repeats, N, k * outputs)
    """
    members = regression.members
    if target.is_regression:
        return _r2(columns, predicted, members)
    positive = columns[members] > 0
    areas = np.mean([area_under_curve(one[members], positive) for one in predicted], axis=0)
    outputs = 1 if len(target.classes) == 2 else len(target.classes)
    return areas.reshape(-1, outputs).mean(axis=1)


def _r2(
    labels: NDArray[np.float64], predicted: NDArray[np.floating], members: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return R2 of each column of labels (N, columns), mean over repeats of the predictions."""
    own = labels[members]
    errors = (predicted[:, members] - own) ** 2
    total = ((own - own.mean(axis=0)) ** 2).sum(axis=0)
    return (1 - errors.sum(axis=1, dtype=np.float64) / total).mean(axis=0)


def area_under_curve(
    scores: NDArray[np.floating], positive: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the area under the ROC curve of each column, by ranks (Mann & Whitney 1947).

    Parameters
    ----------
    scores, positive : ndarray, shape (n, columns)
        Larger scores speak for positive units.
    """
    # Of one size but for rounding is of one size: predictions from features that are all alike.
    ranks = rankdata(np.round(scores, _TIED), axis=0)
    count = positive.sum(axis=0)
    above = (ranks * positive).sum(axis=0) - count * (count + 1) / 2
    return above / (count * (len(scores) - count))
