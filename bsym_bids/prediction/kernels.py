"""Features as N x N matrices of their inner products.

A ridge or logistic regression on 101,025 edges of N people has its solution in the span of N
vectors, so that N x N inner products are all it needs of them (the "dual" or kernel form). What is
learned from features - the values that missing ones are imputed with, the scale that sets are
brought to before they are put together - is learned from training units alone, and is therefore a
function of who trains.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bsym_bids.prediction.combat import fit_combat

_BLOCK_BYTES = 64 * 1024**2
#: Matrices that depend on who trains are kept up to this size: candidates share folds.
_KEPT_BYTES = 512 * 1024**2
#: Sums are quickly made anew; of candidates there are more than of sets of features.
_KEPT_BYTES_OF_SUMS = 64 * 1024**2


class _Kept:
    """Matrices by key, as many as fit, but the latest in any case; the oldest go first."""

    def __init__(self, n_bytes: int = _KEPT_BYTES) -> None:
        self._n_bytes = n_bytes
        self._matrices: dict[Hashable, NDArray[np.float64]] = {}

    def get(self, key: Hashable, make: Callable[[], NDArray[np.float64]]) -> NDArray[np.float64]:
        """Return the matrix of a key, made if need be."""
        if key not in self._matrices:
            matrix = make()
            while self._matrices and (len(self._matrices) + 1) * matrix.nbytes > self._n_bytes:
                self._matrices.pop(next(iter(self._matrices)))
            self._matrices[key] = matrix
        return self._matrices[key]


class Kernel(ABC):
    """Inner products of the features of N units, given who trains.

    Attributes
    ----------
    present : ndarray of bool, shape (N,)
        Units that have the features; rows and columns of others are 0.
    """

    present: NDArray[np.bool_]

    @abstractmethod
    def key(self, training: NDArray[np.bool_]) -> Hashable:
        """Return what decides the matrix: equal keys, equal matrix."""

    @abstractmethod
    def gram(self, training: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the (N, N) inner products, not centred, as training units (N,) prescribe."""

    def scale(self, training: NDArray[np.bool_]) -> float:
        """Return the mean squared distance of training units from their mean, to a power of 2.

        The power of 2 keeps it, and what follows from it, the same in nearly all folds, although
        it is learned anew in each.
        """
        share = (training & self.present).astype(np.float64)
        share /= max(share.sum(), 1)
        inner = self.gram(training)
        spread = inner.diagonal() @ share - share @ inner @ share
        return float(2.0 ** np.round(np.log2(spread))) if spread > 0 else 1.0


