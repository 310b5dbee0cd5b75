r"""Ridge regression of one outer fold, all penalties by one eigendecomposition.

With M = I - V V^+ (V: ones and confounds of the training units) and M K M = U D U',

    P = M U (D + lambda I)^-1 U' M

is P of `bsym_bids.prediction.ridge` for the training units. The errors of an inner fold j are
P_jj^-1 (P y)_j; the outer fold is predicted from (K_t - V_t V^+ K) P y, plus the training mean.
That is for folds with a matrix of their own, as where features are imputed in training. Folds that
share one are cheaper in `bsym_bids.prediction.left_out`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bsym_bids.prediction.left_out import OnConfounds, blocks_of, positive_inverse


class OneFold:
    """An outer fold and the others, which train, with the labels that are to be predicted.

    Parameters
    ----------
    inner : ndarray, shape (n, n)
        Inner products of the members.
    design : ndarray, shape (n, q)
        Ones and confounds.
    labels : sequence of ndarray, shape (n, columns)
        Sets of labels.
    folds : ndarray of int, shape (n,)
        Fold of each member.
    tested : int
        The outer fold.
    """

    def __init__(
        self,
        inner: NDArray[np.float64],
        design: NDArray[np.float64],
        labels: Sequence[NDArray[np.floating]],
        folds: NDArray[np.int64],
        tested: int,
    ) -> None:
        order = np.argsort(folds, kind="stable")
        training, test = order[folds[order] != tested], order[folds[order] == tested]
        self._tested = tested
        self._blocks = blocks_of(folds[training])
        self._means = [own[training].mean(axis=0) for own in labels]
        self._eigenvalues, vectors, test_vectors = _decomposed(inner, design, training, test)
        self._vectors = vectors
        # Fitted and predicted come from the same eigenvectors and the same labels: one product.
        stacked = np.vstack([vectors, test_vectors])
        self._stacked = [stacked.astype(own.dtype) for own in labels]
        self._rotated = [vectors.astype(own.dtype).T @ own[training] for own in labels]
        # Of all folds, so that the tested one can be among those that are left out.
        self._confounds = [
            OnConfounds(design[order], own[order], blocks_of(folds[order])) for own in labels
        ]

    def errors(
        self, penalty: float
    ) -> tuple[list[NDArray[np.float64]], list[NDArray[np.floating]]]:
        """Return inner errors and the predictions of the outer fold.

        Parameters
        ----------
        penalty : float
            In units of the matrix.

        Returns
        -------
        errors : list of ndarray, shape (columns,)
            Sum of squared errors in the inner folds, of each set of labels.
        predicted : list of ndarray, shape (m, columns)
            Of each set of labels.
        """
        weights = 1 / (self._eigenvalues + penalty)
        sums, predicted = [], []
        inverses = {}
        for name, block in self._blocks.items():
            root = self._vectors[block] * np.sqrt(weights)
            inverses[name] = positive_inverse(root @ root.T)
        for stacked, rotated, mean, confounds in zip(
            self._stacked, self._rotated, self._means, self._confounds, strict=True
        ):
            both = stacked @ (weights.astype(rotated.dtype)[:, None] * rotated)
            predicted.append(mean + both[len(self._vectors) :])
            total = np.zeros(rotated.shape[1])
            for name, block in self._blocks.items():
                error = inverses[name].astype(both.dtype) @ both[block]
                total += confounds.squared(error, name, self._tested)
            sums.append(total)
        return sums, predicted


def _decomposed(
    inner: NDArray[np.float64],
    design: NDArray[np.float64],
    training: NDArray[np.int64],
    test: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return D (t,), M U (t, t) and (K_t - V_t V^+ K) M U (m, t) of the module's formulas."""
    columns = design[training]
    fitting = np.linalg.pinv(columns)

    def without_confounds(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values - columns @ (fitting @ values)

    own = inner[np.ix_(training, training)]
    once = without_confounds(own)
    values, vectors = np.linalg.eigh(without_confounds(once.T))
    vectors = without_confounds(vectors)
    others = inner[np.ix_(test, training)] - design[test] @ (fitting @ own)
    return np.maximum(values, 0), vectors, others @ vectors
