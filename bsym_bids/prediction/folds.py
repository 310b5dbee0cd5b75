"""Who is predicted by whom."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bsym_bids.errors import BadDataError
from bsym_bids.prediction.records import Folds, Target

#: Fewer make no nested cross-validation: one is tested, one chooses the penalty, one trains.
LEAST_FOLDS = 3


def make_folds(
    target: Target,
    groups: Sequence[str],
    *,
    n_folds: int,
    n_repeats: int,
    seed: int,
    are_blind: bool = False,
) -> Folds:
    """Deal the labelled units out to folds, whole groups together, classes spread evenly.

    Numbers are not looked at: permuted labels would be spread less evenly over folds than the true
    ones, and a permutation test that compares the two finds what is not there.

    Parameters
    ----------
    target : Target
        Its classes are spread over the folds.
    groups : sequence of str, length N
        Units of one group (person, family, site) are never on both sides of a split.
    n_folds, n_repeats : int
        Folds of a repeat, and how often everyone is dealt out anew.
    seed : int
        Repeat r is dealt with ``seed + r``.
    are_blind : bool
        Classes are not looked at either, as a permutation test takes it.

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
            hint=too_few_groups(n_groups),
        )
    strata = np.zeros(len(labelled), int)
    if not target.is_regression and not are_blind:
        strata = target.values[labelled].astype(int)
    alone = n_groups == len(labelled)
    kind, together = (StratifiedKFold, None) if alone else (StratifiedGroupKFold, own)
    assignment = np.full((n_repeats, len(target.values)), -1)
    for repeat in range(n_repeats):
        splitter = kind(n_folds, shuffle=True, random_state=seed + repeat)
        for fold, (_, tested) in enumerate(splitter.split(labelled, strata, together)):
            assignment[repeat, labelled[tested]] = fold
    return Folds(assignment, n_folds)


def too_few_groups(n_groups: int) -> str:
    """Return what to do where there are fewer groups than the folds that were asked for.

    Parameters
    ----------
    n_groups : int
        Groups that there are: no more folds than that can be made.
    """
    if n_groups < LEAST_FOLDS:
        return (
            f"whole groups are left out, which takes at least {LEAST_FOLDS} of them: choose "
            "another --group-by"
        )
    fewer = " or fewer" if n_groups > LEAST_FOLDS else ""
    return f"choose --folds {n_groups}{fewer}, or another --group-by"


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