class FeatureKernel(Kernel):
    """Inner products of one set of features, missing ones imputed with the mean in training.

    Parameters
    ----------
    values : ndarray, shape (N, F), float32 or float64
        NaN where a unit lacks a feature. Not copied.
    present : ndarray of bool, shape (N,), optional
        Units that have the features at all; default: those with any.
    """

    def __init__(
        self, values: NDArray[np.floating], present: NDArray[np.bool_] | None = None
    ) -> None:
        self.present = np.isfinite(values).any(axis=1) if present is None else present.copy()
        gaps = ~np.isfinite(values[self.present]).all(axis=0)
        # An offset changes no regression with an intercept; near the mean, digits are not lost.
        self._complete = _inner_products(values, np.flatnonzero(~gaps), self.present)
        self._imputed = _Imputed(values[:, gaps], self.present) if gaps.any() else None
        if self._imputed:
            self._complete += self._imputed.unchanging()
        self._kept, self._latest = _Kept(), _Kept(0)

    def key(self, training: NDArray[np.bool_]) -> Hashable:
        """Return what decides the matrix: nothing, unless values are to be imputed."""
        return training.tobytes() if self._imputed else None

    def gram(self, training: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the (N, N) inner products, not centred, as training units (N,) prescribe."""
        if not (imputed := self._imputed):
            return self._complete
        training = training & self.present
        who = training.tobytes()
        learned = self._kept.get(who, lambda: imputed.learned(training))
        return self._latest.get(who, lambda: imputed.added(self._complete, learned))


class _Imputed:
    """Features that some units lack, imputed with their means in training.

    With G (0 where a value is missing) and the rows of W, what is imputed in each pattern of
    missing features, features are G + Z W, Z telling who has which pattern. G G' does not depend
    on who trains, and patterns are few where it is ROIs that are missing. A feature that no
    training unit has does not vary in training, so that no regression weighs it.

    Parameters
    ----------
    values : ndarray, shape (N, F)
        NaN where a unit lacks a feature.
    present : ndarray of bool, shape (N,)
        Units that have the features at all.
    """

    def __init__(self, values: NDArray[np.floating], present: NDArray[np.bool_]) -> None:
        moved = _offset(values, present)
        self._known = np.isfinite(moved)
        self._values = np.where(self._known, moved, 0)
        self._present = present
        missing = ~self._known & present[:, None]
        self._lacking = np.flatnonzero(missing.any(axis=1))
        self._patterns, pattern = np.unique(missing[self._lacking], axis=0, return_inverse=True)
        self._pattern = pattern.ravel()

    def unchanging(self) -> NDArray[np.float64]:
        """Return G G', (N, N); the mean of G is 0, so that it is not centred again."""
        return _inner_products(self._values, np.arange(self._values.shape[1]), self._present)

    def learned(self, training: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return G W' above W W', (N + patterns, patterns), with means of training units (N,)."""
        count = self._known[training].sum(axis=0)
        mean = self._values[training].sum(axis=0, dtype=np.float64) / np.maximum(count, 1)
        filled = self._patterns * mean.astype(self._values.dtype)
        return np.vstack([self._values @ filled.T, filled @ filled.T]).astype(np.float64)

    def added(
        self, unchanging: NDArray[np.float64], learned: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return (G + Z W) (G + Z W)' from G G' (N, N), and from what was learned."""
        lacking, pattern = self._lacking, self._pattern
        across, within = learned[: len(unchanging), pattern], learned[len(unchanging) :]
        total = unchanging.copy()
        total[:, lacking] += across
        total[lacking] += across.T
        total[np.ix_(lacking, lacking)] += within[np.ix_(pattern, pattern)]
        return total


class HarmonizedKernel(Kernel):
    """Inner products of features that ComBat, learned in training, took site differences out of.

    Parameters
    ----------
    values : ndarray, shape (N, F), float32 or float64
        NaN where a unit lacks a feature. Not copied.
    sites : ndarray, shape (N,)
        Site of each unit. A unit that has one for itself, as where it is not known, is left as it
        is, in training as in test.
    """

    def __init__(self, values: NDArray[np.floating], sites: NDArray[np.str_]) -> None:
        self.present = np.isfinite(values).any(axis=1)
        self._values, self._sites = values, sites
        _, place, count = np.unique(sites, return_inverse=True, return_counts=True)
        self._is_shared = count[place] > 1
        self._kept = _Kept()

    def key(self, training: NDArray[np.bool_]) -> Hashable:
        """Return what decides the matrix: who trains."""
        return training.tobytes()

    def gram(self, training: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the (N, N) inner products, not centred, as training units (N,) prescribe."""
        return self._kept.get(
            training.tobytes(),
            lambda: FeatureKernel(self.harmonized(training), self.present).gram(training),
        )

    def harmonized(self, training: NDArray[np.bool_]) -> NDArray[np.floating]:
        """Return the features (N, F) as training units (N,) prescribe."""
        used = training & self.present & self._is_shared
        learned = fit_combat(self._values, self._sites, None, used)
        return learned.apply(self._values, self._sites)


@dataclass(frozen=True, eq=False)
class SumKernel(Kernel):
    """Several sets of features side by side, each brought to the same scale in training.

    Attributes
    ----------
    parts : sequence of Kernel
        The sets; only units that have all of them are present.
    """

    parts: Sequence[Kernel]
    _kept: _Kept = field(default_factory=lambda: _Kept(_KEPT_BYTES_OF_SUMS), init=False)

    @cached_property
    def present(self) -> NDArray[np.bool_]:  # type: ignore[override]
        """(N,), units that have all parts."""
        return np.all([part.present for part in self.parts], axis=0)

    def key(self, training: NDArray[np.bool_]) -> Hashable:
        """Return what decides the matrix: that of each part, and their scales."""
        training = training & self.present
        return tuple((part.key(training), part.scale(training)) for part in self.parts)

    def gram(self, training: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the (N, N) inner products, not centred, as training units (N,) prescribe."""
        training = training & self.present
        return self._kept.get(self.key(training), lambda: self._sum(training))

    def _sum(self, training: NDArray[np.bool_]) -> NDArray[np.float64]:
        total = sum(part.gram(training) / part.scale(training) for part in self.parts)
        return np.where(np.outer(self.present, self.present), total, 0.0)


def _offset(values: NDArray[np.floating], present: NDArray[np.bool_]) -> NDArray[np.floating]:
    """Return values near 0, rows of absent units NaN."""
    moved = np.where(present[:, None], values, np.nan).astype(values.dtype)
    if moved.size:
        known = np.isfinite(moved)
        total = np.where(known, moved, 0).sum(axis=0, dtype=np.float64)
        moved -= (total / np.maximum(known.sum(axis=0), 1)).astype(moved.dtype)
    return moved


def _inner_products(
    values: NDArray[np.floating], columns: NDArray[np.int64], present: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the (N, N) inner products over some columns, in blocks of them."""
    n = len(values)
    total = np.zeros((n, n))
    step = max(1, _BLOCK_BYTES // max(1, 8 * n))
    for start in range(0, len(columns), step):
        some = columns[start : start + step]
        # Without gaps between them a slice does, which is read several times faster.
        whole = some[-1] - some[0] == len(some) - 1
        block = values[:, some[0] : some[-1] + 1] if whole else values[:, some]
        block = block.astype(np.float64)
        block[~present] = 0
        block -= block.sum(axis=0) / max(present.sum(), 1)
        block[~present] = 0
        total += block @ block.T
    return total
