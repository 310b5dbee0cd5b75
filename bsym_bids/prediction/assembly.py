"""From the outputs of a dataset to a cohort: who, with which features, confounds and groups."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bsym_bids.prediction.features import FeatureKind
from bsym_bids.prediction.inventory import Inventory
from bsym_bids.prediction.kernels import FeatureKernel, HarmonizedKernel, Kernel
from bsym_bids.prediction.records import Unit
from bsym_bids.prediction.store import FeatureMatrix, FeatureStore

LOGGER = logging.getLogger("bsym_bids")
#: What the gate mixes.
_GATED = ("bs_functional_mean", "bs_structural")


@dataclass(frozen=True, eq=False)
class Source:
    """Where the features of units come from.

    Attributes
    ----------
    store : FeatureStore
        The features on disk.
    inventory : Inventory
        What there is.
    kinds : mapping of str to FeatureKind
        The kinds that are used, by key.
    n_workers : int
        Processes that parse.
    """

    store: FeatureStore
    inventory: Inventory
    kinds: Mapping[str, FeatureKind]
    n_workers: int = 1
    _problems: dict[str, None] = field(default_factory=dict)

    def matrix(self, key: str, units: Sequence[Unit]) -> FeatureMatrix:
        """Return one kind of features of units."""
        found = self.store.unit_matrix(self.kinds[key], units, self.inventory, self.n_workers)
        self._problems.update(dict.fromkeys(found.problems))
        return found

    def files(self, units: Sequence[Unit], keys: Collection[str] | None = None) -> list[Path]:
        """Return the files that features of units, or kinds of them, were read from, sorted."""
        used = {
            path
            for key, kind in self.kinds.items()
            if keys is None or key in keys
            for unit in units
            for record in self.inventory.of_unit(unit, kind.modality)
            if not self.store.problem(kind, record)
            for path in kind.sources(record)
        }
        return sorted(used)

    @property
    def problems(self) -> tuple[str, ...]:
        """What could not be used of what was asked for, and why."""
        return tuple(self._problems)


def make_kernels(
    source: Source, units: Sequence[Unit], sites: NDArray[np.str_] | None = None
) -> dict[str, Kernel]:
    """Return the inner products of every kind of features that any unit has.

    Parameters
    ----------
    source : Source
        The features.
    units : sequence of Unit
        N units.
    sites : ndarray of str, shape (N,), optional
        Site of each; given, features are harmonised between them in training.

    Returns
    -------
    dict of str to Kernel
        By kind. With sites, features stay in memory, without them N x N matrices only.
    """
    source.store.update(tuple(source.kinds.values()), source.inventory.records, source.n_workers)
    kernels: dict[str, Kernel] = {}
    for key in source.kinds:
        matrix = source.matrix(key, units)
        if not matrix.present.any():
            continue
        LOGGER.info("%s: %d of %d", matrix.kind.title, matrix.present.sum(), len(units))
        if sites is None:
            kernels[key] = FeatureKernel(matrix.values, matrix.present)
        else:
            kernels[key] = HarmonizedKernel(matrix.values, sites)
    return kernels


def gated_embeddings(
    source: Source, units: Sequence[Unit]
) -> partial[tuple[NDArray[np.float32], NDArray[np.float32]]] | None:
    """Return what gives the embeddings that the gate mixes; None where there are not both."""
    if not set(_GATED) <= source.kinds.keys():
        return None
    return partial(_load_gated, source, tuple(units))


def _load_gated(
    source: Source, units: Sequence[Unit]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    from bsym_bids.atlas import N_ROIS

    first, second = (
        source.matrix(key, units).values.reshape(len(units), N_ROIS, -1) for key in _GATED
    )
    return first, second
