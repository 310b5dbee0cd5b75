"""Who is predicted by whom, and how labels are shuffled for a permutation test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bsym_bids.errors import BadDataError
from bsym_bids.prediction.records import Folds, Target

#: Numbers are stratified by as many quantile bins as there are folds, but no more than this.
_MOST_BINS = 10
#: How labels may be exchanged: inside of a group; whole groups of equal size; or both.
WITHIN, WHOLE, BOTH = "within", "whole", "both"


def make_folds(
    target: Target, groups: Sequence[str], *, n_folds: int, n_repeats: int, seed: int
) -> Folds:
    """Deal the labelled units out to folds, whole groups together, labels spread evenly.

    Parameters
    ----------
    target : Target
        Its labels are spread over the folds: classes, or quantile bins of numbers.
    groups : sequence of str, length N
        Units of one group (person, family, site) are never on both sides of a split.
    n_folds, n_repeats : int
        Folds of a repeat, and how often everyone is dealt out anew.
    seed : int
        Repeat r is dealt with ``seed + r``.

    Returns
    -------
    Folds

    Raises
    ------
    BadDataError
        There are fewer groups than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    labelled = np.flatnonzero(target.labelled)
    own = np.unique(np.asarray(groups, dtype=str)[labelled], return_inverse=True)[1]
    n_groups = own.max(initial=-1) + 1
    if n_groups < n_folds:
        raise BadDataError(
            f"{target.name}: {n_groups} groups cannot be dealt out to {n_folds} folds",
            hint=f"choose --folds {n_groups} or fewer, or another --group-by",
        )
    strata = _strata(target, n_folds)[labelled]
    alone = n_groups == len(labelled)
    kind, together = (StratifiedKFold, None) if alone else (StratifiedGroupKFold, own)
    assignment = np.full((n_repeats, len(target.values)), -1)
    for repeat in range(n_repeats):
        splitter = kind(n_folds, shuffle=True, random_state=seed + repeat)
        for fold, (_, tested) in enumerate(splitter.split(labelled, strata, together)):
            assignment[repeat, labelled[tested]] = fold
    return Folds(assignment, n_folds)


def leave_group_out(target: Target, groups: Sequence[str]) -> Folds:
    """Make every group a fold of its own, once: leave-site-out.

    Raises
    ------
    BadDataError
        There are fewer than three groups: none would be left to choose a penalty by.
    """
    labelled = np.flatnonzero(target.labelled)
    names, own = np.unique(np.asarray(groups, dtype=str)[labelled], return_inverse=True)
    if len(names) < 3:
        raise BadDataError(
            f"{target.name}: labelled units are of {len(names)} groups, and leaving each out takes "
            "three"
        )
    assignment = np.full((1, len(target.values)), -1)
    assignment[0, labelled] = own
    return Folds(assignment, len(names))


def can_train(target: Target, folds: Folds, members: NDArray[np.bool_], n_columns: int) -> bool:
    """Tell whether enough is left to train on when any two folds are left out.

    Parameters
    ----------
    target : Target
        The labels.
    folds : Folds
        Of everyone with a label.
    members : ndarray of bool, shape (N,)
        Who has a label and the features.
    n_columns : int
        Ones and confounds: more units than that must be left.

    Returns
    -------
    bool
        For each repeat and each pair of folds there are enough units, and two different labels.
    """
    for assignment in folds.assignment:
        own = assignment[members]
        names = np.unique(own)
        if len(names) < 3:
            return False
        for first in names:
            for second in names[names > first]:
                left = target.values[members][(own != first) & (own != second)]
                if len(left) <= n_columns or len(np.unique(left)) < 2:
                    return False
    return True


def _strata(target: Target, n_folds: int) -> NDArray[np.int64]:
    """Return the stratum of each unit: its class, or the quantile bin of its number."""
    if not target.is_regression:
        return np.nan_to_num(target.values, nan=-1).astype(np.int64)
    labelled = target.labelled
    bins = max(1, min(_MOST_BINS, n_folds, labelled.sum() // n_folds))
    ranks = np.full(len(target.values), -1)
    ranks[labelled] = np.argsort(np.argsort(target.values[labelled], kind="stable"), kind="stable")
    return np.where(labelled, ranks * bins // max(labelled.sum(), 1), -1)


def permuted_labels(
    values: NDArray[np.float64],
    groups: Sequence[str],
    how: str,
    n_permutations: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Shuffle labels as far as they are exchangeable if nothing predicts them.

    Parameters
    ----------
    values : ndarray, shape (N,)
        Labels; NaN stay where they are.
    groups : sequence of str, length N
        The blocks of exchangeability (Winkler et al. 2015).
    how : str
        `WITHIN`: inside of each block alone, as for sites, whose difference is no finding, and for
        states of one person. `WHOLE`: blocks of the same size are exchanged as wholes, their order
        kept, as for persons with several sessions. `BOTH`: as for families, whose members are
        exchangeable, too.
    n_permutations : int
        How many.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    ndarray, shape (N, n_permutations)
    """
    labelled = np.flatnonzero(np.isfinite(values))
    blocks = _blocks(np.asarray(groups, dtype=str)[labelled])
    shuffled = np.repeat(values[:, None], n_permutations, axis=1)
    for column in range(n_permutations):
        taken_from = np.arange(len(labelled))
        for of_one_size in blocks.values():
            sources = of_one_size
            if how != WITHIN:
                sources = of_one_size[rng.permutation(len(of_one_size))]
            if how != WHOLE:
                sources = rng.permuted(sources, axis=1)
            taken_from[of_one_size.ravel()] = sources.ravel()
        shuffled[labelled, column] = values[labelled[taken_from]]
    return shuffled


def _blocks(groups: NDArray[np.str_]) -> dict[int, NDArray[np.int64]]:
    """Return by size the blocks of that size, one per row, as positions of their members."""
    members = [np.flatnonzero(groups == name) for name in np.unique(groups)]
    sizes = sorted({len(block) for block in members})
    return {size: np.array([m for m in members if len(m) == size]) for size in sizes}


def n_rearrangements(groups: Sequence[str], how: str) -> float:
    """Return in how many ways labels can be rearranged, as a base 10 logarithm."""
    from scipy.special import gammaln

    total = 0.0
    for size, blocks in _blocks(np.asarray(groups, dtype=str)).items():
        if how != WITHIN:
            total += gammaln(len(blocks) + 1)
        if how != WHOLE:
            total += len(blocks) * gammaln(size + 1)
    return float(total / np.log(10))
