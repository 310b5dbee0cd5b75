"""Whether one candidate predicts better than another, on the same folds and the same units.

The corrected resampled t-test of Nadeau & Bengio (2003, doi:10.1023/A:1024068626366) on the
differences of scores by fold, of all repeats together (Bouckaert & Frank 2004,
doi:10.1007/978-3-540-24775-3_3). Folds share most of their training data, so that their differences
are not independent and their mean is less certain than it looks: its variance is (1/J + n2/n1) s^2,
with J folds, n2 / n1 the units tested by those trained on, and s^2 the variance of differences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from bsym_bids.prediction.linear import area_under_curve
from bsym_bids.prediction.records import Folds, Predictions, Target
from bsym_bids.prediction.scores import primary_metric, scored_units

#: Differences whose spread is a smaller share of their size are the same.
_ROUNDING = 1e-9
_NO_UNITS = "no unit is predicted by both"
_ONE_CLASS = "in no fold are there two classes"


@dataclass(frozen=True)
class Comparison:
    """How much better candidate a is than candidate b.

    Attributes
    ----------
    a, b : str
        Keys of the candidates.
    metric : str
        ``mae`` (in units of the target) or ``auc``.
    score_a, score_b : float
        Means over folds: of those, and of the units, that both have.
    difference : float
        Positive if a is better: error of b less that of a, or area under the curve of a less that
        of b.
    low, high : float
        95 % interval of the difference.
    t, df, p : float
        Of the two-sided test.
    n_units : int
        Units that both predict.
    n_folds : int
        Folds, of all repeats, in which both could be scored.
    reason : str
        Why there is no interval and no p; else empty.
    """

    a: str
    b: str
    metric: str
    score_a: float = math.nan
    score_b: float = math.nan
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan
    t: float = math.nan
    df: float = math.nan
    p: float = math.nan
    n_units: int = 0
    n_folds: int = 0
    reason: str = ""

    @property
    def reversed(self) -> Comparison:
        """How much better b is than a."""
        return replace(
            self,
            a=self.b,
            b=self.a,
            score_a=self.score_b,
            score_b=self.score_a,
            difference=-self.difference,
            low=-self.high,
            high=-self.low,
            t=-self.t,
        )


def compare(
    target: Target, a: Predictions, b: Predictions, folds: Folds, level: float = 0.95
) -> Comparison:
    """Test whether two candidates predict equally well.

    Parameters
    ----------
    target : Target
        The true labels.
    a, b : Predictions
        Of the two candidates.
    folds : Folds
        In which they were predicted. Folds whose units are all of one class are left out.
    level : float
        Of confidence.

    Returns
    -------
    Comparison
        NaN, with the reason, where there is nothing to test.
    """
    return corrected_t_test(_empty(target, a, b), *_by_fold(target, a, b, folds), level)


def corrected_t_test(
    comparison: Comparison,
    scores: NDArray[np.float64],
    ratios: NDArray[np.float64],
    level: float = 0.95,
) -> Comparison:
    """Test differences of scores by fold.

    Parameters
    ----------
    comparison : Comparison
        The names; what follows is filled in.
    scores : ndarray, shape (J, 2)
        Of both candidates in each fold.
    ratios : ndarray, shape (J,)
        Units tested by units trained on; their mean counts.
    level : float
        Of confidence.

    Returns
    -------
    Comparison
    """
    n_folds = len(scores)
    if not n_folds:
        return replace(comparison, reason=_ONE_CLASS if comparison.n_units else _NO_UNITS)
    score_a, score_b = scores.mean(axis=0)
    sign = -1.0 if comparison.metric == "mae" else 1.0
    differences = sign * (scores[:, 0] - scores[:, 1])
    difference = float(differences.mean())
    comparison = replace(
        comparison,
        score_a=float(score_a),
        score_b=float(score_b),
        difference=difference,
        n_folds=n_folds,
    )
    if n_folds < 2:
        return replace(comparison, reason="a single fold has no spread")
    spread = differences.std(ddof=1)
    if spread <= _ROUNDING * np.abs(scores).max():
        return replace(comparison, reason="the difference is the same in all folds")
    error = float(spread * math.sqrt(1 / n_folds + ratios.mean()))
    df = n_folds - 1
    margin = float(student_t.ppf((1 + level) / 2, df)) * error
    return replace(
        comparison,
        low=difference - margin,
        high=difference + margin,
        t=difference / error,
        df=float(df),
        p=float(2 * student_t.sf(abs(difference) / error, df)),
    )


def _empty(target: Target, a: Predictions, b: Predictions) -> Comparison:
    """Return a comparison without numbers."""
    both = scored_units(target, a).any(axis=0) & scored_units(target, b).any(axis=0)
    return Comparison(a.candidate, b.candidate, primary_metric(target), n_units=int(both.sum()))


def _by_fold(
    target: Target, a: Predictions, b: Predictions, folds: Folds
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return scores, (J, 2), and units tested by units trained on, (J,), of folds with a score.

    Candidates train on whom they have features of. Of two, the smaller training set counts.
    """
    members_a, members_b = scored_units(target, a), scored_units(target, b)
    scores, ratios = [], []
    for repeat, assignment in enumerate(folds.assignment):
        both = members_a[repeat] & members_b[repeat]
        for fold in np.unique(assignment[both]):
            inside = assignment == fold
            tested = both & inside
            pair = [_score(target, found.out_of_fold[repeat], tested) for found in (a, b)]
            trained = min((own[repeat] & ~inside).sum() for own in (members_a, members_b))
            if np.isfinite(pair).all() and trained:
                scores.append(pair)
                ratios.append(tested.sum() / trained)
    return np.array(scores).reshape(-1, 2), np.array(ratios)


def _score(target: Target, predicted: NDArray[np.float64], units: NDArray[np.bool_]) -> float:
    """Return the mean absolute error or area under the curve; NaN if all are of one class.

    Of more than two classes: the mean of those of each class that is there against all others.
    """
    labels, own = target.values[units], predicted[units]
    if target.is_regression:
        return float(np.abs(own - labels).mean())
    there = np.unique(labels).astype(int)
    if len(there) < 2:
        return math.nan
    return float(area_under_curve(own[:, there], labels[:, None] == there).mean())
