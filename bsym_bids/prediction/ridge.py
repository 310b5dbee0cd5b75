r"""Nested cross-validation of kernel ridge regression, exact and without fitting any fold.

With S = (K + lambda I)^-1, unpenalised columns V (ones, confounds) and
P = S - S V (V' S V)^-1 V' S, the errors of units b when they are left out of the fit are

    y_b - \hat y_b = P_bb^-1 (P y)_b

(the block form of the leave-one-out formula of Golub, Heath & Wahba 1979, Technometrics 21:215).
One inverse per penalty therefore serves all folds of all repeats, and all permutations of the
labels as further columns of y. The inner folds, by which the penalty is chosen for outer fold i,
are the other folds j of the same repeat; their errors are those of j when i and j are left out.

Confound regression of the features in training, then ridge, then prediction from features that
the same regression was taken out of, has the same coefficients as ridge with the confounds as
unpenalised columns (Frisch & Waugh); its prediction is that of the latter, less what a
regression on the confounds alone predicts, plus the training mean. Hence it needs no other matrix.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from bsym_bids.pool import Workers
from bsym_bids.prediction.kernels import Kernel
from bsym_bids.prediction.left_out import Fitted, Repeat, positive_inverse
from bsym_bids.prediction.nuisance import Confounds
from bsym_bids.prediction.one_fold import OneFold
from bsym_bids.prediction.records import Folds

#: Penalties, as multiples of the mean squared distance of units from their mean (`Kernel.scale`).
PENALTIES = tuple(float(10.0**power) for power in range(-3, 5))
#: An improvement of the inner error below this share is none: the stronger penalty is taken.
_TINY = 1e-9


@dataclass(frozen=True, eq=False)
class Regression:
    """What is regressed on what.

    Attributes
    ----------
    kernel : Kernel
        The features of N units.
    confounds : Confounds
        What is regressed out of the features in training.
    folds : Folds
        Of all N units.
    penalties : sequence of float
        To choose from, as multiples of `Kernel.scale`.
    """

    kernel: Kernel
    confounds: Confounds
    folds: Folds
    penalties: Sequence[float] = PENALTIES

    @property
    def members(self) -> NDArray[np.bool_]:
        """(N,), units that are labelled and have the features."""
        return self.kernel.present & (self.folds.assignment[0] >= 0)


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """Out-of-fold predictions.

    Attributes
    ----------
    values : ndarray, shape (repeats, N, columns)
        NaN for units that are not `Regression.members`.
    penalties : ndarray, shape (repeats, folds, columns // outputs)
        The penalty that was chosen, as a multiple of the scale; NaN where a fold is empty.
    """

    values: NDArray[np.floating]
    penalties: NDArray[np.float64]


def nested_ridges(
    regression: Regression,
    labels: Sequence[NDArray[np.floating]],
    *,
    outputs: int = 1,
    workers: Workers | None = None,
) -> list[OutOfFold]:
    """Predict every labelled unit by ridge regression on the other folds.

    Parameters
    ----------
    regression : Regression
        Features, confounds, folds and penalties.
    labels : sequence of ndarray, shape (N, columns)
        Sets of labels; each column is regressed by itself. The arithmetic after the inverses is in
        the precision of the set: float32 will do for permutations.
    outputs : int
        So many columns in a row belong together (indicators of classes) and share their penalty.
    workers : Workers, optional
        Processes that share the work; without them it is done here.

    Returns
    -------
    list of OutOfFold
        One for each set.
    """
    members = np.flatnonzero(regression.members)
    own = [columns[members] for columns in labels]
    folds = regression.folds
    found = [_empty(folds, columns, outputs) for columns in labels]
    searches = _searches(regression, members, own, outputs, workers.count if workers else 1)
    done = workers.stream(search, searches) if workers else map(search, searches)
    for choices in done:
        for (repeat, fold), choice in choices.items():
            units = members[folds.assignment[repeat][members] == fold]
            for result, best in zip(found, choice, strict=True):
                result.values[repeat, units] = best.predicted
                result.penalties[repeat, fold] = best.penalties
    return found


def _empty(folds: Folds, labels: NDArray[np.floating], outputs: int) -> OutOfFold:
    """Return predictions of labels (N, columns) that are not there yet."""
    shape = (folds.n_repeats, folds.n_folds, labels.shape[1] // outputs)
    values = np.full((folds.n_repeats, *labels.shape), np.nan, labels.dtype)
    return OutOfFold(values, np.full(shape, np.nan))


@dataclass(frozen=True, eq=False)
class Search:
    """The choice of penalties for folds that share one matrix.

    Attributes
    ----------
    inner : ndarray, shape (n, n)
        Inner products of the members.
    scale : float
        What penalties are multiples of.
    penalties : sequence of float
    design : ndarray, shape (n, 1 + c)
        Ones and confounds.
    labels : sequence of ndarray, shape (n, columns)
        Sets of labels.
    folds : mapping of int to ndarray, shape (n,)
        Fold of each member, by repeat.
    tested : mapping of int to sequence of int
        The outer folds, by repeat.
    outputs : int
        Columns that share their penalty.
    """

    inner: NDArray[np.float64]
    scale: float
    penalties: Sequence[float]
    design: NDArray[np.float64]
    labels: Sequence[NDArray[np.floating]]
    folds: Mapping[int, NDArray[np.int64]]
    tested: Mapping[int, Sequence[int]]
    outputs: int


def _searches(
    regression: Regression,
    members: NDArray[np.int64],
    labels: Sequence[NDArray[np.floating]],
    outputs: int,
    n_shares: int,
) -> Iterator[Search]:
    """Yield what is to be done; repeats of one matrix are shared out."""
    for training, fits in by_matrix(regression):
        inner = regression.kernel.gram(training)[np.ix_(members, members)]
        design = regression.confounds.design(training)[members]
        for share in range(min(n_shares, len(fits))):
            repeats = list(fits)[share::n_shares]
            yield Search(
                inner,
                regression.kernel.scale(training),
                regression.penalties,
                design,
                labels,
                {repeat: regression.folds.assignment[repeat][members] for repeat in repeats},
                {repeat: fits[repeat] for repeat in repeats},
                outputs,
            )


def search(task: Search) -> dict[tuple[int, int], list[Best]]:
    """Return, by repeat and outer fold, what is best for each set of labels."""
    outer = [(repeat, fold) for repeat, tested in task.tested.items() for fold in tested]
    return {outer[0]: _search_one(task, *outer[0])} if len(outer) == 1 else _search_all(task)


def _search_one(task: Search, repeat: int, fold: int) -> list[Best]:
    """Return what is best for each set of labels in the one outer fold of a matrix."""
    folds = task.folds[repeat]
    regressed = OneFold(task.inner, task.design, task.labels, folds, fold)
    found = [Best(y[folds == fold], task.outputs) for y in task.labels]
    for penalty in sorted(task.penalties, reverse=True):
        for best, error, values in zip(found, *regressed.errors(penalty * task.scale), strict=True):
            best.improve(error, values, penalty)
    return found


def _search_all(task: Search) -> dict[tuple[int, int], list[Best]]:
    """Return the same for outer folds that share a matrix."""
    repeats = {
        repeat: Repeat(folds, task.tested[repeat], task.design, task.labels)
        for repeat, folds in task.folds.items()
    }
    found: dict[tuple[int, int], list[Best]] = {
        (repeat, fold): [Best(y, task.outputs) for y in dealt.labels_of(fold)]
        for repeat, dealt in repeats.items()
        for fold in dealt.tested
    }
    # Strongest penalty first, so that of equals it is the one that stays.
    for penalty in sorted(task.penalties, reverse=True):
        projection = _projection(task.inner, task.design, penalty * task.scale)
        fitted = Fitted(projection, [projection.astype(y.dtype) @ y for y in task.labels])
        for repeat, dealt in repeats.items():
            for fold, errors, predicted in dealt.errors(fitted):
                for best, error, values in zip(found[repeat, fold], errors, predicted, strict=True):
                    best.improve(error, values, penalty)
    return found


class Best:
    """Predictions of one fold by the penalty with the least inner error, so far.

    Parameters
    ----------
    labels : ndarray, shape (m, columns)
        Of the fold.
    outputs : int
        Columns that share their penalty.

    Attributes
    ----------
    predicted : ndarray, shape (m, columns)
    penalties : ndarray, shape (columns // outputs,)
    """

    def __init__(self, labels: NDArray[np.floating], outputs: int) -> None:
        self.predicted = np.full(labels.shape, np.nan, labels.dtype)
        self.penalties = np.full(labels.shape[1] // outputs, np.nan)
        self._errors = np.full(self.penalties.shape, np.inf)
        self._outputs = outputs

    def improve(
        self, errors: NDArray[np.float64], predicted: NDArray[np.floating], penalty: float
    ) -> None:
        """Keep predictions (m, columns) of the columns whose inner error (columns,) is less."""
        shared = errors.reshape(-1, self._outputs).sum(axis=1)
        better = shared < self._errors * (1 - _TINY)
        self._errors[better] = shared[better]
        self.penalties[better] = penalty
        np.copyto(self.predicted, predicted, where=np.repeat(better, self._outputs))


def by_matrix(
    regression: Regression,
) -> Iterator[tuple[NDArray[np.bool_], dict[int, list[int]]]]:
    """Yield training units (N,), and folds by repeat, that share kernel, scale and confounds."""
    found: dict[Hashable, tuple[NDArray[np.bool_], dict[int, list[int]]]] = {}
    members, assignment = regression.members, regression.folds.assignment
    for repeat, folds in enumerate(assignment):
        for fold in np.unique(folds[members]):
            training = members & (folds != fold)
            key = (
                regression.kernel.key(training),
                regression.kernel.scale(training),
                regression.confounds.key(training),
            )
            found.setdefault(key, (training, {}))[1].setdefault(repeat, []).append(int(fold))
    yield from found.values()


def _projection(
    inner: NDArray[np.float64], design: NDArray[np.float64], penalty: float
) -> NDArray[np.float64]:
    """Return P of the module's formula."""
    inverse = positive_inverse(inner + penalty * np.eye(len(inner)))
    weighted = inverse @ design
    return inverse - weighted @ np.linalg.solve(design.T @ weighted, weighted.T)


@dataclass(frozen=True, eq=False)
class RidgeFit:
    """A ridge regression on all training units.

    Attributes
    ----------
    dual : ndarray, shape (N, columns)
        Weight of each unit's features; 0 for units that did not train.
    intercept : ndarray, shape (columns,)
        Mean of the labels in training.
    penalty : float
        In units of the kernel.
    """

    dual: NDArray[np.float64]
    intercept: NDArray[np.float64]
    penalty: float


def fit_ridge(
    regression: Regression,
    training: NDArray[np.bool_],
    labels: NDArray[np.float64],
    penalty: float,
) -> RidgeFit:
    """Fit ridge regression to training units.

    Parameters
    ----------
    regression : Regression
        Features and confounds; its folds are not used.
    training : ndarray of bool, shape (N,)
        Who trains.
    labels : ndarray, shape (N, columns)
        Of training units; others are not looked at.
    penalty : float
        As a multiple of `Kernel.scale`.

    Returns
    -------
    RidgeFit
        Its `dual` is for features less their regression on the confounds in training: predictions
        are `residual_gram` times `dual`, plus `intercept`.
    """
    used = np.flatnonzero(training & regression.kernel.present)
    absolute = penalty * regression.kernel.scale(training)
    inner = residual_gram(regression, training)[np.ix_(used, used)]
    mean = labels[used].mean(axis=0)
    solver = cho_factor(inner + absolute * np.eye(len(used)), lower=True, overwrite_a=True)
    dual = np.zeros(labels.shape)
    dual[used] = cho_solve(solver, labels[used] - mean)
    return RidgeFit(dual, mean, absolute)


def residual_gram(regression: Regression, training: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return inner products (N, N) of features after confound regression in training.

    With A = I - V V_t^+ (V_t^+ acting on training units) it is A K A'; without confounds this is
    centring on the training mean. Rows of absent units are of no meaning.
    """
    inner = regression.kernel.gram(training)
    used = training & regression.kernel.present
    design = regression.confounds.design(used)
    fitting = np.zeros(design.T.shape)
    fitting[:, used] = np.linalg.pinv(design[used])
    taken = design @ (fitting @ inner)
    return inner - taken - taken.T + design @ (fitting @ inner @ fitting.T) @ design.T
