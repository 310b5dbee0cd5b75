"""Scores of units that count several times or not at all: all resamples of a bootstrap at once.

Arrays have the axes repeats R, units n, resamples B. Whatever is a sum over units is one matrix
product for all repeats and resamples.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

#: Scores by name, (R, B) each.
Scores = dict[str, NDArray[np.float64]]

#: Resamples that are ranked at once: what they take fits a cache.
_AT_ONCE = 256
#: Rows that are summed up by one product.
_ROWS = 16
_EPS = float(np.finfo(float).eps)
#: A smaller variance, as a share of what it is the difference of, is that of rounding.
_ROUNDING = 1e-12
#: Newton's method ends after a step that is as small, and fails after as many or with as large a
#: coefficient: the classes can be told apart without an error.
_SMALL_STEP, _STEPS, _STEEPEST = 1e-9, 50, 1e3


def score_numbers(
    labels: NDArray[np.float64], guessed: NDArray[np.float64], weights: NDArray[np.float64]
) -> Scores:
    """Score predicted numbers.

    Parameters
    ----------
    labels : ndarray, shape (n,)
        True numbers.
    guessed : ndarray, shape (R, n)
        Predicted ones.
    weights : ndarray, shape (n, B)
        How often each unit counts.

    Returns
    -------
    dict of str to ndarray, shape (R, B)
        ``mae``, ``rmse``, ``r2``, ``pearson``, ``spearman``; NaN where undefined.
    """
    centre = labels.mean()
    y, x, errors = labels - centre, guessed - centre, guessed - labels
    count, sum_y, yy = np.stack([np.ones(len(y)), y, y**2]) @ weights
    sums = np.stack([np.abs(errors), errors**2, x, x**2, x * y]) @ weights
    absolute, squared, sum_x, xx, xy = sums
    count = np.where(count > 0, count, np.nan)
    total = _beyond_rounding(yy - sum_y**2 / count, yy + _ROUNDING * count * centre**2)
    spread = _beyond_rounding(xx - sum_x**2 / count, xx + _ROUNDING * yy)
    return {
        "mae": absolute / count,
        "rmse": np.sqrt(squared / count),
        "r2": 1 - squared / total,
        "pearson": (xy - sum_x * sum_y / count) / np.sqrt(spread * total),
        "spearman": _rank_correlation(labels, guessed, weights),
    }


def score_classes(
    labels: NDArray[np.int64],
    guessed: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> Scores:
    """Score predicted classes and their probabilities.

    Parameters
    ----------
    labels : ndarray, shape (n,)
        Index of the true class.
    guessed : ndarray, shape (R, n)
        Index of the predicted one.
    probabilities : ndarray, shape (R, n, classes)
        Of each class.
    weights : ndarray, shape (n, B)
        How often each unit counts.

    Returns
    -------
    dict of str to ndarray, shape (R, B)
        ``auc``, ``balanced_accuracy``, ``accuracy``, ``f1``, ``brier``, ``log_loss``,
        ``calibration_slope``, ``calibration_intercept``; NaN where undefined.
    """
    n_classes = probabilities.shape[2]
    # Of two classes, what holds for the second against the first says all.
    shown = [1] if n_classes == 2 else range(n_classes)
    areas, slopes, intercepts = [], [], []
    for c in shown:
        positive = labels == c
        areas.append(_areas_under_curve(positive, probabilities[:, :, c], weights))
        slope, intercept = _recalibrate(positive, probabilities[:, :, c], weights)
        slopes.append(slope)
        intercepts.append(intercept)
    return {
        "auc": mean_of_known(np.array(areas)),
        **_score_confusion(_confusion(labels, guessed, weights, n_classes)),
        **_score_probabilities(labels, probabilities, weights),
        "calibration_slope": mean_of_known(np.array(slopes)),
        "calibration_intercept": mean_of_known(np.array(intercepts)),
    }


def mean_of_known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the first axis of what is finite, NaN where nothing is."""
    known = np.isfinite(values)
    return _ratio(np.where(known, values, 0).sum(axis=0), known.sum(axis=0))


