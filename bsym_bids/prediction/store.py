"""Features of all runs and scans in one file, so that outputs are parsed once.

Text is slow to parse: a matrix of 450 x 450 takes tens of milliseconds, a thousand people minutes.
So every vector is kept. It counts as long as the files that it was made of have the same content:
files whose size and time of modification are as before are taken to be the same (as git does); of
others the SHA-256 is compared, and they are parsed only if it differs.

The file is never changed: an update writes a new one aside and renames it, so that whoever is
killed leaves the old one whole. What cannot be read of it is made anew.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bsym_bids.errors import BadDataError, BsymError
from bsym_bids.outputs.publish import explained
from bsym_bids.pool import workers
from bsym_bids.prediction.feature_file import (
    LAYOUT,
    DamagedError,
    Entry,
    Index,
    Key,
    Writer,
    digest_of,
    matrix_of,
    open_file,
    read_index,
    read_rows,
    state_of,
    version_of,
)
from bsym_bids.prediction.features import FeatureKind
from bsym_bids.prediction.inventory import Inventory, Record
from bsym_bids.prediction.records import Unit

if TYPE_CHECKING:
    import h5py

LOGGER = logging.getLogger("bsym_bids")
FILE_NAME = "features.h5"
Progress = Callable[[int, int], None]
#: A file that was changed less than this before it was read may have changed since, unseen: times
#: of modification are as coarse as this on some file systems.
_RACY_NS = 2_000_000_000
#: For fewer vectors it does not pay to start processes.
FEW = 24


@dataclass(frozen=True, eq=False)
class FeatureMatrix:
    """One kind of features of the units of a cohort.

    Attributes
    ----------
    kind : FeatureKind
        What they are.
    values : ndarray of float32, shape (N, F)
        NaN where a value is missing, and throughout for units without the features.
    present : ndarray of bool, shape (N,)
        Units that have any value.
    sources : tuple of tuple of Record
        The runs or scans that each unit's row is the mean of.
    problems : tuple of str
        Which files could not be used, and why.
    """

    kind: FeatureKind
    values: NDArray[np.float32]
    present: NDArray[np.bool_]
    sources: tuple[tuple[Record, ...], ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Use:
    """What became of a run or scan.

    Attributes
    ----------
    is_used : bool
        Whether any features come from it.
    problems : tuple of str
        Why others do not.
    """

    is_used: bool
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Plan:
    """What an update has to do for one kind of features.

    Attributes
    ----------
    asked : mapping
        Entries of what was asked for now that stay, as they are now.
    others : mapping
        Entries of the old file that were not asked for.
    missing : tuple
        Sources of rows that have to be made.
    is_changed : bool
        Whether anything is to be written.
    """

    asked: Index
    others: Index
    missing: tuple[Key, ...]
    is_changed: bool


@dataclass(frozen=True)
class _Made:
    """A vector and what it was made of; without the vector, why not; without both, not for good."""

    row: NDArray[np.float32] | None
    entry: Entry | None
    problem: str = ""


@dataclass(frozen=True)
class _Opened:
    """The file, up to date, and what it has of each kind."""

    file: h5py.File
    entries: Mapping[FeatureKind, Index]


class FeatureStore:
    """The features of a dataset, kept in a file.

    Safe to be used by several processes at once; they wait for each other while one of them parses.

    Parameters
    ----------
    path : Path
        The file; it is made with its folder when there is something to keep.
    output_dir : Path
        Root of the dataset that features are made of.
    """

    def __init__(self, path: Path, output_dir: Path) -> None:
        self.path = path
        self.output_dir = output_dir
        self._problems: dict[tuple[str, Key], str] = {}
        self._given_up: set[tuple[str, Key]] = set()  # for reasons that may pass: not kept

    def update(
        self,
        kinds: Sequence[FeatureKind],
        records: Sequence[Record],
        n_workers: int = 1,
        progress: Progress | None = None,
    ) -> None:
        """Make what is missing or out of date of several kinds at once.

        Quicker than kind by kind, as the file is written once.

        Parameters
        ----------
        kinds : sequence of FeatureKind
            Kinds of features.
        records : sequence of Record
            Runs and scans, of any modality.
        n_workers : int
            Processes that parse.
        progress : callable, optional
            Called with the number of vectors that are done, and of those that have to be made.

        Raises
        ------
        CannotCreateOutputError, OutputIOError
            The file cannot be written.
        """
        with self._open(kinds, records, n_workers, progress):
            pass

    def load(
        self,
        kind: FeatureKind,
        records: Sequence[Record],
        n_workers: int = 1,
        progress: Progress | None = None,
    ) -> NDArray[np.float32]:
        """Return features of runs or scans, made if need be; parameters as of `update`.

        Returns
        -------
        ndarray of float32, shape (n_records, F)
            NaN where a value is missing, and throughout where a record lacks the files or they
            cannot be used (see `problem`). F is 0 when no record has features.

        Raises
        ------
        CannotCreateOutputError, OutputIOError
            The file cannot be written.
        """
        return self._means(kind, [[[record]] for record in records], n_workers, progress)

    def unit_matrix(
        self,
        kind: FeatureKind,
        units: Sequence[Unit],
        inventory: Inventory,
        n_workers: int = 1,
        progress: Progress | None = None,
    ) -> FeatureMatrix:
        """Return features of units: means over runs or scans as `features.COMBINATION` says.

        Parameters
        ----------
        kind : FeatureKind
            Kind of features.
        units : sequence of Unit
            In the order of rows.
        inventory : Inventory
            What there is; it says what belongs to a unit (`Inventory.of_unit`).
        n_workers, progress
            As of `update`.

        Returns
        -------
        FeatureMatrix

        Raises
        ------
        CannotCreateOutputError, OutputIOError
            The file cannot be written.
        """
        mine = [
            [record for record in inventory.of_unit(unit, kind.modality) if kind.sources(record)]
            for unit in units
        ]
        values = self._means(kind, list(map(_by_session, mine)), n_workers, progress)
        problems = dict.fromkeys(self.problem(kind, r) for records in mine for r in records)
        return FeatureMatrix(
            kind,
            values,
            np.array([bool(np.isfinite(row).any()) for row in values], dtype=bool),
            tuple(tuple(r for r in records if not self.problem(kind, r)) for records in mine),
            tuple(text for text in problems if text),
        )

    def problem(self, kind: FeatureKind, record: Record) -> str:
        """Return why a record that was asked for has no features; empty where it has."""
        return self._problems.get((kind.key, self._key(kind, record)), "")

    def uses(
        self, kinds: Iterable[FeatureKind], records: Iterable[Record]
    ) -> dict[tuple[str, str], Use]:
        """Return what became of runs and scans that were asked for.

        Parameters
        ----------
        kinds : iterable of FeatureKind
            Kinds of features that were asked for of all of them.
        records : iterable of Record
            Runs and scans, of any modality.

        Returns
        -------
        dict of (str, str) to Use
            By modality and label. Of problems that hold each other's text, the shortest.
        """
        kinds = tuple(kinds)
        found = {}
        for record in records:
            problems = [self.problem(kind, record) for kind in kinds if self._key(kind, record)]
            told: list[str] = []
            for text in sorted(filter(None, problems), key=len):
                if not any(known in text for known in told):
                    told.append(text)
            found[record.modality, record.label] = Use(not all(problems), tuple(told))
        return found

    def _means(
        self,
        kind: FeatureKind,
        groups: Sequence[Sequence[Sequence[Record]]],
        n_workers: int,
        progress: Progress | None,
    ) -> NDArray[np.float32]:
        """Return a row per group of sessions of records: means within, then over sessions."""
        records = [record for sessions in groups for session in sessions for record in session]
        try:
            with self._open([kind], records, n_workers, progress) as opened:
                return self._read_means(opened, kind, groups)
        except DamagedError as error:
            with self._locked():
                self._discard(error)
        with self._open([kind], records, n_workers, progress) as opened:
            return self._read_means(opened, kind, groups)

    def _read_means(
        self,
        opened: _Opened | None,
        kind: FeatureKind,
        groups: Sequence[Sequence[Sequence[Record]]],
    ) -> NDArray[np.float32]:
        matrix = matrix_of(opened.file, kind.key) if opened else None
        width = 0 if matrix is None else matrix.shape[1]
        result = np.full((len(groups), width), np.nan, dtype=np.float32)
        if opened is None or matrix is None:
            return result
        entries = opened.entries[kind]

        def rows(session: Sequence[Record]) -> list[NDArray[np.float32]]:
            found = [entries.get(self._key(kind, record)) for record in session]
            numbers = sorted(entry.row for entry in found if entry and not entry.problem)
            return list(read_rows(matrix, numbers)) if numbers else []

        for number, sessions in enumerate(groups):
            means = [_mean_known(found) for session in sessions if (found := rows(session))]
            if means:
                result[number] = _mean_known(means)
        return result

    @contextmanager
    def _open(
        self,
        kinds: Sequence[FeatureKind],
        records: Sequence[Record],
        n_workers: int,
        progress: Progress | None,
    ) -> Iterator[_Opened | None]:
        """Bring the file up to date and yield it; None where there is nothing to keep."""
        wanted = {
            kind: tuple(dict.fromkeys(key for r in records if (key := self._key(kind, r))))
            for kind in kinds
        }
        if not any(wanted.values()):
            yield None
            return
        with self._locked():
            try:
                self._bring_up_to_date(wanted, n_workers, progress)
            except DamagedError as error:
                self._discard(error)
                self._bring_up_to_date(wanted, n_workers, progress)
            file = self._open_old()
        # It goes on being readable when another process puts a new one in its place.
        if file is None:
            yield None
            return
        with file:
            entries = {kind: read_index(file, kind.key, kind.version) for kind in kinds}
            for kind, keys in wanted.items():
                self._take_note(kind, keys, entries[kind])
            yield _Opened(file, entries)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        from filelock import FileLock, Timeout

        with explained(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        path = self.path.with_name(f".{self.path.name}.lock")
        lock = FileLock(path)
        with explained(path):
            try:
                lock.acquire(timeout=1)
            except Timeout:
                LOGGER.info("%s: waiting for another process that reads features", self.path)
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _bring_up_to_date(
        self,
        wanted: Mapping[FeatureKind, Sequence[Key]],
        n_workers: int,
        progress: Progress | None,
    ) -> None:
        file = self._open_old()
        try:
            plans = {kind: self._plan(file, kind, keys, n_workers) for kind, keys in wanted.items()}
            if any(plan.is_changed for plan in plans.values()):
                self._rewrite(file, plans, n_workers, progress)
        finally:
            if file is not None:
                file.close()

    def _plan(
        self, file: h5py.File | None, kind: FeatureKind, keys: Sequence[Key], n_workers: int
    ) -> _Plan:
        """Find out which rows can stay and which have to be made."""
        old = read_index(file, kind.key, kind.version)
        moved = self._is_of_another_place(file)
        known = {key: old[key] for key in keys if key in old}
        doubtful = [
            key for key, entry in known.items() if moved or not _is_trusted(entry, self._paths(key))
        ]
        with ThreadPoolExecutor(max(n_workers, 1)) as pool:  # hashing leaves the interpreter free
            checked = list(pool.map(lambda key: _check(known[key], self._paths(key)), doubtful))
        found = {**known, **dict(zip(doubtful, checked, strict=True))}
        asked = {key: entry for key, entry in found.items() if entry is not None}
        missing = tuple(
            key for key in keys if key not in asked and (kind.key, key) not in self._given_up
        )
        changed = moved or bool(missing) or any(asked[key] is not old[key] for key in asked)
        wanted = set(keys)
        others = {key: entry for key, entry in old.items() if key not in wanted}
        return _Plan(asked, others, missing, changed)

    def _rewrite(
        self,
        old: h5py.File | None,
        plans: Mapping[FeatureKind, _Plan],
        n_workers: int,
        progress: Progress | None,
    ) -> None:
        """Write the file anew: what stays of the old one, and what is made now."""
        import h5py

        part = self.path.with_name(f".{self.path.name}.part")
        jobs = [(kind, self._paths(key)) for kind, plan in plans.items() for key in plan.missing]
        names = {kind.key for kind in plans}
        try:
            with (
                _made_of(jobs, n_workers, progress) as made,
                explained(self.path),
                _as_system_errors(),
                h5py.File(part, "w", libver="latest", locking=False) as new,
            ):
                new.attrs.update({"layout": LAYOUT, "dataset": self._root})
                for kind, plan in plans.items():
                    self._write_kind(old, new, kind, plan, made)
                if old is not None:
                    for name in set(old) - names:
                        self._copy_kind(old, new, name)
            with explained(self.path):
                os.replace(part, self.path)
        finally:
            part.unlink(missing_ok=True)

    def _copy_kind(self, old: h5py.File, new: h5py.File, name: str) -> None:
        version = version_of(old, name)
        entries = self._still_there(read_index(old, name, version), old)
        writer = Writer(new, name, version, len(entries))
        writer.copy(matrix_of(old, name), entries)
        writer.finish()

    def _write_kind(
        self,
        old: h5py.File | None,
        new: h5py.File,
        kind: FeatureKind,
        plan: _Plan,
        made: Iterator[_Made],
    ) -> None:
        others = self._still_there(plan.others, old)
        capacity = len(plan.asked) + len(plan.missing) + len(others)
        writer = Writer(new, kind.key, kind.version, capacity)
        matrix = matrix_of(old, kind.key)
        writer.copy(matrix, plan.asked)
        for key in plan.missing:
            self._write_made(writer, kind, key, next(made))
        # Rows of another model, of whom was not asked for, give way.
        if matrix is None or writer.width in (None, matrix.shape[1]):
            writer.copy(matrix, others)
        writer.finish()

    def _write_made(self, writer: Writer, kind: FeatureKind, key: Key, made: _Made) -> None:
        if made.row is not None and made.entry is not None:
            if writer.width in (None, made.row.size):
                writer.append(key, made.row, made.entry)
                return
            given = f"gives {made.row.size} values where others give {writer.width}"
            made = _Made(None, None, f"{self._paths(key)[0]}: {given}")
        if made.entry is not None:
            writer.note(key, replace(made.entry, problem=made.problem))
        else:
            self._given_up.add((kind.key, key))
            self._note_problem(kind, key, made.problem)

    def _take_note(self, kind: FeatureKind, keys: Iterable[Key], entries: Index) -> None:
        """Remember the problems that the file has of what was asked for."""
        for key in keys:
            if key in entries:
                self._note_problem(kind, key, entries[key].problem)

    def _note_problem(self, kind: FeatureKind, key: Key, problem: str) -> None:
        known = self._problems.pop((kind.key, key), "")
        if problem:
            self._problems[kind.key, key] = problem
            if problem != known:
                LOGGER.warning("%s: left out: %s", kind.title, problem)

    def _still_there(self, entries: Index, old: h5py.File | None) -> Index:
        """Return the entries whose sources exist; times that were seen elsewhere tell nothing."""
        moved = self._is_of_another_place(old)
        return {
            key: replace(entry, seen=0) if moved else entry
            for key, entry in entries.items()
            if all(map(os.path.exists, self._paths(key)))
        }

    def _is_of_another_place(self, file: h5py.File | None) -> bool:
        return file is not None and file.attrs.get("dataset") != self._root

    def _open_old(self) -> h5py.File | None:
        """Open the file; None where there is none that can be read."""
        try:
            with explained(self.path):
                return open_file(self.path)
        except DamagedError as error:
            self._discard(error)
            return None

    def _discard(self, error: Exception) -> None:
        LOGGER.warning("%s; it is made anew", error)
        with explained(self.path):
            self.path.unlink(missing_ok=True)

    @property
    def _root(self) -> str:
        return str(self.output_dir.resolve())

    def _key(self, kind: FeatureKind, record: Record) -> Key:
        """Return what a record's features are made of; nothing where it has none."""
        if record.modality != kind.modality:
            return ()
        return tuple(path.relative_to(self.output_dir).as_posix() for path in kind.sources(record))

    def _paths(self, key: Key) -> tuple[Path, ...]:
        return tuple(self.output_dir / name for name in key)


