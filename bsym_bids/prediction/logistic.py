r"""Nested cross-validation of kernel logistic regression, all fits of a repeat at once.

The coefficients lie in the span of the units, so that with K = Q L Q' the features may be replaced
by Z = Q L^1/2. The loss of any subset of units, features residualised or not, has a Hessian of at
most L/4 + lambda (L/2 + lambda for the softmax of several classes; Böhning & Lindsay 1988, Ann.
Inst. Stat. Math. 40:641), which is diagonal: one eigendecomposition gives the step of the
gradient descent of every fold and penalty. Descent is accelerated (Nesterov 1983) and restarted
when the gradient says so (O'Donoghue & Candès 2015).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_softmax, softmax

from bsym_bids.pool import Workers
from bsym_bids.prediction.ridge import OutOfFold, Regression, by_matrix

#: Penalties, as multiples of `Kernel.scale`: 1/C of scikit-learn.
PENALTIES = tuple(float(10.0**power) for power in range(-2, 5))
#: The largest preconditioned gradient at which a fit has converged: of those that only choose a
#: penalty, and of those that predict.
_ROUGH, _FINE = 1e-6, 1e-9
_MOST_STEPS = 20_000


def nested_logistic(
    regression: Regression,
    classes: NDArray[np.float64],
    n_classes: int,
    workers: Workers | None = None,
) -> OutOfFold:
    """Predict the classes of every labelled unit by logistic regression on the other folds.

    The penalty of a fold is chosen by the log loss in the other folds of its repeat, each predicted
    without both.

    Parameters
    ----------
    regression : Regression
        Features, confounds, folds and penalties.
    classes : ndarray, shape (N,)
        Index of the class; NaN where it is not known.
    n_classes : int
        How many there are.
    workers : Workers, optional
        Processes that share the work; without them it is done here.

    Returns
    -------
    OutOfFold
        Probabilities, (repeats, N, n_classes).
    """
    members = np.flatnonzero(regression.members)
    n_repeats, n_folds = regression.folds.n_repeats, regression.folds.n_folds
    values = np.full((n_repeats, len(classes), n_classes), np.nan)
    chosen = np.full((n_repeats, n_folds, 1), np.nan)
    tasks = _tasks(regression, members, classes, n_classes)
    done = workers.stream(_nested, tasks) if workers else map(_nested, tasks)
    for repeat, results in done:
        folds = regression.folds.assignment[repeat][members]
        for fold, penalty, predicted in results:
            chosen[repeat, fold] = penalty
            values[repeat, members[folds == fold]] = predicted
    return OutOfFold(values, chosen)


@dataclass(frozen=True, eq=False)
class _Space:
    """Members as points, whose inner products are those of the features.

    Attributes
    ----------
    points : ndarray, shape (n, r)
        Z of the module's text.
    bound : ndarray, shape (r,)
        Their eigenvalues L.
    design : ndarray, shape (n, q)
        Ones and confounds.
    labels : ndarray, shape (n, m)
        0 or 1; m is 1 for two classes.
    scale : float
        What penalties are multiples of.
    """

    points: NDArray[np.float64]
    bound: NDArray[np.float64]
    design: NDArray[np.float64]
    labels: NDArray[np.float64]
    scale: float

    @classmethod
    def of(
        cls,
        regression: Regression,
        training: NDArray[np.bool_],
        members: NDArray[np.int64],
        classes: NDArray[np.float64],
        n_classes: int,
    ) -> _Space:
        inner = regression.kernel.gram(training)[np.ix_(members, members)]
        # The intercept takes an offset up; without it, steps are larger.
        inner = inner - inner.mean(axis=0) - inner.mean(axis=1, keepdims=True) + inner.mean()
        points, bound = points_of(inner)
        design = regression.confounds.design(training)[members]
        labels = indicators(classes[members], n_classes)
        return cls(points, bound, design, labels, regression.kernel.scale(training))


def points_of(inner: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return points (n, r) with given inner products (n, n), and the eigenvalues (r,)."""
    values, vectors = np.linalg.eigh(inner)
    kept = values > values[-1] * len(values) * np.finfo(float).eps
    return vectors[:, kept] * np.sqrt(values[kept]), values[kept]


def indicators(classes: NDArray[np.float64], n_classes: int) -> NDArray[np.float64]:
    """Return which class each unit is of, (n, n_classes); of two classes the second alone."""
    every = (classes[:, None] == np.arange(n_classes)).astype(np.float64)
    return every[:, 1:] if n_classes == 2 else every


