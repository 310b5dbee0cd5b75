"""How labels may be shuffled for a permutation test: as far as they are exchangeable.

Units are the leaves of a tree: of sites, of families, of persons, whatever there is of them. Under
the null hypothesis that nothing predicts the labels, branches of the same shape may change places
with all that hangs on them, at those levels where they are exchangeable (Winkler et al. 2015,
doi:10.1016/j.neuroimage.2015.05.092).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

#: Levels by name, and how they are called in a sidecar and on a page.
SITE, GROUP, PERSON, UNIT = "site", "group", "person", "unit"
_MANY = {SITE: "sites", GROUP: "groups", PERSON: "persons", UNIT: "sessions or states"}


@dataclass(frozen=True)
class Level:
    """A level of the tree.

    Attributes
    ----------
    name : str
        What its branches are: `SITE`, `GROUP`, `PERSON` or `UNIT`.
    labels : tuple of str
        Branch of each unit.
    is_free : bool
        Whether branches of the same shape, of one branch of the level before, may change places.
    """

    name: str
    labels: tuple[str, ...]
    is_free: bool


@dataclass(frozen=True)
class Exchange:
    """What is exchangeable.

    Attributes
    ----------
    levels : tuple of Level
        From the outermost to the units themselves.
    """

    levels: tuple[Level, ...]

    @property
    def said(self) -> str:
        """The same in words."""
        free = [_MANY[level.name] for level in self.levels if level.is_free]
        fixed = [_MANY[level.name] for level in self.levels[:-1] if not level.is_free]
        text = f"{' and '.join(free) or 'nothing'} of the same shape exchanged"
        return text + (f", within {' and '.join(fixed)}" if fixed else "")


def exchange_of(
    persons: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
    sites: Sequence[str] | None = None,
    are_units_free: bool = False,
) -> Exchange:
    """Return what is exchangeable.

    Parameters
    ----------
    persons : sequence of str
        Person of each unit. Those with as many units change places as wholes, the order of their
        units kept.
    groups : sequence of str, optional
        Families, or what else holds several persons: those of the same shape change places, and so
        do persons inside of them.
    sites : sequence of str, optional
        They do not change places: a difference between sites is no finding.
    are_units_free : bool
        The units of a person change places, and persons do not: for their states.
    """
    levels = [] if sites is None else [Level(SITE, tuple(sites), False)]
    if are_units_free:
        levels.append(Level(PERSON, tuple(persons), False))
    else:
        if groups is not None:
            levels.append(Level(GROUP, tuple(groups), True))
        levels.append(Level(PERSON, tuple(persons), True))
    units = tuple(str(number) for number in range(len(persons)))
    return Exchange((*levels, Level(UNIT, units, are_units_free)))


def permuted_labels(
    values: NDArray[np.float64],
    exchange: Exchange,
    n_permutations: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Shuffle labels as far as they are exchangeable if nothing predicts them.

    Parameters
    ----------
    values : ndarray, shape (N,)
        Labels; NaN stay where they are.
    exchange : Exchange
        Of the N units.
    n_permutations : int
        How many.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    ndarray, shape (N, n_permutations)
    """
    tree = _tree(exchange, np.flatnonzero(np.isfinite(values)), 0)
    shuffled = np.repeat(values[:, None], n_permutations, axis=1)
    places = tree.leaves()
    for column in range(n_permutations):
        shuffled[places, column] = values[tree.drawn(rng)]
    return shuffled


def n_rearrangements(values: NDArray[np.float64], exchange: Exchange) -> float:
    """Return in how many ways labels (N,) can be rearranged, as a base 10 logarithm."""
    return _tree(exchange, np.flatnonzero(np.isfinite(values)), 0).log_ways() / np.log(10)


class _Leaves:
    """Units that hang on one branch, side by side.

    Attributes
    ----------
    shape : object
        Branches that may change places have the same.
    """

    def __init__(self, units: NDArray[np.int64], is_free: bool) -> None:
        self._units, self._is_free = units, is_free
        self.shape = (len(units), is_free)

    def leaves(self) -> NDArray[np.int64]:
        """Return the units, in the order of `drawn`."""
        return self._units

    def drawn(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the units in an order that is as likely as any other allowed one."""
        return rng.permutation(self._units) if self._is_free else self._units

    def log_ways(self) -> float:
        """Return the natural logarithm of how many orders are allowed."""
        return float(gammaln(len(self._units) + 1)) if self._is_free else 0.0


class _Fork:
    """Branches that hang on one branch, by their shape.

    Attributes
    ----------
    shape : object
        Branches that may change places have the same.
    """

    def __init__(self, branches: Sequence[_Branch], is_free: bool) -> None:
        by_shape: defaultdict[Any, list[_Branch]] = defaultdict(list)
        for branch in branches:
            by_shape[branch.shape].append(branch)
        self._alike = [by_shape[shape] for shape in sorted(by_shape, key=repr)]
        self._is_free = is_free
        self.shape = (is_free, tuple((len(own), own[0].shape) for own in self._alike))

    def leaves(self) -> NDArray[np.int64]:
        """Return the units, as `_Leaves.leaves`."""
        return np.concatenate([branch.leaves() for own in self._alike for branch in own])

    def drawn(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the units in a random order, as `_Leaves.drawn`."""
        orders = (rng.permutation(len(o)) if self._is_free else range(len(o)) for o in self._alike)
        return np.concatenate(
            [
                own[place].drawn(rng)
                for own, order in zip(self._alike, orders, strict=True)
                for place in order
            ]
        )

    def log_ways(self) -> float:
        """Return how many orders are allowed, as `_Leaves.log_ways`."""
        inside = sum(branch.log_ways() for own in self._alike for branch in own)
        return inside + sum(float(gammaln(len(o) + 1)) for o in self._alike if self._is_free)


_Branch = _Leaves | _Fork


def _tree(exchange: Exchange, units: NDArray[np.int64], depth: int) -> _Branch:
    """Return the branch that some units hang on."""
    level = exchange.levels[depth]
    if depth == len(exchange.levels) - 1:
        return _Leaves(units, level.is_free)
    labels = np.asarray(level.labels, dtype=str)[units]
    names = np.unique(labels)
    if len(names) == len(units):  # nothing below: quicker as leaves, and the same
        return _Leaves(units, level.is_free)
    branches = [_tree(exchange, units[labels == name], depth + 1) for name in names]
    return branches[0] if len(branches) == 1 else _Fork(branches, level.is_free)
