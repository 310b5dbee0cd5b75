"""From a column of a table to what a prediction needs: labels, confounds and groups.

What a column is, is told by its values (`told_task`), unless it is said. Labels of people without
outputs play no part, but every value of a column has to be readable: a typing error is one whoever
it is of.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bsym_bids.errors import BadDataError, UsageError
from bsym_bids.prediction.column_values import (
    MOST_CODES,
    class_names,
    in_class_order,
    looks_numeric,
    number_of,
    read_numbers,
    told_task,
)
from bsym_bids.prediction.folds import LEAST_FOLDS, too_few_groups
from bsym_bids.prediction.phenotypes import Column
from bsym_bids.prediction.records import REGRESSION, TASK_TYPES, Target, Unit
from bsym_bids.prediction.units import Unmatched, make_units, of_units, some_of, unmatched

__all__ = [
    "Unmatched",
    "categorical_column",
    "check_class_sizes",
    "group_labels",
    "looks_numeric",
    "make_target",
    "make_units",
    "numeric_column",
    "unmatched",
]

LOGGER = logging.getLogger("bsym_bids")
_LISTED = 5
#: Numbers with which studies say that a value is missing.
_CODES_OF_MISSING = (
    *(-1.0, -7.0, -8.0, -9.0, -77.0, -88.0, -99.0, -777.0, -888.0, -999.0, -9999.0),
    *(99.0, 999.0, 9999.0),
)


def make_target(
    column: Column,
    units: Sequence[Unit],
    task_type: str | None = None,
    min_labelled: int = 10,
) -> Target:
    """Turn a column into what is to be predicted.

    Parameters
    ----------
    column : Column
        Labels.
    units : sequence of Unit
        N units, as of `make_units`.
    task_type : str, optional
        ``regression`` or ``classification``; told by the values where it is not said, see
        `told_task`.
    min_labelled : int
        So many participants need a label.

    Returns
    -------
    Target
        Classes are those that units have: numbers by size, others as JSON lists them, else by name.

    Raises
    ------
    UsageError
        `task_type` is another.
    BadDataError
        Too few participants have a label; all labels are the same; numbers cannot be read as such;
        classes are asked for of a measure (many distinct numbers that are no integers); a
        participant's sessions have different labels, but outputs do not tell sessions apart.
    """
    if task_type not in (None, *TASK_TYPES):
        raise UsageError(f"--task-type {task_type}: is none of {', '.join(TASK_TYPES)}")
    _check_enough(column, units, min_labelled)
    task = task_type or told_task(column)
    classes: tuple[str, ...] = ()
    if task == REGRESSION:
        numbers = read_numbers(column)
        _warn_of_codes(column, list(numbers.values()))
        values = _only_values(column, of_units(numbers, units), units)
    else:
        _check_classes(column)
        codes, names = _codes(column, units)
        values = _only_values(column, codes, units)
        values, classes = _without_unused(values, names)
    found = np.unique(values[np.isfinite(values)])
    if len(found) < 2:
        what = "the same number" if task == REGRESSION else "of one class"
        text = classes[0] if classes else f"{found[0]:g}"
        raise BadDataError(
            f"{column.label}: all labels of those with outputs are {what}, {text}",
            hint="there is nothing to predict: choose another column, or more participants",
        )
    return Target(
        column.name, task, values, classes, column.units, column.description, column.source
    )


def check_class_sizes(target: Target, n_folds: int, groups: Sequence[str] | None = None) -> None:
    """Complain about a class that has fewer members than there are folds.

    Parameters
    ----------
    target : Target
        Numbers are always well.
    n_folds : int
        Folds.
    groups : sequence of str, length N, optional
        Groups that stay in one fold; with them, a class has to be in as many groups.

    Raises
    ------
    BadDataError
        There is such a class.
    """
    small = {}
    for code, name in enumerate(target.classes):
        members = np.flatnonzero(target.values == code)
        size = len(members) if groups is None else len({groups[i] for i in members})
        if size < n_folds:
            small[name] = size
    if not small:
        return
    of_what = "members" if groups is None else "groups with members"
    least = min(small.values())
    hint = "put small classes together, or write n/a for them"
    n_groups = len({groups[i] for i in np.flatnonzero(target.labelled)}) if groups else LEAST_FOLDS
    if n_groups < LEAST_FOLDS:
        hint = too_few_groups(n_groups)
    elif least >= LEAST_FOLDS:
        fewer = " or fewer" if least > LEAST_FOLDS else ""
        hint = f"choose --folds {least}{fewer}, or {hint}"
    said = ", ".join(f"{name} ({size})" for name, size in list(small.items())[:_LISTED])
    more = f" and {len(small) - _LISTED} more" if len(small) > _LISTED else ""
    raise BadDataError(
        f"{target.source or 'the labels'}, column {target.name}: classes have fewer {of_what} than "
        f"there are folds ({n_folds}): {said}{more}",
        hint=hint,
    )


def numeric_column(column: Column, units: Sequence[Unit]) -> NDArray[np.float64]:
    """Return a column as numbers, for confounds.

    Returns
    -------
    ndarray, shape (N,)
        NaN where nothing is known. A participant has the mean of their sessions where the column
        tells these apart and units do not.

    Raises
    ------
    BadDataError
        A value is no number, or infinite.
    """
    found = of_units(read_numbers(column), units)
    return np.array([np.mean(values) if values else np.nan for values in found], dtype=np.float64)


def categorical_column(
    column: Column, units: Sequence[Unit]
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Return a column as categories, for confounds.

    Returns
    -------
    codes : ndarray, shape (N,)
        Indices of `levels`; NaN where nothing is known, and with a warning for participants whose
        sessions differ, where units do not tell these apart.
    levels : tuple of str
        Those that units have, in the order of classes.
    """
    found, names = _codes(column, units)
    differing = [unit.label for unit, own in zip(units, found, strict=True) if len(set(own)) > 1]
    if differing:
        LOGGER.warning(
            "%s: differs between sessions, and counts as not known, of %s",
            column.label,
            some_of(differing),
        )
    codes = [float(own[0]) if len(set(own)) == 1 else np.nan for own in found]
    return _without_unused(np.array(codes, dtype=np.float64), names)


