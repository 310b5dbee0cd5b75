r"""Errors of units that are left out of a ridge regression, two folds at a time.

With P of `bsym_bids.prediction.ridge`, r = P y and the blocks i, j of two folds, the errors when
i alone is left out are a_i = P_ii^-1 r_i, and when both are, by block elimination,

    M = P_ii^-1 P_ij,   S = P_jj - P_ji M,   e_j = S^-1 (r_j - M' r_i),   e_i = a_i - M e_j,

so that one inverse of a pair serves the inner errors of i when j is tested, and of j when i is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

Block = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Fitted:
    """A ridge regression of several sets of labels on all members.

    Attributes
    ----------
    projection : ndarray of float64, shape (n, n)
        P.
    residuals : sequence of ndarray, shape (n, columns)
        P y of each set of labels, in its precision.
    """

    projection: NDArray[np.float64]
    residuals: Sequence[NDArray[np.floating]]


class Repeat:
    """One dealing of n members to folds, with the labels that are to be predicted.

    Parameters
    ----------
    folds : ndarray of int, shape (n,)
        Fold of each member.
    tested : sequence of int
        The outer folds that are wanted.
    design : ndarray, shape (n, q)
        Ones and confounds.
    labels : sequence of ndarray, shape (n, columns)
        Sets of labels.
    """

    def __init__(
        self,
        folds: NDArray[np.int64],
        tested: Sequence[int],
        design: NDArray[np.float64],
        labels: Sequence[NDArray[np.floating]],
    ) -> None:
        self.blocks: dict[int, Block] = {
            int(name): np.flatnonzero(folds == name) for name in np.unique(folds)
        }
        self.tested = tuple(tested)
        self._labels = labels
        self._confounds = [_OnConfounds(design, own, self.blocks) for own in labels]

    @cached_property
    def _pairs(self) -> list[tuple[int, int]]:
        """Pairs of folds, the first of them tested."""
        names = list(self.blocks)
        pairs = [(i, j) for at, i in enumerate(names) for j in names[at + 1 :]]
        ordered = [(i, j) if i in self.tested else (j, i) for i, j in pairs]
        return [(i, j) for i, j in ordered if i in self.tested]

    def errors(
        self, fitted: Fitted
    ) -> Iterator[tuple[int, list[NDArray[np.float64]], list[NDArray[np.floating]]]]:
        """Yield each tested fold, its inner errors, and the predictions of its members.

        Parameters
        ----------
        fitted : Fitted
            One penalty.

        Yields
        ------
        fold : int
        errors : list of ndarray, shape (columns,)
            Sum of squared errors in the other folds, of each set of labels.
        predicted : list of ndarray, shape (len(blocks[fold]), columns)
            Of each set of labels.
        """
        sums = {name: [np.zeros(own.shape[1]) for own in self._labels] for name in self.tested}
        inverses = {name: self._inverse(fitted, name) for name in self.tested}
        outer = {
            name: [
                inverses[name].astype(own.dtype) @ own[self.blocks[name]]
                for own in fitted.residuals
            ]
            for name in self.tested
        }
        for first, second in self._pairs:
            pair = _Pair.of(
                fitted.projection, inverses[first], self.blocks[first], self.blocks[second]
            )
            for at, residuals in enumerate(fitted.residuals):
                confounds = self._confounds[at]
                of_second = pair.error_of_second(residuals)
                if second in self.tested:
                    of_first = pair.error_of_first(outer[first][at], of_second)
                    sums[second][at] += confounds.squared(of_first, first, second)
                sums[first][at] += confounds.squared(of_second, second, first)
        for name in self.tested:
            yield name, sums[name], self._predicted(name, outer[name])

    def _inverse(self, fitted: Fitted, name: int) -> NDArray[np.float64]:
        block = self.blocks[name]
        return positive_inverse(fitted.projection[np.ix_(block, block)])

    def _predicted(
        self, name: int, left_out: Sequence[NDArray[np.floating]]
    ) -> list[NDArray[np.floating]]:
        block = self.blocks[name]
        return [
            own[block] - confounds.features_only(error, name)
            for own, error, confounds in zip(self._labels, left_out, self._confounds, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class _Pair:
    """M and S^-1 of the module's text, for two folds."""

    first: Block
    second: Block
    carried: NDArray[np.float64]
    inverse: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        projection: NDArray[np.float64],
        first_inverse: NDArray[np.float64],
        first: Block,
        second: Block,
    ) -> _Pair:
        across = projection[np.ix_(first, second)]
        carried = first_inverse @ across
        schur = projection[np.ix_(second, second)] - across.T @ carried
        return cls(first, second, carried, positive_inverse(schur))

    def error_of_second(self, residuals: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return errors of the second fold (n_second, columns), from residuals (n, columns)."""
        carried = self.carried.astype(residuals.dtype)
        rest = residuals[self.second] - carried.T @ residuals[self.first]
        return self.inverse.astype(residuals.dtype) @ rest

    def error_of_first(
        self, alone: NDArray[np.floating], of_second: NDArray[np.floating]
    ) -> NDArray[np.floating]:
        """Return errors of the first fold (n_first, columns), given those when it is alone."""
        return alone - self.carried.astype(alone.dtype) @ of_second


class _OnConfounds:
    """What ridge with confounds predicts more than ridge on features without them.

    It is the prediction by ordinary least squares from the confounds alone, less the training mean.
    """

    def __init__(
        self,
        design: NDArray[np.float64],
        labels: NDArray[np.floating],
        blocks: dict[int, Block],
    ) -> None:
        self._blocks = blocks
        self._design = design.astype(labels.dtype)
        self._inner = {name: design[block].T @ design[block] for name, block in blocks.items()}
        self._outer = {name: design[block].T @ labels[block] for name, block in blocks.items()}
        self._found: dict[frozenset[int], NDArray[np.floating]] = {}

    def squared(self, error: NDArray[np.floating], name: int, other: int) -> NDArray[np.float64]:
        """Return the sum (columns,) of squared features-only errors of a fold, two left out."""
        total = self.features_only(error, name, other)
        return np.einsum("ij,ij->j", total, total).astype(np.float64)

    def features_only(
        self, error: NDArray[np.floating], name: int, other: int | None = None
    ) -> NDArray[np.floating]:
        """Return errors (len(block), columns) of a fold from features alone.

        Parameters
        ----------
        error : ndarray, shape (len(block), columns)
            From features and confounds.
        name, other : int
            The fold, and another one that is left out as well.
        """
        if self._design.shape[1] == 1:
            return error
        coefficients = self._without(frozenset({name} if other is None else {name, other}))
        return error + self._design[self._blocks[name]] @ coefficients

    def _without(self, left_out: frozenset[int]) -> NDArray[np.floating]:
        if left_out not in self._found:
            kept = [name for name in self._blocks if name not in left_out]
            inner = np.sum([self._inner[name] for name in kept], axis=0)
            outer = np.sum([self._outer[name] for name in kept], axis=0)
            found = np.linalg.lstsq(inner, outer, rcond=None)[0]
            found[0] -= outer[0] / inner[0, 0]
            self._found[left_out] = found.astype(self._design.dtype)
        return self._found[left_out]


def positive_inverse(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the inverse of a symmetric positive definite matrix (n, n)."""
    factor, failed = lapack.dpotrf(matrix, lower=1)
    if failed:
        return np.linalg.inv(matrix)
    lower, failed = lapack.dpotri(factor, lower=1)
    if failed:
        return np.linalg.inv(matrix)
    lower = np.tril(lower)
    return lower + np.tril(lower, -1).T
