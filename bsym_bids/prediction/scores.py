"""How good predictions are: scores, their bootstrap intervals, and permutation p-values.

Scores are computed for each repeat of the cross-validation over all units that it predicts, and
then averaged over repeats; units without a label or without a prediction do not count. R2 is
1 - SSE / SST, with SST about the mean of the scored labels, so that it can be negative, and is not
the square of a correlation.

The predicted class is the one whose probability is the largest multiple of its share in the
training folds: the one that balanced accuracy asks for. Without this, a rare class would hardly
ever be predicted. Of classes that are equally likely so, it is the most frequent.

A prediction of the training mean differs between folds only by whom they leave out, and always
away from their labels. This says nothing of anyone, so its area under the curve is 0.5 and its
correlations and calibration are undefined (NaN).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bsym_bids.prediction.records import Predictions, Target
from bsym_bids.prediction.weighted import Scores, mean_of_known, score_classes, score_numbers

#: How often resamples that lack a class are drawn anew before they are left out.
_REDRAWS = 100
#: Ratios of probabilities that differ less than this are equal.
_EQUAL = 1e-9
#: Statistics of permuted labels are in single precision: closer ones are ties.
_TIE = 1e-6

HIGHER, LOWER = "higher", "lower"


@dataclass(frozen=True)
class Metric:
    """What a score is.

    Attributes
    ----------
    title, description : str
        For figures, and for the description of a column.
    better : str
        `HIGHER` or `LOWER`; empty where neither is better.
    chance : float
        Of predictions that know nothing; NaN where it depends on the labels.
    """

    title: str
    description: str
    better: str = HIGHER
    chance: float = math.nan


#: Scores of numbers, by name.
REGRESSION_METRICS: Mapping[str, Metric] = {
    "mae": Metric("MAE", "mean absolute error, in units of the target", LOWER),
    "rmse": Metric("RMSE", "root of the mean squared error, in units of the target", LOWER),
    "r2": Metric("R2", "1 - SSE / SST, SST about the mean of the scored labels", chance=0.0),
    "pearson": Metric("Pearson r", "correlation of predictions and labels", chance=0.0),
    "spearman": Metric("Spearman rho", "correlation of their ranks", chance=0.0),
}
#: Scores of classes, by name.
CLASSIFICATION_METRICS: Mapping[str, Metric] = {
    "auc": Metric(
        "AUC",
        "area under the ROC curve of the class probabilities; of more than two classes, the mean "
        "of those of each against all others",
        chance=0.5,
    ),
    "balanced_accuracy": Metric(
        "Balanced accuracy",
        "mean over classes of the share of their members who are predicted rightly; predicted is "
        "the class whose probability is the largest multiple of its share in training",
    ),
    "accuracy": Metric("Accuracy", "share of units whose class is predicted rightly"),
    "f1": Metric("F1", "harmonic mean of precision and recall, mean over classes"),
    "brier": Metric(
        "Brier score",
        "mean squared error of the probability of the second of two classes; of more classes, "
        "summed over them",
        LOWER,
    ),
    "log_loss": Metric(
        "Log loss", "mean negative natural logarithm of the true class's probability", LOWER
    ),
    "calibration_slope": Metric(
        "Calibration slope",
        "slope of the logistic regression of the class on the logit of its probability (Cox 1958, "
        "doi:10.1093/biomet/45.3-4.562): 1 is right, below 1 are probabilities that are too "
        "extreme; of more than two classes, the mean of those of each against all others; n/a if "
        "the classes are told apart without an error, or if all probabilities are equal",
        "",
    ),
    "calibration_intercept": Metric(
        "Calibration in the large",
        "what has to be added to the logit of the second class so that as many are expected as "
        "there are: 0 is right, below 0 are probabilities that are too high; two classes only",
        "",
    ),
}
#: All scores, by name.
METRICS: Mapping[str, Metric] = {**REGRESSION_METRICS, **CLASSIFICATION_METRICS}


@dataclass(frozen=True)
class Scored:
    """How good a candidate is.

    Attributes
    ----------
    candidate : str
        Key of the candidate.
    scores : mapping of str to float
        By name; NaN where undefined.
    intervals : mapping of str to tuple of float
        Lower and upper limit of each.
    p : float
        Of the permutation test; NaN without one.
    n_units : int
        Labelled units that it predicts.
    least_p : float
        Smallest p-value that so many permutations can give; 0 where that does not matter.
    """

    candidate: str
    scores: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    p: float
    n_units: int
    least_p: float = 0.0


def primary_metric(target: Target) -> str:
    """Return the name of the score by which candidates are compared: ``mae`` or ``auc``."""
    return "mae" if target.is_regression else "auc"


def metrics_of(target: Target) -> Mapping[str, Metric]:
    """Return what a target is scored by: more than two classes have no single intercept."""
    if target.is_regression:
        return REGRESSION_METRICS
    left_out = "calibration_intercept" if len(target.classes) > 2 else ""
    return {name: metric for name, metric in CLASSIFICATION_METRICS.items() if name != left_out}


def assess(
    target: Target,
    predictions: Predictions,
    groups: Sequence[str],
    n_resamples: int,
    rng: np.random.Generator,
) -> Scored:
    """Return scores, their 95 % intervals and the permutation p-value of a candidate.

    Parameters
    ----------
    target : Target
        The true labels.
    predictions : Predictions
        Of the candidate.
    groups : sequence of str, length N
        Resampled as wholes, see `bootstrap_intervals`.
    n_resamples : int
        Resamples.
    rng : numpy.random.Generator
        Source of randomness. The same state for all candidates resamples the same groups.

    Returns
    -------
    Scored
    """
    return Scored(
        candidate=predictions.candidate,
        scores=score(target, predictions),
        intervals=bootstrap_intervals(target, predictions, groups, n_resamples, rng),
        p=permutation_p(predictions.null_statistic, predictions.null_scores),
        n_units=int(scored_units(target, predictions).any(axis=0).sum()),
        least_p=1 / (1 + len(predictions.null_scores)) if len(predictions.null_scores) else 0.0,
    )


def score(target: Target, predictions: Predictions) -> dict[str, float]:
    """Score what is predicted out of fold: mean over repeats.

    Parameters
    ----------
    target : Target
        The true labels.
    predictions : Predictions
        Numbers, or class probabilities.

    Returns
    -------
    dict of str to float
        By name, see `metrics_of`; NaN where undefined. Classes without a scored member are left out
        of averages over classes.
    """
    weights = np.ones((len(target.values), 1))
    return {name: float(x[0]) for name, x in _score_weighted(target, predictions, weights).items()}


def bootstrap_intervals(
    target: Target,
    predictions: Predictions,
    groups: Sequence[str],
    n: int,
    rng: np.random.Generator,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Return percentile intervals of the scores over resamples of whole groups.

    Who is scored is resampled, not who trains: the intervals hold for the predictions at hand, not
    for those of models that are trained on other people. Resamples that lack a class are drawn
    anew; those that still do after 100 draws are left out, as are, score by score, those for which
    it is undefined. Calibration is estimated anew in each resample by one step of Newton's method
    from the estimate on all (Davidson & MacKinnon 1999, doi:10.1111/1468-2354.00026).

    Parameters
    ----------
    target : Target
        The true labels.
    predictions : Predictions
        Numbers, or class probabilities.
    groups : sequence of str, length N
        Units of one group (person, family) are drawn together. As many groups are drawn as have
        a scored unit.
    n : int
        Resamples.
    rng : numpy.random.Generator
        Source of randomness.
    level : float
        Of confidence.

    Returns
    -------
    dict of str to tuple of float
        Lower and upper limit by name; NaN where undefined, for fewer than two groups, and without
        resamples.
    """
    weights = _resample(target, predictions, np.asarray(groups, dtype=str), n, rng)
    resampled = _score_weighted(target, predictions, weights)
    limits = ((1 - level) / 2, (1 + level) / 2)
    intervals = {}
    for name, found in resampled.items():
        found = found[np.isfinite(found)]
        low, high = np.quantile(found, limits) if len(found) else (math.nan, math.nan)
        intervals[name] = (float(low), float(high))
    return intervals


