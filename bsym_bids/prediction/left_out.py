r"""Errors of units that are left out of a ridge regression, two folds at a time.

With P of `bsym_bids.prediction.ridge`, r = P y and the blocks i, j of two folds, the errors when
i alone is left out are a_i = P_ii^-1 r_i, and when both are, by block elimination,

    M = P_ii^-1 P_ij,   S = P_jj - P_ji M,   e_j = S^-1 (r_j - M' r_i),   e_i = a_i - M e_j,

so that one inverse of a pair serves the inner errors of i when j is tested, and of j when i is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack


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

    Members are sorted by fold, so that blocks are views, not copies.

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
        self.tested = tuple(tested)
        self._order = np.argsort(folds, kind="stable")
        self._blocks = blocks_of(folds[self._order])
        self._labels = [own[self._order] for own in labels]
        self._confounds = [
            OnConfounds(design[self._order], own, self._blocks) for own in self._labels
        ]

    def labels_of(self, fold: int) -> list[NDArray[np.floating]]:
        """Return each set of labels (m, columns) of a fold, in the order of the members."""
        return [own[self._blocks[fold]] for own in self._labels]

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
        predicted : list of ndarray, shape (m, columns)
            Of each set of labels, as `labels_of`.
        """
        projection = fitted.projection[np.ix_(self._order, self._order)]
        sets = [residuals[self._order] for residuals in fitted.residuals]
        inverses = {
            name: positive_inverse(projection[block, block])
            for name, block in self._blocks.items()
            if name in self.tested
        }
        alone = {
            name: [inverse.astype(r.dtype) @ r[self._blocks[name]] for r in sets]
            for name, inverse in inverses.items()
        }
        sums = {name: [np.zeros(r.shape[1]) for r in sets] for name in self.tested}
        for first, second in self._pairs():
            i, j = self._blocks[first], self._blocks[second]
            carried = inverses[first] @ projection[i, j]
            inverse = positive_inverse(projection[j, j] - projection[j, i] @ carried)
            for at, r in enumerate(sets):
                m = carried.astype(r.dtype)
                of_second = inverse.astype(r.dtype) @ (r[j] - m.T @ r[i])
                confounds = self._confounds[at]
                if second in self.tested:
                    of_first = alone[first][at] - m @ of_second
                    sums[second][at] += confounds.squared(of_first, first, second)
                sums[first][at] += confounds.squared(of_second, second, first)
        for name in self.tested:
            yield name, sums[name], self._predicted(name, alone[name])

    def _pairs(self) -> Iterator[tuple[int, int]]:
        """Yield pairs of folds, the first of them tested."""
        for first, second in combinations(self._blocks, 2):
            if first in self.tested:
                yield first, second
            elif second in self.tested:
                yield second, first

    def _predicted(
        self, name: int, left_out: Sequence[NDArray[np.floating]]
    ) -> list[NDArray[np.floating]]:
        block = self._blocks[name]
        return [
            own[block] - confounds.features_only(error, name)
            for own, error, confounds in zip(self._labels, left_out, self._confounds, strict=True)
        ]


def blocks_of(folds: NDArray[np.int64]) -> dict[int, slice]:
    """Return where each fold is among members (n,) that are sorted by fold."""
    names, starts = np.unique(folds, return_index=True)
    ends = [*starts[1:], len(folds)]
    return {int(name): slice(*where) for name, *where in zip(names, starts, ends, strict=True)}


class OnConfounds:
    """What ridge with confounds predicts more than ridge on features without them.

    It is the prediction by ordinary least squares from the confounds alone, less the training mean.

    Parameters
    ----------
    design : ndarray, shape (n, q)
        Ones and confounds of members that are sorted by fold.
    labels : ndarray, shape (n, columns)
    blocks : dict of int to slice
        Where each fold is, as `blocks_of` returns it.
    """

    def __init__(
        self,
        design: NDArray[np.float64],
        labels: NDArray[np.floating],
        blocks: dict[int, slice],
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
    """Return the inverse of a symmetric positive definite matrix (n, n), by Cholesky's factor."""
    factor, failed = lapack.dpotrf(matrix.T, lower=1)
    if not failed:
        # The other triangle was set to 0 with the factor.
        lower, failed = lapack.dpotri(factor, lower=1, overwrite_c=1)
    if failed:
        return np.linalg.inv(matrix)
    inverse = lower + lower.T
    np.fill_diagonal(inverse, lower.diagonal())
    return inverse
