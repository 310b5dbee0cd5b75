"""Confounds as columns that every unit has in each fold."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bsym_bids.prediction.kernels import Kernel


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

    def key(self, training: NDArray[np.bool_]) -> Hashable:
        """Return what decides `design`: nothing, unless values are to be imputed."""
        return None if np.isfinite(self.values).all() else training.tobytes()

    def design(self, training: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return (N, 1 + c): ones and the confounds, standardised.

        Missing values are the mean of the training units. Confounds that do not vary in training,
        or depend linearly on those before, are left out: they can't be regressed on.
        """
        columns = [np.ones(len(self.values))]
        for values in self.values.T:
            known = training & np.isfinite(values)
            if known.sum() < 2 or np.ptp(values[known]) == 0:
                continue
            filled = np.where(np.isfinite(values), values, values[known].mean())
            # Moved and scaled by all units: that changes numbers only, never a regression.
            spread = filled.std()
            columns.append((filled - filled.mean()) / spread)
            if np.linalg.matrix_rank(np.column_stack(columns)[training]) < len(columns):
                columns.pop()
        return np.column_stack(columns)


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
