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

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from bsym_bids.prediction.kernels import Kernel
from bsym_bids.prediction.nuisance import Confounds
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


def nested_ridge(
    regression: Regression,
    labels: NDArray[np.floating],
    *,
    outputs: int = 1,
) -> OutOfFold:
    """Predict every labelled unit by ridge regression on the other folds.

    Parameters
    ----------
    regression : Regression
        Features, confounds, folds and penalties.
    labels : ndarray, shape (N, columns)
        Each column is regressed by itself. The arithmetic after the inverses is in its precision:
        float32 will do for permutations.
    outputs : int
        So many columns in a row belong together (indicators of classes) and share their penalty.

    Returns
    -------
    OutOfFold
    """
    members = np.flatnonzero(regression.members)
    n_repeats, n_folds = regression.folds.n_repeats, regression.folds.n_folds
    columns = labels.shape[1]
    values = np.full((n_repeats, len(labels), columns), np.nan, labels.dtype)
    chosen = np.full((n_repeats, n_folds, columns // outputs), np.nan)
    best = np.full(chosen.shape, np.inf)
    for training, fits in by_matrix(regression):
        # Strongest penalty first, so that of equals it is the one that stays.
        for penalty in sorted(regression.penalties, reverse=True):
            deletion = _Deletion.of(regression, training, members, penalty, labels)
            for repeat, tested in fits.items():
                folds = regression.folds.assignment[repeat][members]
                for fold, error, predicted in deletion.nested(folds, tested, outputs):
                    better = error < best[repeat, fold] * (1 - _TINY)
                    best[repeat, fold][better] = error[better]
                    chosen[repeat, fold][better] = penalty
                    units = members[folds == fold]
                    where = np.ix_(units, np.flatnonzero(np.repeat(better, outputs)))
                    values[repeat][where] = predicted[:, np.repeat(better, outputs)]
    return OutOfFold(values, chosen)


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
                regression.confounds.design(training).shape[1],
            )
            found.setdefault(key, (training, {}))[1].setdefault(repeat, []).append(int(fold))
    yield from found.values()


@dataclass(frozen=True, eq=False)
class _Deletion:
    """Errors of units that are left out of one ridge regression.

    Attributes
    ----------
    projection : ndarray, shape (n, n)
        P of the module's formula.
    residuals : ndarray, shape (n, columns)
        P y.
    labels : ndarray, shape (n, columns)
        y.
    design : ndarray, shape (n, q)
        V.
    """

    projection: NDArray[np.floating]
    residuals: NDArray[np.floating]
    labels: NDArray[np.floating]
    design: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        regression: Regression,
        training: NDArray[np.bool_],
        members: NDArray[np.int64],
        penalty: float,
        labels: NDArray[np.floating],
    ) -> _Deletion:
        design = regression.confounds.design(training)[members]
        inner = regression.kernel.gram(training)[np.ix_(members, members)]
        projection = _projection(inner, design, penalty * regression.kernel.scale(training))
        own = labels[members]
        projection = projection.astype(own.dtype)
        return cls(projection, projection @ own, own, design)

    def nested(
        self, folds: NDArray[np.int64], tested: Sequence[int], outputs: int
    ) -> Iterator[tuple[int, NDArray[np.float64], NDArray[np.floating]]]:
        """Yield fold, mean squared inner error (columns // outputs,) and prediction of its units.

        Parameters
        ----------
        folds : ndarray of int, shape (n,)
            Fold of each member.
        tested : sequence of int
            The outer folds that are wanted.
        outputs : int
            Columns that share their penalty.
        """
        names = np.unique(folds)
        blocks = {int(name): np.flatnonzero(folds == name) for name in names}
        confounds = _OnConfounds(self.design, self.labels, blocks)
        for outer in tested:
            block = blocks[outer]
            inverse = np.linalg.inv(self.projection[np.ix_(block, block)])
            left_out = inverse @ self.residuals[block]
            total = np.zeros(self.labels.shape[1])
            # Schur complements: the blocks of both folds, with the outer one eliminated.
            others = self.residuals - self.projection[:, block] @ left_out
            for inner, own in blocks.items():
                if inner == outer:
                    continue
                across = self.projection[np.ix_(own, block)]
                schur = self.projection[np.ix_(own, own)] - across @ inverse @ across.T
                error = np.linalg.inv(schur) @ others[own]
                error += confounds.predicted(own, (outer, inner)).astype(error.dtype)
                total += np.einsum("ij,ij->j", error, error, dtype=np.float64)
            count = len(folds) - len(block)
            predicted = self.labels[block] - left_out
            predicted -= confounds.predicted(block, (outer,)).astype(predicted.dtype)
            shared = total.reshape(-1, outputs).sum(axis=1) / max(count * outputs, 1)
            yield outer, shared, predicted


class _OnConfounds:
    """Predictions by ordinary least squares from the confounds alone, less the training mean."""

    def __init__(
        self,
        design: NDArray[np.float64],
        labels: NDArray[np.floating],
        blocks: dict[int, NDArray[np.int64]],
    ) -> None:
        self._design = design
        self._inner = {name: design[block].T @ design[block] for name, block in blocks.items()}
        self._outer = {name: design[block].T @ labels[block] for name, block in blocks.items()}

    def predicted(self, units: NDArray[np.int64], left_out: tuple[int, ...]) -> NDArray[np.float64]:
        """Return (len(units), columns) for fits without some folds; 0 without confounds."""
        if self._design.shape[1] == 1:
            return np.zeros((1, 1))
        kept = [name for name in self._inner if name not in left_out]
        inner = np.sum([self._inner[name] for name in kept], axis=0)
        outer = np.sum([self._outer[name] for name in kept], axis=0)
        mean = outer[:1] / inner[0, 0]
        return self._design[units] @ np.linalg.lstsq(inner, outer, rcond=None)[0] - mean


def _projection(
    inner: NDArray[np.float64], design: NDArray[np.float64], penalty: float
) -> NDArray[np.float64]:
    """Return P of the module's formula."""
    solver = cho_factor(inner + penalty * np.eye(len(inner)), lower=True, overwrite_a=True)
    inverse = cho_solve(solver, np.eye(len(inner)), overwrite_b=True)
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
