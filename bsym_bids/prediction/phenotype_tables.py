"""The tables of a BIDS dataset that say something of people: where they are, and their rows.

They are ``participants.tsv``, ``sessions.tsv`` (one per participant as BIDS has it, or one of all
at the root, or both: they count as one table), and ``phenotype/*.tsv``. Files are read as UTF-8,
with or without a byte-order mark, with any line ends, and only the columns that are asked for are
kept. Labels may have their prefix ``sub-`` or ``ses-`` or not.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NamedTuple

from bsym_bids.errors import BadDataError
from bsym_bids.inputs.files import check_present, is_there
from bsym_bids.untrusted import open_regular, read_json

PARTICIPANTS, SESSIONS, PHENOTYPE = "participants.tsv", "sessions.tsv", "phenotype"
PARTICIPANT_ID, SESSION_ID = "participant_id", "session_id"
#: What tables are separated by in error, and what it is called.
_DELIMITERS = {",": "commas", ";": "semicolons", " ": "spaces"}
#: What stands for no label of a participant or session.
_NO_LABEL = ("", "n/a")


class Row(NamedTuple):
    """A cell of a table and whom it is of.

    Attributes
    ----------
    participant, session : str
        Labels without prefixes; the session may be empty.
    text : str
        The cell, without white space around it.
    where : str
        File and line.
    """

    participant: str
    session: str
    text: str
    where: str


@dataclass(frozen=True, eq=False)
class PhenotypeTable:
    """One table, in one or several files.

    Attributes
    ----------
    name : str
        Path in the dataset, as in ``phenotype/panss.tsv``; ``sessions.tsv`` for all of these.
    paths : tuple of Path
        Its files.
    sidecars : tuple of Path
        JSON files that describe its columns, the general ones first.
    """

    name: str
    paths: tuple[Path, ...]
    sidecars: tuple[Path, ...] = ()

    @property
    def short_name(self) -> str:
        """The name without folder and extension."""
        return Path(self.name).stem

    @property
    def source(self) -> Path:
        """The file; where there are several, their folder with ``sub-*`` for the participant."""
        first = self.paths[0]
        if len(self.paths) == 1:
            return first
        root = first.parents[0 if first.name == SESSIONS else 1]
        return root / "sub-*" / f"sub-*_{SESSIONS}"

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of all its files in order, without those of the labels.

        Raises
        ------
        BadDataError
            A file cannot be read, has another delimiter than tabs, or lacks the labels.
        """
        names: dict[str, None] = {}
        for path in self.paths:
            names |= dict.fromkeys(next(_lines(path))[1])
        return tuple(name for name in names if name not in (PARTICIPANT_ID, SESSION_ID, ""))

    def rows(self, column: str) -> list[Row]:
        """Read a column.

        Returns
        -------
        list of Row
            In the order of the files, which may be of other columns only.

        Raises
        ------
        BadDataError
            A file cannot be read, has rows of another length than the header, rows without a label,
            or the column twice.
        """
        return [row for path in self.paths for row in _rows(path, column)]

    def describe(self, column: str) -> Mapping[str, Any]:
        """Return what JSON says of a column, in the first file that names it; empty without.

        Raises
        ------
        BadDataError
            A file is not a JSON object.
        """
        entries = (_read_json(path).get(column) for path in self.sidecars)
        return next((entry for entry in entries if isinstance(entry, dict)), {})


def find_tables(bids_dir: Path) -> list[PhenotypeTable]:
    """Find the tables of a dataset, without reading any.

    Returns
    -------
    list of PhenotypeTable
        ``participants.tsv``, ``sessions.tsv``, then ``phenotype/*.tsv`` by name.
    """
    tables = []
    if is_there(bids_dir / PARTICIPANTS):
        tables.append(_table(PARTICIPANTS, bids_dir / PARTICIPANTS))
    folders = sorted(path for path in bids_dir.glob("sub-*") if path.is_dir())
    sessions = [folder / f"{folder.name}_{SESSIONS}" for folder in folders]
    sessions = [path for path in (bids_dir / SESSIONS, *sessions) if is_there(path)]
    if sessions:
        general = bids_dir / SESSIONS
        own = [path.with_suffix(".json") for path in sessions if path != general]
        sidecars = [path for path in (general.with_suffix(".json"), *own) if is_there(path)]
        tables.append(PhenotypeTable(SESSIONS, tuple(sessions), tuple(sidecars)))
    for path in sorted((bids_dir / PHENOTYPE).glob("*.tsv")):
        tables.append(_table(f"{PHENOTYPE}/{path.name}", path))
    return tables


