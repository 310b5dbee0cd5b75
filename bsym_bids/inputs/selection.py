"""Which participants, sessions, tasks and runs the user wants."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bsym_bids.errors import InputMissingError, NothingSelectedError, UsageError

#: Queries that fMRIPrep's filter files may hold; only ``bold`` concerns us.
_QUERIES = ("bold", "t1w", "t2w", "t2star", "flair", "sbref", "fmap", "dwi", "roi", "asl")


@dataclass(frozen=True)
class Selection:
    """What the user wants; empty means everything.

    Attributes
    ----------
    participants, sessions, tasks, runs : tuple of str
        Labels without their prefixes.
    filters : mapping
        PyBIDS filters for BOLD series, by PyBIDS's long entity names.
    """

    participants: Sequence[str] = ()
    sessions: Sequence[str] = ()
    tasks: Sequence[str] = ()
    runs: Sequence[str] = ()
    filters: Mapping[str, Any] = field(default_factory=dict)

    def takes(self, entities: Mapping[str, str]) -> bool:
        """Tell whether a run with these entities is wanted."""
        wanted = (("ses", self.sessions), ("task", self.tasks), ("run", self.runs))
        return all(
            not labels or _plain(key, entities.get(key)) in {_plain(key, label) for label in labels}
            for key, labels in wanted
        )

    def check_known(self, runs: Iterable[Mapping[str, str]]) -> None:
        """Complain about labels that no run of any participant has.

        Raises
        ------
        NothingSelectedError
            A label is unknown; near ones are named.
        """
        known: dict[str, set[str]] = {"ses": set(), "task": set(), "run": set()}
        for entities in runs:
            for key, labels in known.items():
                if key in entities:
                    labels.add(entities[key])
        flags = (
            ("--session-label", "ses", self.sessions),
            ("--task-id", "task", self.tasks),
            ("--run-id", "run", self.runs),
        )
        for flag, key, labels in flags:
            for label in labels:
                if _plain(key, label) not in {_plain(key, other) for other in known[key]}:
                    raise unknown_label(flag, label, known[key])


def unknown_label(flag: str, label: str, known: Iterable[str]) -> NothingSelectedError:
    """Return the error for a label that does not exist."""
    known = sorted(known)
    near = difflib.get_close_matches(label, known, n=5, cutoff=0.5) or known[:10]
    hint = f"there is: {', '.join(near)}" if near else "there is none at all"
    return NothingSelectedError(f"{flag} {label}: not found", hint)


def _plain(key: str, label: str | None) -> str | None:
    """Return a label as it is compared: runs are numbers, 1 is 01; sessions and tasks are names."""
    return str(int(label)) if key == "run" and label and label.isdecimal() else label


def read_filter_file(path: Path) -> dict[str, Any]:
    """Read the filters for BOLD series from a file as fMRIPrep takes it.

    Parameters
    ----------
    path : Path
        JSON such as ``{"bold": {"task": "rest", "session": ["a", null]}}``. ``null`` and
        ``"Query.NONE"`` mean that the entity must be absent, ``"*"`` and ``"Query.ANY"`` that it
        may have any value.

    Returns
    -------
    dict
        Filters by PyBIDS's entity names; empty when the file has none for ``bold``.
    """
    hint = 'for example: {"bold": {"task": "rest"}}'
    try:
        document = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputMissingError(f"{path}: no such filter file") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as JSON: {error}", hint) from error
    if not isinstance(document, dict) or not all(isinstance(v, dict) for v in document.values()):
        raise UsageError(f"{path}: is not a mapping of queries to filters", hint)
    for query in document:
        if query not in _QUERIES:
            raise UsageError(
                f"{path}: unknown query {query!r}", f"known: {', '.join(_QUERIES)}; {hint}"
            )
    filters = document.get("bold", {})
    if "subject" in filters:
        raise UsageError(f"{path}: filters by subject", "choose them with --participant-label")
    try:
        return {key: _query(value) for key, value in filters.items()}
    except ValueError as error:
        raise UsageError(f"{path}: {error}", hint) from error


def _query(value: Any) -> Any:
    """Return a value of a filter as PyBIDS takes it; raise ValueError when it is none."""
    from bids.layout import Query

    if isinstance(value, list):
        return [_query(entry) for entry in value]
    if value is None:
        return Query.NONE
    if value == "*":
        return Query.ANY
    if isinstance(value, dict):
        raise ValueError(f"{value!r} is no value of a filter")
    if isinstance(value, str) and value.startswith("Query."):
        name = value.removeprefix("Query.")
        if name not in Query.__members__:
            raise ValueError(f"unknown query {value!r}")
        return Query[name]
    return value