@contextmanager
def _as_system_errors() -> Iterator[None]:
    """Turn what HDF5 raises when it can't write into errors of the operating system."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        number = re.search(r"errno = (\d+)", str(error))
        if number is None or getattr(error, "errno", None) is not None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


@contextmanager
def _made_of(
    jobs: Sequence[tuple[FeatureKind, tuple[Path, ...]]],
    n_workers: int,
    progress: Progress | None,
) -> Iterator[Iterator[_Made]]:
    """Yield the vectors in order, each made on one thread: the same with any number of workers."""
    from threadpoolctl import threadpool_limits

    reads, paths = [kind.read for kind, _ in jobs], [paths for _, paths in jobs]
    if n_workers > 1 and len(jobs) > FEW:
        with workers(min(n_workers, len(jobs))) as pool:
            yield _counted(pool.map(_make, reads, paths), len(jobs), progress)
    else:
        with threadpool_limits(1):
            yield _counted(map(_make, reads, paths), len(jobs), progress)


def _counted(made: Iterable[_Made], total: int, progress: Progress | None) -> Iterator[_Made]:
    for done, one in enumerate(made, start=1):
        if progress is not None:
            progress(done, total)
        yield one


def _make(
    read: Callable[[tuple[Path, ...]], NDArray[np.floating]], paths: tuple[Path, ...]
) -> _Made:
    """Make a vector, and say what it was made of."""
    try:
        entry = Entry(tuple(map(state_of, paths)), tuple(map(digest_of, paths)), time.time_ns())
        try:
            row = np.ravel(read(paths)).astype(np.float32)
        except BadDataError as error:  # so will it be as long as the files are the same
            return _Made(None, entry, str(error))
        if tuple(map(state_of, paths)) != entry.states:
            return _Made(None, None, f"{paths[0]}: changed while it was read")
    except (BsymError, OSError) as error:
        return _Made(None, None, str(error))
    if not row.size or np.isinf(row).any():
        return _Made(None, entry, f"{paths[0]}: gives no values, or some that are not finite")
    return _Made(row, entry)


def _is_trusted(entry: Entry, paths: Sequence[Path]) -> bool:
    """Tell whether a row counts by size and time of modification of its sources alone."""
    try:
        states = tuple(map(state_of, paths))
    except OSError:
        return False
    settled = all(changed < entry.seen - _RACY_NS for _, changed in states)
    return settled and states == entry.states


def _check(entry: Entry, paths: Sequence[Path]) -> Entry | None:
    """Return the entry of a row that counts by content, with times as they are now; else None."""
    try:
        seen = time.time_ns()
        states = tuple(map(state_of, paths))
        if tuple(map(digest_of, paths)) != entry.digests:
            return None
    except OSError:  # whoever parses says what is wrong
        return None
    as_before = states == entry.states and entry.seen > 0
    return entry if as_before else replace(entry, states=states, seen=seen)


def _by_session(records: Sequence[Record]) -> list[list[Record]]:
    sessions: dict[str, list[Record]] = {}
    for record in records:
        sessions.setdefault(record.session, []).append(record)
    return list(sessions.values())


def _mean_known(rows: Sequence[NDArray[np.floating]]) -> NDArray[np.floating]:
    """Return the mean of vectors (F,), of each value over those that have it."""
    if len(rows) == 1:
        return rows[0]
    total, count = np.zeros(rows[0].size), np.zeros(rows[0].size)
    for row in rows:
        known = np.isfinite(row)
        total += np.where(known, row, 0)
        count += known
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