def centred_ranks(
    values: NDArray[np.float64], weights: NDArray[np.floating]
) -> NDArray[np.floating]:
    """Return the ranks of units among units that count several times, less their mean.

    Parameters
    ----------
    values : ndarray, shape (n,)
        Equal values share the mean of their ranks.
    weights : ndarray, shape (n, B)
        How often each counts. Single precision is exact for whole numbers.

    Returns
    -------
    ndarray, shape (n, B)
    """
    order = np.argsort(values, kind="stable")
    ends = np.flatnonzero(np.diff(values[order], append=np.inf))  # the last of equal ones
    ordered = weights[order]
    upto = _running_sum(ordered)
    total = upto[-1].copy()
    if len(ends) == len(values):
        middle = upto
        middle -= 0.5 * ordered
    else:
        upto = upto[ends]
        middle = upto.copy()
        middle[1:] += upto[:-1]
        middle = np.repeat(0.5 * middle, np.diff(ends, prepend=-1), axis=0)
    middle -= 0.5 * total
    ranks = np.empty_like(middle)
    ranks[order] = middle
    return ranks


def _running_sum(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the sum of each row and those above it: `numpy.cumsum` in a third of its time."""
    n, width = values.shape
    padded = np.zeros((-(-n // _ROWS) * _ROWS, width), values.dtype)
    padded[:n] = values
    sums = np.tri(_ROWS, dtype=values.dtype) @ padded.reshape(-1, _ROWS, width)
    sums[1:] += np.cumsum(sums[:-1, -1], axis=0)[:, None]
    return sums.reshape(-1, width)[:n]


def _blocks(weights: NDArray[np.float64]) -> Iterator[tuple[slice, NDArray[np.floating]]]:
    """Yield some resamples at a time, in single precision if there are several."""
    precision = np.float32 if weights.shape[1] > 1 else np.float64
    for start in range(0, weights.shape[1], _AT_ONCE):
        columns = slice(start, start + _AT_ONCE)
        yield columns, weights[:, columns].astype(precision)


def _rank_correlation(
    labels: NDArray[np.float64], guessed: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return Spearman's correlation, (R, B)."""
    found = np.empty((len(guessed), weights.shape[1]))
    for columns, light in _blocks(weights):
        of_labels = centred_ranks(labels, light)
        weighted = of_labels * light
        spread = np.einsum("nb,nb->b", weighted, of_labels)
        for repeat, values in enumerate(guessed):
            ranks = centred_ranks(values, light)
            product = spread * np.einsum("nb,nb,nb->b", light, ranks, ranks)
            common = np.einsum("nb,nb->b", weighted, ranks)
            found[repeat, columns] = _ratio(common, np.sqrt(product))
    return found


def _areas_under_curve(
    positive: NDArray[np.bool_], scores: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return areas under the ROC curve, (R, B): by the ranks of members (Mann & Whitney 1947)."""
    pairs = weights[positive].sum(axis=0) * weights[~positive].sum(axis=0)
    found = np.empty((len(scores), weights.shape[1]))
    for columns, light in _blocks(weights):
        members = light[positive]
        for repeat, values in enumerate(scores):
            above = np.einsum("nb,nb->b", members, centred_ranks(values, light)[positive])
            found[repeat, columns] = 0.5 + _ratio(above, pairs[columns])
    return found


def _confusion(
    labels: NDArray[np.int64],
    guessed: NDArray[np.int64],
    weights: NDArray[np.float64],
    n_classes: int,
) -> NDArray[np.float64]:
    """Return how many of each class were predicted to be of each, (classes, classes, R, B)."""
    pairs = labels * n_classes + guessed == np.arange(n_classes**2)[:, None, None]
    counts = pairs.astype(float) @ weights
    return counts.reshape(n_classes, n_classes, *counts.shape[1:])


def _score_confusion(counts: NDArray[np.float64]) -> Scores:
    right = np.einsum("cc...->c...", counts)
    members, guesses = counts.sum(axis=1), counts.sum(axis=0)
    there = np.where(members > 0, members, np.nan)  # classes without members do not count
    return {
        "balanced_accuracy": mean_of_known(right / there),
        "accuracy": _ratio(right.sum(axis=0), members.sum(axis=0)),
        "f1": mean_of_known(2 * right / (there + guesses)),
    }


def _score_probabilities(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64], weights: NDArray[np.float64]
) -> Scores:
    n_classes = probabilities.shape[2]
    truth = labels[:, None] == np.arange(n_classes)
    # Of two classes, the errors are the same: one of them counts.
    squared = ((probabilities - truth) ** 2).sum(axis=2) / (2 if n_classes == 2 else 1)
    loss = -np.log(np.clip(probabilities[:, truth], _EPS, 1 - _EPS))
    count = weights.sum(axis=0)
    return {
        "brier": _ratio(squared @ weights, count),
        "log_loss": _ratio(loss @ weights, count),
    }


def _recalibrate(
    positive: NDArray[np.bool_], probability: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return slope, and intercept at slope 1, of logistic regressions on the logit, (R, B).

    Fitted to all units once; then one step of Newton's method with the weights.
    """
    unknown = np.full((len(probability), weights.shape[1]), np.nan)
    if not positive.any() or positive.all():
        return unknown, unknown
    clipped = np.clip(probability, _EPS, 1 - _EPS)
    logits = np.log(clipped / (1 - clipped))
    centred = logits - logits.mean(axis=1, keepdims=True)
    ones = np.ones_like(logits)
    slope = _reweighted(np.stack([ones, centred], axis=1), 0 * logits, positive, weights)
    intercept = _reweighted(ones[:, None], logits, positive, weights)
    return slope, intercept


def _reweighted(
    designs: NDArray[np.float64],
    offsets: NDArray[np.float64],
    positive: NDArray[np.bool_],
    weights: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the last coefficient of logistic regressions on (R, columns, n), as (R, B)."""
    pairs = list(zip(designs, offsets, strict=True))
    fits = np.array([_fit_logistic(design, offset, positive) for design, offset in pairs])
    expected = expit(np.einsum("rk,rkn->rn", np.nan_to_num(fits), designs) + offsets)
    gradient = (designs * (positive - expected)[:, None]) @ weights
    variance = expected * (1 - expected)
    last, first = designs[:, -1], designs[:, 0]
    own = (variance * last**2) @ weights
    if designs.shape[1] == 1:
        step = _ratio(gradient[:, 0], own)
    else:  # two columns: what is left of the second without the first
        other, between = (variance * first**2) @ weights, (variance * first * last) @ weights
        shared = _ratio(between, other)
        step = (gradient[:, 1] - shared * gradient[:, 0]) / _beyond_rounding(
            own - shared * between, own
        )
    return fits[:, -1:] + step


def _fit_logistic(
    design: NDArray[np.float64], offset: NDArray[np.float64], positive: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return coefficients of a logistic regression by Newton's method; NaN without a solution."""
    coefficients = np.zeros(len(design))
    for _ in range(_STEPS):
        expected = expit(offset + coefficients @ design)
        curvature = (design * (expected * (1 - expected))) @ design.T
        try:
            step = np.linalg.solve(curvature, design @ (positive - expected))
        except np.linalg.LinAlgError:
            break
        # Where the curve is flat, whole steps overshoot.
        coefficients += step * min(1.0, 2.0 / max(np.abs(step @ design).max(), _EPS))
        if not np.abs(coefficients).max() < _STEEPEST:
            break
        if np.abs(step).max() < _SMALL_STEP:
            return coefficients
    return np.full(len(design), np.nan)


def _beyond_rounding(
    difference: NDArray[np.float64], whole: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return a sum of squares that is left of another, NaN if that is no more than rounding."""
    return np.where(difference > _ROUNDING * whole, difference, np.nan)


def _ratio(over: NDArray[np.float64], under: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return a ratio, NaN where the denominator is 0."""
    return np.where(under > 0, over / np.where(under > 0, under, 1), np.nan)