def group_labels(column: Column, units: Sequence[Unit]) -> list[str]:
    """Return the group (family, site) of each unit, for folds.

    All units of a person are of one group: that of most of their sessions, with a warning where
    these differ. Who has none is a group of their own, with a warning.

    Returns
    -------
    list of str, length N
    """
    own: dict[str, Counter[str]] = defaultdict(Counter)
    for unit, names in zip(units, of_units(class_names(column), units), strict=True):
        own[unit.participant].update(names)
    differing = [f"sub-{person}" for person, names in own.items() if len(names) > 1]
    alone = [f"sub-{person}" for person, names in own.items() if not names]
    if differing:
        LOGGER.warning(
            "%s: differs between sessions: %s are of the group of most of theirs",
            column.label,
            some_of(differing),
        )
    if alone:
        LOGGER.warning(
            "%s: is not known of %s: each is a group of their own", column.label, some_of(alone)
        )
    chosen = {
        person: min(names, key=lambda name: (-names[name], name))
        if names
        else f"sub-{person} (no {column.name})"
        for person, names in own.items()
    }
    return [chosen[unit.participant] for unit in units]


def _codes(column: Column, units: Sequence[Unit]) -> tuple[list[list[int]], tuple[str, ...]]:
    """Return the indices of the classes that hold for each unit, and all classes."""
    names = class_names(column)
    ordered = in_class_order(set(names.values()), column)
    index = {name: code for code, name in enumerate(ordered)}
    return of_units({key: index[name] for key, name in names.items()}, units), ordered


def _without_unused(
    codes: NDArray[np.float64], names: tuple[str, ...]
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Leave out the classes that no unit has."""
    known = np.isfinite(codes)
    used, again = np.unique(codes[known], return_inverse=True)
    values = np.full(codes.shape, np.nan)
    values[known] = again
    return values, tuple(names[int(code)] for code in used)


def _only_values(
    column: Column, found: Sequence[Sequence[float]], units: Sequence[Unit]
) -> NDArray[np.float64]:
    """Return (N,), the one label of each unit; NaN without."""
    differing = [unit.label for unit, own in zip(units, found, strict=True) if len(set(own)) > 1]
    if differing:
        raise BadDataError(
            f"{column.label}: sessions have different labels, but the outputs do not tell sessions "
            f"apart: {some_of(differing)}",
            hint="make a table with one row for each participant, of the session that was scanned",
        )
    return np.array([own[0] if own else np.nan for own in found], dtype=np.float64)


def _check_enough(column: Column, units: Sequence[Unit], min_labelled: int) -> None:
    found = of_units(column.known, units)
    labelled = {unit.participant for unit, own in zip(units, found, strict=True) if own}
    if len(labelled) >= min_labelled:
        return
    everyone = {unit.participant for unit in units}
    message = (
        f"{column.label}: {len(labelled)} of {len(everyone)} participants with outputs have a "
        f"label; a prediction needs at least {min_labelled}"
    )
    hint = "process more participants that have a label, or fill in the column"
    raise BadDataError("; ".join([message, *unmatched(column, units).warnings]), hint=hint)


def _check_classes(column: Column) -> None:
    """Refuse classes of what is a measure."""
    distinct = {number_of(text) for text in column.known.values()}
    numbers = {number for number in distinct if number is not None}
    if len(numbers) < len(distinct) or len(distinct) <= MOST_CODES:
        return
    if any(not number.is_integer() for number in numbers):
        raise BadDataError(
            f"{column.label}: has {len(numbers)} distinct numbers that are no integers, too many "
            "for classes",
            hint="leave out --task-type classification, or make a column of categories",
        )


def _warn_of_codes(column: Column, numbers: Sequence[float]) -> None:
    """Warn of numbers that look like a code for a missing value.

    They are far from all others, or below 0 where no other is.
    """
    others = [number for number in numbers if number not in _CODES_OF_MISSING]
    if len(others) < 2:
        return
    least, most = min(others), max(others)
    for code in sorted({number for number in numbers if number in _CODES_OF_MISSING}):
        how = ""
        if min(abs(code - number) for number in others) > most - least:
            how = "far from all other values"
        elif code < 0 <= least:
            how = "below 0, as no other value is"
        if how:
            LOGGER.warning(
                "%s: %g is %s; write n/a if it means that there is none", column.label, code, how
            )
