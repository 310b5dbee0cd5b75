"""Columns of the tables that say something of people: found by name, one text per label.

See `bsym_bids.prediction.phenotype_tables` for what the tables are, and
`bsym_bids.prediction.targets` for what becomes of a column.

A column is named as in its table; where no table has the name so, upper and lower case do not
matter. Where several tables have it, ``TABLE:COLUMN`` says which (``panss:total`` or
``phenotype/panss.tsv:total``); without, ``participants.tsv`` comes first, and of other tables none.
"""

from __future__ import annotations

import difflib
import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bsym_bids.errors import BadDataError, BsymError, InputMissingError, UsageError
from bsym_bids.prediction.phenotype_tables import PARTICIPANTS, PhenotypeTable, Row, find_tables

LOGGER = logging.getLogger("bsym_bids")
#: Cells that say that nothing is known, in any case, unless the JSON names them as a level.
MISSING = frozenset({"", "n/a", "na", "nan"})
#: Units in JSON that say nothing.
_NO_UNITS = frozenset({"", "n/a", "na", "none", "arbitrary"})
#: How many rows or names a message lists.
_LISTED = 5
#: How many names a misspelt one is compared with, and how much of it: either takes its time.
_COMPARED, _LONGEST_NAME = 2000, 100


@dataclass(frozen=True, eq=False)
class Column:
    """A column of a table.

    Attributes
    ----------
    name : str
        As in the table.
    source : Path
        The table; see `PhenotypeTable.source` for sessions.
    per_session : bool
        Whether it tells sessions apart.
    values : mapping of (str, str) to str
        Texts by participant and session, without prefixes; the session is empty in tables without.
        Who has a row is here, even if nothing is known of them.
    description, units : str
        As JSON says; empty where it does not.
    levels : mapping of str to str
        What JSON says of its values, in that order.
    rows : mapping of (str, str) to str
        File and line of each, for messages.
    """

    name: str
    source: Path
    per_session: bool
    values: Mapping[tuple[str, str], str]
    description: str = ""
    units: str = ""
    levels: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[tuple[str, str], str] = field(default_factory=dict)

    @cached_property
    def known(self) -> Mapping[tuple[str, str], str]:
        """`values` without those that are missing: empty, ``n/a``, ``NA``, ``NaN``."""
        return {key: text for key, text in self.values.items() if not is_missing(text, self.levels)}

    @property
    def label(self) -> str:
        """What the column is called in messages."""
        return f"{self.source}, column {self.name}"

    def where(self, keys: Iterable[tuple[str, str]]) -> str:
        """List some rows with their values, for a message."""
        keys = list(keys)
        said = [f"{self.values[key]!r} ({self.rows.get(key, key[0])})" for key in keys[:_LISTED]]
        more = len(keys) - len(said)
        return "; ".join(said) + (f"; and {more} more" if more else "")


def is_missing(text: str, levels: Mapping[str, str]) -> bool:
    """Tell whether a cell says that nothing is known; not so where it names a level."""
    return text.lower() in MISSING and (not text or text == "n/a" or text not in levels)