def probabilities(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probability of each class (..., classes) from logits (..., m)."""
    if logits.shape[-1] > 1:
        return softmax(logits, axis=-1)
    second = expit(logits)
    return np.concatenate([1 - second, second], axis=-1)


def log_loss(logits: NDArray[np.float64], labels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return minus the log-likelihood of labels (..., m) given logits (..., m), shape (...)."""
    if logits.shape[-1] > 1:
        return -(labels * log_softmax(logits, axis=-1)).sum(axis=-1)
    return (np.logaddexp(0, logits) - labels * logits)[..., 0]


@dataclass(frozen=True, eq=False)
class _Task:
    """Folds of one repeat that share their matrix.

    Attributes
    ----------
    space : _Space
        The members.
    repeat : int
    folds : ndarray of int, shape (n,)
        Fold of each member.
    tested : sequence of int
        The outer folds.
    penalties : sequence of float
        To choose from.
    """

    space: _Space
    repeat: int
    folds: NDArray[np.int64]
    tested: Sequence[int]
    penalties: Sequence[float]


def _tasks(
    regression: Regression,
    members: NDArray[np.int64],
    classes: NDArray[np.float64],
    n_classes: int,
) -> Iterator[_Task]:
    """Yield what is to be done, by matrix and repeat."""
    for training, fits in by_matrix(regression):
        space = _Space.of(regression, training, members, classes, n_classes)
        for repeat, tested in fits.items():
            folds = regression.folds.assignment[repeat][members]
            yield _Task(space, repeat, folds, tested, regression.penalties)


def _nested(task: _Task) -> tuple[int, list[tuple[int, float, NDArray[np.float64]]]]:
    """Return the repeat; and fold, penalty and probabilities of its units by outer fold."""
    space, folds, tested, penalties = task.space, task.folds, task.tested, task.penalties
    names = [int(name) for name in np.unique(folds)]
    pairs = sorted(
        {(min(i, j), max(i, j)) for i, j in product(tested, names) if i != j},
    )
    fits = [(pair, penalty) for pair in pairs for penalty in penalties]
    kept = np.stack([~np.isin(folds, pair) for pair, _ in fits], axis=1)
    logits = fit_many(
        space.points,
        space.bound,
        space.design,
        space.labels,
        kept,
        np.array([penalty * space.scale for _, penalty in fits]),
        tolerance=_ROUGH,
    ).logits
    losses = log_loss(logits, space.labels[:, None])
    chosen = [_choose(fold, fits, folds, losses) for fold in tested]
    outer = np.stack([folds != fold for fold in tested], axis=1)
    absolute = np.array(chosen) * space.scale
    final = fit_many(
        space.points,
        space.bound,
        space.design,
        space.labels,
        outer,
        absolute,
        tolerance=_FINE,
    ).logits
    return task.repeat, [
        (fold, penalty, probabilities(final[folds == fold, column]))
        for column, (fold, penalty) in enumerate(zip(tested, chosen, strict=True))
    ]


def _choose(
    fold: int,
    fits: Sequence[tuple[tuple[int, int], float]],
    folds: NDArray[np.int64],
    losses: NDArray[np.float64],
) -> float:
    """Return the penalty with the smallest inner loss; of equals, the strongest."""
    total: dict[float, float] = {}
    for column, (pair, penalty) in enumerate(fits):
        if fold in pair:
            inner = pair[0] if pair[1] == fold else pair[1]
            total[penalty] = total.get(penalty, 0.0) + losses[folds == inner, column].sum()
    return min(sorted(total, reverse=True), key=lambda penalty: total[penalty])


@dataclass(frozen=True, eq=False)
class Fits:
    """Several logistic regressions of the same units.

    Attributes
    ----------
    logits : ndarray, shape (n, fits, m)
        Of all units, those left out included.
    weights : ndarray, shape (r, fits, m)
        Of the points, less their regression on the confounds.
    intercepts : ndarray, shape (fits, m)
        Logits at the training mean.
    """

    logits: NDArray[np.float64]
    weights: NDArray[np.float64]
    intercepts: NDArray[np.float64]


def fit_many(
    points: NDArray[np.float64],
    bound: NDArray[np.float64],
    design: NDArray[np.float64],
    labels: NDArray[np.float64],
    kept: NDArray[np.bool_],
    penalties: NDArray[np.float64],
    *,
    tolerance: float = _FINE,
) -> Fits:
    """Fit logistic regressions to several subsets of units, each with its penalty.

    Parameters
    ----------
    points : ndarray, shape (n, r)
        Features, orthogonal to each other.
    bound : ndarray, shape (r,)
        Their sums of squares.
    design : ndarray, shape (n, q)
        Ones and confounds; features are residualised on them in each subset.
    labels : ndarray, shape (n, m)
        As `indicators` returns them.
    kept : ndarray of bool, shape (n, fits)
        Units that each fit may see.
    penalties : ndarray, shape (fits,)
        Of half the sum of squared weights: 1/C of scikit-learn.
    tolerance : float
        The largest gradient, each in units of its bound, at which a fit has converged.

    Returns
    -------
    Fits
    """
    problem = _Problem.of(points, design, labels, kept)
    share = 0.25 if labels.shape[1] == 1 else 0.5
    steps = 1 / (share * bound[:, None] + penalties)
    starts = 1 / (share * kept.sum(axis=0))
    n_fits = kept.shape[1]
    weights = np.zeros((points.shape[1], n_fits, labels.shape[1]))
    intercepts = np.zeros((n_fits, labels.shape[1]))
    active = np.arange(n_fits)
    ahead, ahead_0 = weights.copy(), intercepts.copy()
    momentum = np.ones(n_fits)
    for _ in range(_MOST_STEPS):
        w, w_0, old = ahead[:, active], ahead_0[active], weights[:, active]
        slope, slope_0 = problem.gradient(active, w, w_0)
        slope += penalties[active][:, None] * w
        move = steps[:, active, None] * slope
        move_0 = starts[active, None] * slope_0
        new, new_0 = w - move, w_0 - move_0
        change, change_0 = new - old, new_0 - intercepts[active]
        uphill = np.einsum("rfm,rfm->f", slope, change) + (slope_0 * change_0).sum(axis=1) > 0
        before = np.where(uphill, 1.0, momentum[active])
        after = (1 + np.sqrt(1 + 4 * before**2)) / 2
        speed = np.where(uphill, 0.0, (before - 1) / after)[:, None]
        weights[:, active], intercepts[active] = new, new_0
        ahead[:, active] = new + speed * change
        ahead_0[active] = new_0 + speed * change_0
        momentum[active] = after
        # In logits: a step in a direction of small spread changes none of them.
        size = np.abs(move * np.sqrt(bound / len(points))[:, None, None]).max(axis=(0, 2))
        done = np.maximum(size, np.abs(move_0).max(axis=1)) < tolerance
        active = active[~done]
        if not active.size:
            break
    return Fits(problem.logits(np.arange(n_fits), weights, intercepts), weights, intercepts)


@dataclass(frozen=True, eq=False)
class _Problem:
    """Units, and what each fit may see of them.

    Attributes
    ----------
    points, design, labels, kept
        As in `fit_many`.
    subsets : ndarray of int, shape (fits,)
        Which fits see the same units.
    on_confounds : ndarray, shape (subsets, q, r)
        Coefficients of the points on the confounds in each subset.
    """

    points: NDArray[np.float64]
    design: NDArray[np.float64]
    labels: NDArray[np.float64]
    kept: NDArray[np.bool_]
    subsets: NDArray[np.int64]
    on_confounds: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        points: NDArray[np.float64],
        design: NDArray[np.float64],
        labels: NDArray[np.float64],
        kept: NDArray[np.bool_],
    ) -> _Problem:
        distinct, subsets = np.unique(kept, axis=1, return_inverse=True)
        coefficients = np.stack(
            [np.linalg.lstsq(design[used], points[used])[0] for used in distinct.T]
        )
        return cls(points, design, labels, kept, subsets.ravel(), coefficients)

    def logits(
        self, fits: NDArray[np.int64], weights: NDArray[np.float64], intercepts: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return (n, fits, m)."""
        r, n_fits, m = weights.shape
        total = (self.points @ weights.reshape(r, -1)).reshape(-1, n_fits, m)
        confounded = np.empty((self.design.shape[1], n_fits, m))
        for subset in np.unique(self.subsets[fits]):
            own = self.subsets[fits] == subset
            confounded[:, own] = np.tensordot(self.on_confounds[subset], weights[:, own], 1)
        return total - np.tensordot(self.design, confounded, 1) + intercepts

    def gradient(
        self, fits: NDArray[np.int64], weights: NDArray[np.float64], intercepts: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the gradient of the loss by weights (r, fits, m) and intercepts (fits, m)."""
        logits = self.logits(fits, weights, intercepts)
        expected = expit(logits) if logits.shape[2] == 1 else softmax(logits, axis=2)
        error = (expected - self.labels[:, None]) * self.kept[:, fits, None]
        n, n_fits, m = error.shape
        slope = (self.points.T @ error.reshape(n, -1)).reshape(-1, n_fits, m)
        on_design = np.tensordot(self.design.T, error, 1)
        for subset in np.unique(self.subsets[fits]):
            own = self.subsets[fits] == subset
            slope[:, own] -= np.tensordot(self.on_confounds[subset].T, on_design[:, own], 1)
        return slope, error.sum(axis=0)
