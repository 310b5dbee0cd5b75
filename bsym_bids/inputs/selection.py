"""Which participants, sessions, tasks, runs and scans the user wants."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsym_bids.errors import InputMissingError, NothingSelectedError, UsageError
from bsym_bids.untrusted import read_json

if TYPE_CHECKING:
    from bids.layout import Entity

    from bsym_bids.config import RunConfig

#: Queries that fMRIPrep's filter files may hold; ``bold``, ``dwi`` and ``t1w`` concern us.
_QUERIES = ("bold", "t1w", "t2w", "t2star", "flair", "sbref", "fmap", "dwi", "roi", "asl")
_USED = ("bold", "dwi", "t1w")


@dataclass(frozen=True)
class Selection:
    """What the user wants; empty means everything.

    Attributes
    ----------
    participants, sessions, tasks, runs : tuple of str
        Labels without their prefixes.
    filters : mapping
        PyBIDS filters for BOLD series, by PyBIDS's long entity names.
    dwi_filters, t1w_filters : mapping
        The same for diffusion series and T1-weighted images, see `fits`.
    """

    participants: Sequence[str] = ()
    sessions: Sequence[str] = ()
    tasks: Sequence[str] = ()
    runs: Sequence[str] = ()
    filters: Mapping[str, Any] = field(default_factory=dict)
    dwi_filters: Mapping[str, Any] = field(default_factory=dict)
    t1w_filters: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, config: RunConfig) -> Selection:
        """Collect what the settings of a run ask for; read the filter file when there is one."""
        path = config.bids_filter_file
        filters = {query: read_filter_file(path, query) if path else {} for query in _USED}
        return cls(
            participants=config.participant_label,
            sessions=config.session_label,
            tasks=config.task_id,
            runs=config.run_id,
            filters=filters["bold"],
            dwi_filters=filters["dwi"],
            t1w_filters=filters["t1w"],
        )

    @property
    def has_filters(self) -> bool:
        """Whether a filter file leaves something out."""
        return bool(self.filters or self.dwi_filters or self.t1w_filters)

    def takes_session(self, entities: Mapping[str, str]) -> bool:
        """Tell whether a diffusion scan with these entities is wanted.

        It has no task, and its runs are put together: only sessions choose among scans.
        """
        return not self.sessions or entities.get("ses") in self.sessions

    def takes(self, entities: Mapping[str, str]) -> bool:
        """Tell whether a run with these entities is wanted."""
        wanted = (("ses", self.sessions), ("task", self.tasks), ("run", self.runs))
        return all(
            not labels or plain(key, entities.get(key)) in {plain(key, label) for label in labels}
            for key, labels in wanted
        )

    def check_known(
        self, runs: Iterable[Mapping[str, str]], scans: Iterable[Mapping[str, str]] = ()
    ) -> None:
        """Complain about labels that no run of any participant has.

        Parameters
        ----------
        runs, scans : iterable of mapping
            Entities of BOLD runs, and of diffusion scans, of which sessions count.

        Raises
        ------
        NothingSelectedError
            A label is unknown; near ones are named.
        """
        known: dict[str, set[str]] = {"ses": set(), "task": set(), "run": set()}
        unknown = self._unknown(known)
        everyone = itertools.chain(
            ((entities, tuple(known)) for entities in runs),
            ((entities, ("ses",)) for entities in scans),
        )
        for entities, keys in everyone:
            if not unknown:  # nobody else has to be looked at
                return
            for key in keys:
                if key in entities and entities[key] not in known[key]:
                    known[key].add(entities[key])
                    unknown = self._unknown(known)
        if unknown:
            flag, key, label = unknown[0]
            raise unknown_label(flag, label, known[key])

    def _unknown(self, known: Mapping[str, set[str]]) -> list[tuple[str, str, str]]:
        """Return option, entity and label of what is asked for but is not among what is known."""
        flags = (
            ("--session-label", "ses", self.sessions),
            ("--task-id", "task", self.tasks),
            ("--run-id", "run", self.runs),
        )
        return [
            (flag, key, label)
            for flag, key, labels in flags
            for label in labels
            if plain(key, label) not in {plain(key, other) for other in known[key]}
        ]


def unknown_label(flag: str, label: str, known: Iterable[str]) -> NothingSelectedError:
    """Return the error for a label that does not exist."""
    known = sorted(known)
    near = difflib.get_close_matches(label, known, n=5, cutoff=0.5) or known[:10]
    hint = f"there is: {', '.join(near)}" if near else "there is none at all"
    return NothingSelectedError(f"{flag} {label}: not found", hint)


def plain(key: str, label: str | None) -> str | None:
    """Return a label as it is compared: runs are numbers, 1 is 01; sessions and tasks are names."""
    return str(int(label)) if key == "run" and label and label.isdecimal() else label


def read_filter_file(path: Path, query: str = "bold") -> dict[str, Any]:
    """Read the filters of one query from a file as fMRIPrep takes it.

    Parameters
    ----------
    path : Path
        JSON such as ``{"bold": {"task": "rest", "session": ["a", null]}}``. ``null`` and
        ``"Query.NONE"`` mean that the entity must be absent, ``"*"`` and ``"Query.ANY"`` that it
        may have any value.
    query : str
        ``bold``, ``dwi`` or ``t1w``.

    Returns
    -------
    dict
        Filters by PyBIDS's entity names; empty when the file has none for the query.
    """
    hint = 'for example: {"bold": {"task": "rest"}}'
    try:
        document = read_json(path)
    except FileNotFoundError:
        raise InputMissingError(f"{path}: no such filter file") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as JSON: {error}", hint) from error
    if not isinstance(document, dict) or not all(isinstance(v, dict) for v in document.values()):
        raise UsageError(f"{path}: is not a mapping of queries to filters", hint)
    for name in document:
        if name not in _QUERIES:
            raise UsageError(
                f"{path}: unknown query {name!r}", f"known: {', '.join(_QUERIES)}; {hint}"
            )
    filters = document.get(query, {})
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


def check_filters(query: str, filters: Mapping[str, Any]) -> None:
    """Refuse filters by what PyBIDS knows no entity of, as it does itself."""
    if not filters:
        return
    for name in filters:
        if name not in _pybids_entities():
            raise UsageError(
                f"the filters for {query} cannot be used: {name!r} is no entity",
                f'entities have their long names: {{"{query}": {{"acquisition": "x"}}}}',
            )


def fits(path: Path, filters: Mapping[str, Any], *, stated_only: bool = False) -> bool:
    """Tell whether a file is what filters ask for.

    Parameters
    ----------
    path : Path
        The file, in its folder.
    filters : mapping
        By PyBIDS's entity names, as `read_filter_file` returns them.
    stated_only : bool
        Let pass what the name does not state. Preprocessing drops entities from names (``run``
        and ``acq`` of what it put together), and a filter file may have been written for the raw
        data: only another value excludes a derivative.
    """
    if not filters:
        return True
    from bids.layout import parse_file_entities

    entities = parse_file_entities(_inside(path), entities=_pybids_entities().values())
    return all(
        (stated_only and key not in entities) or _fits(entities.get(key), wanted)
        for key, wanted in filters.items()
    )


def _inside(path: Path) -> str:
    """Return a file from the folder of its participant on: those above mean nothing."""
    parts = path.absolute().parts
    starts = [index for index, part in enumerate(parts[:-1]) if part.startswith("sub-")]
    return "/".join(("", *parts[starts[-1] if starts else 1 :]))


@cache
def _pybids_entities() -> Mapping[str, Entity]:
    """Return what PyBIDS tells files by, by its long names."""
    from bids.layout.models import Config

    configs = [Config.load(name) for name in ("bids", "derivatives")]
    return {name: entity for config in configs for name, entity in config.entities.items()}


def _fits(found: Any, wanted: Any) -> bool:
    """Tell whether an entity (None where it is absent) has a value that is asked for."""
    from bids.layout import Query

    if isinstance(wanted, list):
        return not wanted or any(_fits(found, one) for one in wanted)
    if isinstance(wanted, Query):
        return wanted is Query.OPTIONAL or (found is None) == (wanted is Query.NONE)
    if found is None:
        return False
    if isinstance(found, int) and str(wanted).isdecimal():
        return int(found) == int(wanted)
    return str(found).removeprefix(".") == str(wanted).removeprefix(".")
