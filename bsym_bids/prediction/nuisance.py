"""Confounds as columns that every unit has in each fold."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from bsym_bids.prediction.kernels import Kernel
from bsym_bids.prediction.records import Folds

#: Smallest eigenvalue of columns of unit length that counts: below, one depends on the others.
_SINGULAR = 1e-10


@dataclass(frozen=True, eq=False)
class Confounds:
    """What may carry a label without being of interest: motion, head size, sex, age.

    Attributes
    ----------
    names : sequence of str
        What the columns are.
    values : ndarray, shape (N, C)
        Numbers; NaN where they are not known.
    """

    names: Sequence[str]
    values: NDArray[np.float64]
    _designs: dict[bytes, tuple[Hashable, NDArray[np.float64]]] = field(
        default_factory=dict, init=False, repr=False
    )

    def key(self, training: NDArray[np.bool_]) -> Hashable:
        """Return what decides `design`: which columns it has, and who trains if any is imputed."""
        return self._designed(training)[0]

    def design(self, training: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return (N, 1 + c): ones and the confounds, standardised.

        Missing values are the mean of the training units. Confounds that do not vary in training,
        or depend linearly on those before, are left out: they can't be regressed on.
        """
        return self._designed(training)[1]

    def estimable(self, folds: Sequence[Folds], members: NDArray[np.bool_]) -> Confounds:
        """Return those confounds that can be regressed on whichever two folds are left out.

        A level of a category that one fold has alone says nothing about others: what is regressed
        on it in training is nothing, or noise.

        Parameters
        ----------
        folds : sequence of Folds
            All that predictions are made in.
        members : ndarray of bool, shape (N,)
            Who has a label and the features.
        """
        columns = np.column_stack([np.ones(len(self.values)), self._standardised(members)])
        kept = [0]
        inner = np.stack(list(_inner_products_left(columns, folds, members)))
        for column in range(1, columns.shape[1]):
            tried = [*kept, column]
            some = inner[:, tried][:, :, tried]
            length = np.sqrt(np.diagonal(some, axis1=1, axis2=2))
            if (length == 0).any():
                continue
            some = some / (length[:, :, None] * length[:, None, :])
            if np.linalg.eigvalsh(some).min() > _SINGULAR:
                kept = tried
        if len(kept) == columns.shape[1]:
            return self
        chosen = [column - 1 for column in kept[1:]]
        return Confounds(tuple(self.names[i] for i in chosen), self.values[:, chosen])

    def _standardised(self, members: NDArray[np.bool_]) -> NDArray[np.float64]:
        known = np.isfinite(self.values[members])
        count = np.maximum(known.sum(axis=0), 1)
        mean = np.where(known, self.values[members], 0).sum(axis=0) / count
        moved = np.where(np.isfinite(self.values), self.values - mean, 0)
        spread = moved[members].std(axis=0)
        return moved / np.where(spread > 0, spread, 1)

    def _designed(self, training: NDArray[np.bool_]) -> tuple[Hashable, NDArray[np.float64]]:
        who = training.tobytes()
        if who not in self._designs:
            self._designs[who] = self._design(training)
        return self._designs[who]

    def _design(self, training: NDArray[np.bool_]) -> tuple[Hashable, NDArray[np.float64]]:
        columns, kept = [np.ones(len(self.values))], []
        for number, values in enumerate(self.values.T):
            known = training & np.isfinite(values)
            if known.sum() < 2 or np.ptp(values[known]) == 0:
                continue
            filled = np.where(np.isfinite(values), values, values[known].mean())
            # Moved and scaled by all units: that changes numbers only, never a regression.
            spread = filled.std()
            columns.append((filled - filled.mean()) / spread)
            if np.linalg.matrix_rank(np.column_stack(columns)[training]) < len(columns):
                columns.pop()
            else:
                kept.append(number)
        who = None if np.isfinite(self.values).all() else training.tobytes()
        return (tuple(kept), who), np.column_stack(columns)


def _inner_products_left(
    columns: NDArray[np.float64], folds: Sequence[Folds], members: NDArray[np.bool_]
) -> Iterator[NDArray[np.float64]]:
    """Yield inner products (C, C) of columns (N, C) over who is left without any two folds."""
    for assignment in (one for dealt in folds for one in dealt.assignment):
        own = assignment[members]
        names = np.unique(own)
        by_fold = {n: columns[members][own == n].T @ columns[members][own == n] for n in names}
        pairs = combinations(names, 2) if len(names) > 2 else [()]
        for pair in pairs:
            yield np.sum([by_fold[name] for name in names if name not in pair], axis=0)


def no_confounds(n_units: int) -> Confounds:
    """Return confounds without any column."""
    return Confounds((), np.empty((n_units, 0)))


class ConfoundKernel(Kernel):
    """The confounds as features, each scaled by its spread in training, to a power of 2.

    Parameters
    ----------
    confounds : Confounds
        Missing values are the mean in training; everyone is present.
    """

    def __init__(self, confounds: Confounds) -> None:
        self.present = np.ones(len(confounds.values), bool)
        self._confounds = confounds

    def key(self, training: NDArray[np.bool_]) -> Hashable:
        """Return what decides the matrix."""
        return self._confounds.key(training), self._scales(training).tobytes()

    def gram(self, training: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the (N, N) inner products, not centred, as training units (N,) prescribe."""
        columns = self._confounds.design(training)[:, 1:] / self._scales(training)
        return columns @ columns.T

    def _scales(self, training: NDArray[np.bool_]) -> NDArray[np.float64]:
        spread = self._confounds.design(training)[training, 1:].std(axis=0)
        return 2.0 ** np.round(np.log2(spread))