def _table(name: str, path: Path) -> PhenotypeTable:
    sidecar = path.with_suffix(".json")
    return PhenotypeTable(name, (path,), (sidecar,) if is_there(sidecar) else ())


def _rows(path: Path, column: str) -> Iterator[Row]:
    lines = _lines(path)
    header = next(lines)[1]
    if column not in header:
        return
    for name in (PARTICIPANT_ID, SESSION_ID, column):
        if header.count(name) > 1:
            raise BadDataError(
                f"{path}: has the column {name} {header.count(name)} times",
                hint="rename or remove all but one",
            )
    of_one = _of_one(path)
    own = header.index(column)
    at = {name: header.index(name) for name in (PARTICIPANT_ID, SESSION_ID) if name in header}
    for number, cells in lines:
        person = of_one or cells[at[PARTICIPANT_ID]].removeprefix("sub-")
        session = cells[at[SESSION_ID]].removeprefix("ses-") if SESSION_ID in at else ""
        session = "" if session.lower() in _NO_LABEL else session
        if person.lower() in _NO_LABEL or (not session and _is_of_sessions(path)):
            name = PARTICIPANT_ID if person.lower() in _NO_LABEL else SESSION_ID
            raise BadDataError(
                f"{path}, line {number}: has no {name}", hint="label the row or remove it"
            )
        yield Row(person, session, cells[own], f"{path}, line {number}")


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the cells of each line, the header first, without empty lines."""
    check_present([path])
    header: list[str] | None = None
    try:
        with open_regular(path) as raw:
            stream = TextIOWrapper(raw, encoding="utf-8-sig", newline="")
            reader = csv.reader(stream, delimiter="\t", strict=True)
            for line in reader:
                cells = [cell.strip() for cell in line]
                if not any(cells):
                    continue
                if header is None:
                    header = cells
                    _check_header(path, header)
                # Short rows have to be seen: a reader that fills them up shifts nothing, but hides
                # that a row was torn apart.
                if len(cells) != len(header):
                    raise BadDataError(
                        f"{path}, line {reader.line_num}: has {len(cells)} cells instead of "
                        f"{len(header)}",
                        hint="separate cells by one tab each, and write n/a where there is nothing",
                    )
                yield reader.line_num, cells
    except UnicodeDecodeError as error:
        raise BadDataError(
            f"{path}: is not UTF-8: {error}", hint="save it as text in UTF-8, separated by tabs"
        ) from error
    except (OSError, ValueError, csv.Error) as error:
        raise BadDataError(f"{path}: cannot be read as a table: {error}") from error
    if header is None:
        raise BadDataError(f"{path}: is empty", hint="write a header line and a row for each label")


def _check_header(path: Path, header: list[str]) -> None:
    required = [SESSION_ID] if _is_of_sessions(path) else []
    required += [] if _of_one(path) else [PARTICIPANT_ID]
    missing = [name for name in required if name not in header]
    if not missing:
        return
    for delimiter, name in _DELIMITERS.items():
        if any(missing[0] in map(str.strip, cell.split(delimiter)) for cell in header):
            raise BadDataError(
                f"{path}: is separated by {name}, not by tabs",
                hint="save it as tab-separated text",
            )
    raise BadDataError(
        f"{path}: has no column {missing[0]}; its columns are {', '.join(header[:10])}",
        hint=f"name the column of the labels {missing[0]}",
    )


def _is_of_sessions(path: Path) -> bool:
    return bool(_of_one(path)) or (path.name == SESSIONS and path.parent.name != PHENOTYPE)


def _of_one(path: Path) -> str:
    """Return the participant that a file of sessions is of; empty for a table of all."""
    name = path.name
    if name.startswith("sub-") and name == f"{path.parent.name}_{SESSIONS}":
        return path.parent.name.removeprefix("sub-")
    return ""


def _read_json(path: Path) -> Mapping[str, Any]:
    check_present([path])
    try:
        document = read_json(path)
    except (OSError, ValueError) as error:
        raise BadDataError(
            f"{path}: cannot be read as JSON: {error}", hint="mend it or take it away"
        ) from error
    if not isinstance(document, dict):
        raise BadDataError(f"{path}: is not a JSON object", hint="mend it or take it away")
    return document
