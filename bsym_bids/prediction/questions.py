"""What is asked of a cohort: which units, which label, who belongs together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bsym_bids.errors import BadDataError, UsageError
from bsym_bids.prediction.exchange import Exchange, exchange_of
from bsym_bids.prediction.inventory import Inventory
from bsym_bids.prediction.phenotypes import Phenotypes
from bsym_bids.prediction.records import CLASSIFICATION, Target, Unit
from bsym_bids.prediction.targets import check_class_sizes, group_labels, make_target
from bsym_bids.prediction.units import make_units, unmatched

#: Fewer people with a label teach nothing.
LEAST_LABELLED = 10


@dataclass(frozen=True, eq=False)
class Question:
    """A target, and whom it is asked of.

    Attributes
    ----------
    target : Target
        What is to be predicted.
    units : tuple of Unit
        N units, in the order of the target.
    groups : tuple of str
        Group of each unit that is never on both sides of a split.
    exchange : Exchange
        How labels are exchangeable.
    sites : tuple of str, optional
        Site of each unit, where the tables know it.
    warnings : tuple of str
        Who is in the table or in the outputs alone.
    """

    target: Target
    units: tuple[Unit, ...]
    groups: tuple[str, ...]
    exchange: Exchange
    sites: tuple[str, ...] | None = None
    warnings: tuple[str, ...] = ()


def ask_column(
    name: str,
    phenotypes: Phenotypes,
    inventory: Inventory,
    *,
    task_type: str | None = None,
    group_by: str | None = None,
    site: str = "site",
    n_folds: int = 5,
) -> Question:
    """Ask for a column of the phenotype tables.

    Parameters
    ----------
    name : str
        Of the column.
    phenotypes : Phenotypes
        The tables.
    inventory : Inventory
        Who has outputs.
    task_type : str, optional
        ``regression`` or ``classification``; None is told by the data.
    group_by : str, optional
        Column of what stays together in a fold.
    site : str
        Column of the sites; need not be there.
    n_folds : int
        Every class must have as many members.

    Returns
    -------
    Question

    Raises
    ------
    UsageError
        There is no such column.
    BadDataError
        It cannot be predicted: too few labels, one class, a constant.
    """
    column = phenotypes.column(name)
    units = tuple(make_units(column, sessions_of(inventory)))
    target = make_target(column, units, task_type, LEAST_LABELLED)
    groups = _groups(group_by, phenotypes, units)
    check_class_sizes(target, n_folds, groups)
    sites = _sites(site, phenotypes, units, asked=group_by == site)
    exchange = exchange_of(
        [unit.participant for unit in units],
        groups=None if group_by in (None, site) else groups,
        sites=sites,
    )
    return Question(target, units, groups, exchange, sites, unmatched(column, units).warnings)


def ask_state(
    labels: Sequence[str],
    inventory: Inventory,
    n_folds: int = 5,
    *,
    phenotypes: Phenotypes | None = None,
    group_by: str | None = None,
    site: str = "site",
) -> Question:
    """Ask which of several sessions or tasks of the same people data are from.

    Parameters
    ----------
    labels : sequence of str
        ``ses-A``, ``ses-B``, ... or ``task-A``, ``task-B``, ...
    inventory : Inventory
        Who has outputs.
    n_folds : int
        Every state must have as many people.
    phenotypes : Phenotypes, optional
        The tables, where there are any.
    group_by, site : str
        As for `ask_column`.

    Returns
    -------
    Question
        All data of a person, and of a group, are in one fold, and labels are shuffled within
        persons.

    Raises
    ------
    UsageError
        Labels are not all of sessions or all of tasks, or nobody has one.
    BadDataError
        Too few people have them.
    """
    kinds = {label.partition("-")[0] for label in labels}
    if len(kinds) != 1 or not kinds <= {"ses", "task"} or len(set(labels)) < len(labels):
        raise UsageError(
            f"--state {' '.join(labels)}: not different labels of sessions, or of tasks",
            hint="as in --state ses-drug ses-placebo, or --state task-rest task-movie",
        )
    known = {f"ses-{label}" for label in inventory.sessions}
    known |= {f"task-{label}" for label in inventory.tasks}
    for label in labels:
        if label not in known:
            raise UsageError(
                f"--state {label}: of no output",
                hint=f"there are: {', '.join(sorted(known)) or 'no sessions or tasks'}",
            )
    units = tuple(
        Unit(participant, state=label)
        for participant in inventory.participants
        for label in labels
        if any(inventory.of_unit(Unit(participant, state=label), m) for m in ("bold", "dwi"))
    )
    values = np.array([labels.index(unit.state) for unit in units], dtype=np.float64)
    target = Target(
        "state",
        CLASSIFICATION,
        values,
        tuple(labels),
        description="Which session or task of a person data are from",
    )
    people = {unit.participant for unit in units}
    if len(people) < LEAST_LABELLED:
        raise BadDataError(
            f"--state {' '.join(labels)}: {len(people)} participants have one of them, and at "
            f"least {LEAST_LABELLED} are needed"
        )
    groups, sites = tuple(unit.participant for unit in units), None
    if phenotypes is not None:
        groups = _groups(group_by, phenotypes, units)
        sites = _sites(site, phenotypes, units, asked=group_by == site)
    elif group_by is not None:
        raise UsageError(f"--group-by {group_by}: there are no tables with such a column")
    check_class_sizes(target, n_folds, groups)
    persons = [unit.participant for unit in units]
    return Question(target, units, groups, exchange_of(persons, are_units_free=True), sites)


def sessions_of(inventory: Inventory) -> dict[str, list[str]]:
    """Return the sessions of everyone who has outputs."""
    found: dict[str, set[str]] = {participant: set() for participant in inventory.participants}
    for record in inventory.records:
        if record.session:
            found[record.participant].add(record.session)
    return {participant: sorted(sessions) for participant, sessions in found.items()}


def joined_groups(units: Sequence[Unit], labels: Sequence[str]) -> tuple[str, ...]:
    """Return groups that hold all of each label and all of each person.

    Someone whose sessions are of two sites joins the two.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    names = [f"group {label}" for label in labels]
    for unit, name in zip(units, names, strict=True):
        first, second = sorted((root(f"person {unit.participant}"), root(name)))
        parent[second] = first
    return tuple(root(name) for name in names)


def _groups(group_by: str | None, phenotypes: Phenotypes, units: Sequence[Unit]) -> tuple[str, ...]:
    """Return what is never on both sides of a split: persons, and what holds several of them."""
    if group_by is None:
        return joined_groups(units, [unit.participant for unit in units])
    return joined_groups(units, group_labels(phenotypes.column(group_by), units))


def _sites(
    site: str, phenotypes: Phenotypes, units: Sequence[Unit], *, asked: bool
) -> tuple[str, ...] | None:
    column = phenotypes.column(site) if asked else phenotypes.optional(site)
    return None if column is None else tuple(group_labels(column, units))