def permutation_p(observed: float, null: NDArray[np.float64]) -> float:
    """Return the p-value of a statistic that is the larger the better.

    (1 + number of permutations that reach it) / (1 + permutations): never zero, and exact when
    permutations are drawn at random (Phipson & Smyth 2010, doi:10.2202/1544-6115.1585).
    Permutations whose statistic is undefined count as reaching it, and so do those that differ from
    it by no more than rounding.

    Parameters
    ----------
    observed : float
        Under the true labels.
    null : ndarray, shape (permutations,)
        Under permuted labels.

    Returns
    -------
    float
        NaN if the statistic is undefined or there are no permutations.
    """
    if not len(null) or not math.isfinite(observed):
        return math.nan
    reached = ~(null < observed - _TIE * max(1.0, abs(observed)))
    return float((1 + reached.sum()) / (1 + len(null)))


def scored_units(target: Target, predictions: Predictions) -> NDArray[np.bool_]:
    """Return who has a label and a prediction.

    Returns
    -------
    ndarray of bool, shape (repeats, N)
    """
    known = np.isfinite(predictions.out_of_fold)
    return target.labelled & (known if known.ndim == 2 else known.all(axis=2))


def averaged(predictions: Predictions) -> NDArray[np.float64]:
    """Return out-of-fold predictions, mean over the repeats that have one.

    Returns
    -------
    ndarray, shape (N,) or (N, classes)
        NaN for units without any.
    """
    return mean_of_known(predictions.out_of_fold)