@dataclass(frozen=True, eq=False)
class Phenotypes:
    """The tables of a dataset; headers are read when a column is looked for, rows when it is found.

    Attributes
    ----------
    bids_dir : Path
        Root of the dataset.
    tables : tuple of PhenotypeTable
        At least one.
    """

    bids_dir: Path
    tables: tuple[PhenotypeTable, ...]

    def column(self, name: str) -> Column:
        """Read a column.

        Rows that are there twice count once. A cell without a value does not contradict another
        row that has one.

        Parameters
        ----------
        name : str
            ``COLUMN`` or ``TABLE:COLUMN``.

        Returns
        -------
        Column

        Raises
        ------
        UsageError
            No table has it, or several have it and none is ``participants.tsv``.
        BadDataError, InputMissingError
            A file cannot be read or was not downloaded, or rows of one label contradict another.
        """
        table, column = self._find(name)
        entry = table.describe(column)
        levels = _levels(entry, table, column)
        values, rows = _merge(table.rows(column), levels, f"{table.source}, column {column}")
        units = str(entry.get("Units", "")).strip()
        return Column(
            column,
            table.source,
            any(session for _, session in values),
            values,
            str(entry.get("Description", "")).strip(),
            "" if units.lower() in _NO_UNITS else units,
            levels,
            rows,
        )

    def optional(self, name: str) -> Column | None:
        """Read a column that may be absent, as those of usual confounds.

        Returns
        -------
        Column or None
            None also where several tables have it, with a warning.

        Raises
        ------
        BadDataError, InputMissingError
            As `column`.
        """
        own, _ = self._named(name)
        if not own:
            return None
        try:
            return self.column(name)
        except UsageError as error:
            LOGGER.warning("%s is not used: %s", name, error)
            return None

    @cached_property
    def _readable(self) -> tuple[tuple[PhenotypeTable, ...], tuple[BsymError, ...]]:
        """Tables whose header can be read, and what is wrong with the others."""
        readable: list[PhenotypeTable] = []
        errors: list[BsymError] = []
        for table in self.tables:
            try:
                _ = table.columns
            except (BadDataError, InputMissingError) as error:
                if table.name == PARTICIPANTS:
                    raise
                LOGGER.warning("left out: %s", error)
                errors.append(error)
                continue
            readable.append(table)
        return tuple(readable), tuple(errors)

    def _find(self, name: str) -> tuple[PhenotypeTable, str]:
        own, wanted = self._named(name)
        if not own:
            raise self._absent(name)
        spellings = sorted({column for _, column in own})
        if len(spellings) > 1:
            raise UsageError(
                f"{name}: several columns differ from it in upper and lower case only",
                hint=f"choose one of {', '.join(spellings)}",
            )
        if spellings[0] != wanted:
            LOGGER.warning("%s is taken for the column %s", name, spellings[0])
        if len(own) == 1:
            return own[0]
        tables = ", ".join(table.name for table, _ in own)
        example = f"{own[-1][0].short_name}:{spellings[0]}"
        if own[0][0].name != PARTICIPANTS:
            raise UsageError(
                f"{name}: is in several tables: {tables}",
                hint=f"say which, as in {example}",
            )
        LOGGER.warning(
            "%s is in %s: taken of %s; another is named as in %s",
            name,
            tables,
            PARTICIPANTS,
            example,
        )
        return own[0]

    def _named(self, name: str) -> tuple[list[tuple[PhenotypeTable, str]], str]:
        """Return the columns that a name fits, and the name without its table."""
        readable, _ = self._readable
        found = _matches(readable, name)
        if found or ":" not in name:
            return found, name
        table_name, _, column = name.partition(":")
        chosen = self._table(table_name)
        return ([], column) if chosen is None else (_matches([chosen], column), column)

    def _table(self, name: str) -> PhenotypeTable | None:
        """Return the table of a name, whole before short, those of the root first."""
        for table in self.tables:
            if table.name == name:
                return table
        return next((table for table in self.tables if table.short_name == name), None)

    def _absent(self, name: str) -> BsymError:
        readable, errors = self._readable
        if errors:  # it may be in what could not be read
            return type(errors[0])(
                f"{name}: is a column of no table that can be read; {errors[0]}", errors[0].hint
            )
        known = {column: table for table in readable for column in table.columns}
        wanted = name.rpartition(":")[2].lower()
        lower = {column.lower(): column for column in known}
        some = itertools.islice(lower, _COMPARED)
        close = difflib.get_close_matches(wanted[:_LONGEST_NAME], some, n=_LISTED, cutoff=0.5)
        near = [lower[found] for found in close] or sorted(known)[:10]
        names = [table.name for table in self.tables]
        without = "" if PARTICIPANTS in names else f"; there is no {PARTICIPANTS}"
        return UsageError(
            f"{self.bids_dir}: no table has a column {name!r}; looked at "
            f"{', '.join(names)}{without}",
            hint=f"there is: {', '.join(near)}" if near else "the tables have no columns",
        )


def read_phenotypes(bids_dir: Path) -> Phenotypes:
    """Find the tables of a dataset.

    Parameters
    ----------
    bids_dir : Path
        Root of the BIDS dataset.

    Returns
    -------
    Phenotypes

    Raises
    ------
    InputMissingError
        There is none.
    """
    tables = find_tables(bids_dir)
    if not tables:
        raise InputMissingError(
            f"{bids_dir}: has no participants.tsv, sessions.tsv or phenotype/*.tsv",
            hint=f"create {bids_dir / PARTICIPANTS}: tab-separated, with a column participant_id "
            "(sub-01, ...) and a column for each label to predict",
        )
    return Phenotypes(bids_dir, tuple(tables))


def _matches(tables: Sequence[PhenotypeTable], name: str) -> list[tuple[PhenotypeTable, str]]:
    """Return the columns of a name; where there is none, those that differ in case."""
    exact = [(table, name) for table in tables if name in table.columns]
    return exact or [
        (table, column)
        for table in tables
        for column in table.columns
        if column.lower() == name.lower()
    ]


def _levels(entry: Mapping[str, Any], table: PhenotypeTable, column: str) -> dict[str, str]:
    levels = entry.get("Levels", {})
    if not isinstance(levels, dict):
        LOGGER.warning(
            "%s: Levels of %s are ignored: they are no object", table.sidecars[0], column
        )
        return {}
    return {
        str(level).strip(): str(said.get("Description", "") if isinstance(said, dict) else said)
        for level, said in levels.items()
    }


def _merge(
    rows: Sequence[Row], levels: Mapping[str, str], label: str
) -> tuple[dict[tuple[str, str], str], dict[tuple[str, str], str]]:
    """Return the text of each label, and where it stands."""
    values: dict[tuple[str, str], str] = {}
    where: dict[tuple[str, str], str] = {}
    contradictions = []
    for row in rows:
        key = row.participant, row.session
        before = values.get(key)
        if before is None or is_missing(before, levels):
            values[key], where[key] = row.text, row.where
        elif not is_missing(row.text, levels) and not _same(before, row.text):
            contradictions.append(f"{before!r} ({where[key]}) and {row.text!r} ({row.where})")
    if contradictions:
        more = len(contradictions) - _LISTED
        raise BadDataError(
            f"{label}: rows of one label contradict each other: "
            + "; ".join(contradictions[:_LISTED])
            + (f"; and {more} more" if more > 0 else ""),
            hint="keep one row for each participant, or tell sessions apart by a column session_id",
        )
    return values, where


def _same(one: str, other: str) -> bool:
    """Tell whether two cells say the same: 27 and 27.0 do."""
    try:
        return one == other or float(one) == float(other)
    except ValueError:
        return False
