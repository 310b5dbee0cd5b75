"""What gets a prediction, and what holds for it: between rows of tables and outputs."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from bsym_bids.prediction.phenotypes import Column
from bsym_bids.prediction.records import Unit

LOGGER = logging.getLogger("bsym_bids")
#: How many labels a message lists.
_LISTED = 5
T = TypeVar("T")


@dataclass(frozen=True)
class Unmatched:
    """Who is in a table or in the outputs alone.

    Attributes
    ----------
    without_outputs : tuple of str
        Labels as in ``sub-01_ses-A`` that have a row but no outputs; sorted.
    without_row : tuple of str
        Labels of units that have outputs but no row: they are predicted, as all without a label.
    """

    without_outputs: tuple[str, ...] = ()
    without_row: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to say of them."""
        said = (
            (self.without_outputs, "in the table, but not in the outputs, so not used"),
            (
                self.without_row,
                "in the outputs, but not in the table, so predicted without a label",
            ),
        )
        warnings = [f"{what}: {len(who)} ({some_of(who)})" for who, what in said if who]
        alike = self._alike()
        return (*warnings, *([f"labels may differ in writing only: {alike}"] if alike else []))

    def _alike(self) -> str:
        """Return a pair of labels that differ in leading zeros or case only."""
        rows = {_simplified(label): label for label in self.without_outputs}
        pairs = ((rows.get(_simplified(label)), label) for label in self.without_row)
        return next((f"{row} and {label}" for row, label in pairs if row), "")


def make_units(column: Column, participants: Mapping[str, Sequence[str]]) -> list[Unit]:
    """Say what gets a prediction: everyone with outputs, or each of their sessions.

    Parameters
    ----------
    column : Column
        What is to be predicted.
    participants : mapping of str to sequence of str
        Participants with outputs, and the sessions of these; none, or empty ones, for outputs
        without a session. With prefixes or without.

    Returns
    -------
    list of Unit
        Sorted; one per session where the column tells sessions apart and the outputs have any, else
        one per participant.
    """
    units = set()
    for person, sessions in participants.items():
        told = [session.removeprefix("ses-") for session in sessions if session]
        for session in (told if column.per_session else []) or [""]:
            units.add(Unit(person.removeprefix("sub-"), session))
    return sorted(units)


def unmatched(column: Column, units: Sequence[Unit]) -> Unmatched:
    """Return who is in the table or in the outputs alone, and log it.

    A row without a value is a row: who has one is not listed.
    """
    rows = {key: key for key in column.values}
    used = of_units(rows, units)
    left = set(rows) - {key for keys in used for key in keys}
    # Rows of whole participants are used by any of their units, even one with rows of its own.
    people = {unit.participant for unit in units}
    left = {key for key in left if key[1] or key[0] not in people}
    found = Unmatched(
        tuple(sorted(Unit(*key).label for key in left)),
        tuple(unit.label for unit, keys in zip(units, used, strict=True) if not keys),
    )
    for warning in found.warnings:
        LOGGER.warning("%s: %s", column.label, warning)
    return found


def of_units(values: Mapping[tuple[str, str], T], units: Sequence[Unit]) -> list[list[T]]:
    """Return what holds for each unit.

    Parameters
    ----------
    values : mapping
        By participant and session, which is empty for what holds for all sessions.
    units : sequence of Unit
        N units; a state ``ses-A`` is a session.

    Returns
    -------
    list of list, length N
        One value or none for a session; for a participant those of all sessions, where there is
        none for all of them.
    """
    sessions: dict[str, list[T]] = defaultdict(list)
    for (person, session), value in sorted(values.items(), key=lambda item: item[0]):
        if session:
            sessions[person].append(value)
    found: list[list[T]] = []
    for unit in units:
        key = unit.participant, session_of(unit)
        if key in values:
            found.append([values[key]])
        elif (unit.participant, "") in values:
            found.append([values[unit.participant, ""]])
        else:
            found.append([] if key[1] else sessions[unit.participant])
    return found


def session_of(unit: Unit) -> str:
    """Return the session that a unit is of; empty for none."""
    if unit.session or not unit.state.startswith("ses-"):
        return unit.session
    return unit.state.removeprefix("ses-")


def some_of(labels: Sequence[str]) -> str:
    """List some labels, for a message, and say how many more there are."""
    more = len(labels) - _LISTED
    return ", ".join(labels[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def _simplified(label: str) -> str:
    """Return a label without prefix, leading zeros and case."""
    return label.removeprefix("sub-").lstrip("0").lower()