def averaged_training_mean(predictions: Predictions) -> NDArray[np.float64]:
    """Return the mean over repeats of what `Predictions.training_mean` holds, as `averaged`."""
    return mean_of_known(predictions.training_mean)


def residuals(target: Target, predictions: Predictions) -> NDArray[np.float64]:
    """Return how far averaged predictions are off.

    Returns
    -------
    ndarray, shape (N,)
        Label less prediction, in units of the target; for classes, 1 less the probability of the
        true class. NaN for units without a label or a prediction.
    """
    means = averaged(predictions)
    if target.is_regression:
        return target.values - means
    labels = np.nan_to_num(target.values).astype(int)
    of_true = np.take_along_axis(means, labels[:, None], axis=1)[:, 0]
    return np.where(target.labelled, 1 - of_true, np.nan)


def predicted_classes(
    probabilities: NDArray[np.float64], shares: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the class whose probability is the largest multiple of its share in training.

    Parameters
    ----------
    probabilities : ndarray, shape (N, classes)
        Rows with NaN have no prediction.
    shares : ndarray, shape (N, classes) or (classes,)
        Shares of the classes in training. A class that was not in training is not predicted.

    Returns
    -------
    ndarray of int, shape (N,)
        Index of the class; -1 without a prediction.
    """
    shares = np.broadcast_to(shares, probabilities.shape)
    trained = shares > 0
    ratios = np.where(trained, probabilities / np.where(trained, shares, 1), -1.0)
    best = ratios >= ratios.max(axis=1, keepdims=True) * (1 - _EQUAL)
    chosen = np.argmax(np.where(best, shares, -1), axis=1)
    return np.where(np.isfinite(probabilities).all(axis=1), chosen, -1)


def _resample(
    target: Target,
    predictions: Predictions,
    groups: NDArray[np.str_],
    n: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Return how often each unit is in each resample, (N, resamples)."""
    units = np.flatnonzero(scored_units(target, predictions).any(axis=0))
    own = np.unique(groups[units], return_inverse=True)[1]
    n_groups = own.max(initial=-1) + 1
    if n_groups < 2 or n < 1:
        return np.empty((len(groups), 0))
    members = np.zeros((n_groups, 1))
    if target.is_regression:
        members += 1
    else:
        labels = np.unique(target.values[units], return_inverse=True)[1]
        members = np.zeros((n_groups, labels.max() + 1))
        np.add.at(members, (own, labels), 1)
    counts = _draw(n_groups, n, rng)
    for _ in range(_REDRAWS):
        lacking = np.flatnonzero((counts @ members == 0).any(axis=1))
        if not len(lacking):
            break
        counts[lacking] = _draw(n_groups, len(lacking), rng)
    counts = counts[(counts @ members > 0).all(axis=1)]
    weights = np.zeros((len(groups), len(counts)))
    weights[units] = counts.T[own]
    return weights


def _draw(n_groups: int, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw groups with replacement, and return how often each was, (resamples, groups)."""
    drawn = rng.integers(n_groups, size=(n, n_groups))
    drawn += n_groups * np.arange(n)[:, None]
    return np.bincount(drawn.ravel(), minlength=n * n_groups).reshape(n, n_groups).astype(float)


def _score_weighted(
    target: Target, predictions: Predictions, weights: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """Return scores of units that count as often as weights, (N, B), say: (B,), mean of repeats."""
    scored = scored_units(target, predictions)
    found: list[Scores] = []
    for rows in np.unique(scored[scored.any(axis=1)], axis=0):  # most often all are the same
        repeats = np.flatnonzero((scored == rows).all(axis=1))
        labels, own = target.values[rows], weights[rows]
        guessed = predictions.out_of_fold[np.ix_(repeats, rows)]
        if target.is_regression:
            found.append(score_numbers(labels, guessed, own))
            continue
        shares = predictions.training_mean[np.ix_(repeats, rows)]
        pairs = zip(guessed, shares, strict=True)
        classes = np.array([predicted_classes(*pair) for pair in pairs])
        found.append(score_classes(labels.astype(int), classes, guessed, own))
    none = np.empty((0, weights.shape[1]))
    means = {
        name: mean_of_known(np.concatenate([none, *(scores[name] for scores in found)]))
        for name in metrics_of(target)
    }
    return _without_knowledge(means) if _is_training_mean(predictions) else means


def _without_knowledge(scores: dict[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    """Take out of the scores of the training mean what only says whom it leaves out."""
    values = dict.fromkeys(
        ("pearson", "spearman", "calibration_slope", "calibration_intercept"), math.nan
    )
    values["auc"] = 0.5
    return {
        name: np.where(np.isfinite(score), values[name], math.nan) if name in values else score
        for name, score in scores.items()
    }


def _is_training_mean(predictions: Predictions) -> bool:
    known = np.isfinite(predictions.out_of_fold)
    return np.allclose(
        predictions.out_of_fold[known], predictions.training_mean[known], rtol=_EQUAL, atol=0
    )
