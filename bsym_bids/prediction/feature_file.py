"""The file that features are kept in: HDF5, a group for each kind of features.

A group has ``values``, a row per run or scan in single precision, with a chunk and a checksum to
each, and ``index``, a JSON text that says what files each row was made of.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bsym_bids.errors import OutputIOError
from bsym_bids.untrusted import parse_json

if TYPE_CHECKING:
    import h5py

#: Of the file; those of another layout are made anew.
LAYOUT = 1
#: Sources of a row, relative to the dataset.
Key = tuple[str, ...]
_COPIED_ROWS = 64
_READING_ERRORS = (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError)


class DamagedError(OutputIOError):
    """The file cannot be read: by itself no harm, as it can be made anew."""

    def __init__(self, file: object, reason: object) -> None:
        super().__init__(f"{file}: cannot be read: {reason}", "see to the disk it is on")


@dataclass(frozen=True)
class Entry:
    """What a row was made of.

    Attributes
    ----------
    states : tuple of (int, int)
        Size and time of modification (ns) of each source.
    digests : tuple of str
        SHA-256 of each.
    seen : int
        When the sources were read, in ns as the times of modification.
    row : int
        Row of the matrix; -1 for none.
    problem : str
        Why these sources give no row; empty where they do.
    """

    states: tuple[tuple[int, int], ...]
    digests: tuple[str, ...]
    seen: int
    row: int = -1
    problem: str = ""


Index = Mapping[Key, Entry]


def state_of(path: Path) -> tuple[int, int]:
    """Return size and time of modification (ns) of a file."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_file(path: Path) -> h5py.File | None:
    """Open a file for reading; None where there is none.

    Raises
    ------
    DamagedError
        It is no such file, or of another layout.
    PermissionError
        It may not be read.
    """
    import h5py

    try:
        # Files are never changed, so that nobody has to be kept out while one is read.
        file = h5py.File(path, "r", locking=False)
    except FileNotFoundError:
        return None
    except PermissionError:
        raise
    except OSError as error:
        raise DamagedError(path, error) from error
    try:
        layout = file.attrs.get("layout")
    except _READING_ERRORS as error:
        file.close()
        raise DamagedError(path, error) from error
    if layout != LAYOUT:
        file.close()
        raise DamagedError(path, f"its layout is {layout} instead of {LAYOUT}")
    return file


def version_of(file: h5py.File, kind: str) -> str:
    """Return the version of the code that made the rows of a kind."""
    return str(file[kind].attrs.get("version"))


def read_index(file: h5py.File | None, kind: str, version: str) -> Index:
    """Return the entries of a kind; none when another version of its code made them.

    Raises
    ------
    DamagedError
        The index cannot be read, or does not fit the rows.
    """
    try:
        if file is None or kind not in file or version_of(file, kind) != version:
            return {}
        group = file[kind]
        matrix = matrix_of(file, kind)
        n_rows = 0 if matrix is None else len(matrix)
        document = parse_json(group["index"][()].tobytes().decode())
        index = {tuple(parse_json(key)): _entry(**found) for key, found in document.items()}
    except _READING_ERRORS as error:
        raise DamagedError(_name(file), error) from error
    if not all(_is_entry(key, entry) for key, entry in index.items()):
        raise DamagedError(_name(file), f"the index of {kind} is not what was written")
    if any(not (0 <= entry.row < n_rows or entry.problem) for entry in index.values()):
        raise DamagedError(_name(file), f"rows of {kind} are not there")
    return index


def matrix_of(file: h5py.File | None, kind: str) -> h5py.Dataset | None:
    """Return the matrix (rows, F) of a kind; None where there is no row of it."""
    return file[kind]["values"] if file is not None and f"{kind}/values" in file else None


def read_rows(matrix: h5py.Dataset, rows: Sequence[int]) -> NDArray[np.float32]:
    """Return rows (n, F) of a matrix; their numbers increase.

    Raises
    ------
    DamagedError
        They cannot be read, or are not what was written.
    """
    first, last = rows[0], rows[-1]
    consecutive = last - first + 1 == len(rows)
    try:
        return matrix[slice(first, last + 1) if consecutive else list(rows)]
    except _READING_ERRORS as error:
        raise DamagedError(_name(matrix.file), error) from error


class Writer:
    """Writes the rows of a kind of features to a new file.

    Parameters
    ----------
    file : h5py.File
        Where to.
    kind, version : str
        Key of the kind, and version of its code.
    capacity : int
        Rows at most.

    Attributes
    ----------
    width : int or None
        Features of a row; None before there is one.
    """

    def __init__(self, file: h5py.File, kind: str, version: str, capacity: int) -> None:
        self.width: int | None = None
        self._kind = kind
        self._group = file.create_group(kind)
        self._group.attrs["version"] = version
        self._capacity = capacity
        self._n_rows = 0
        self._index: dict[Key, Entry] = {}

    def append(self, key: Key, row: NDArray[np.float32], entry: Entry) -> None:
        """Add a row (F,)."""
        self._add(row[None], [key], {key: entry})

    def note(self, key: Key, entry: Entry) -> None:
        """Add what gives no row."""
        self._index[key] = replace(entry, row=-1)

    def copy(self, matrix: h5py.Dataset | None, entries: Index) -> None:
        """Add entries of another file, with their rows of its matrix.

        Raises
        ------
        DamagedError
            It cannot be read.
        """
        for key, entry in entries.items():
            if entry.problem:
                self.note(key, entry)
        keys = sorted(
            (key for key, entry in entries.items() if not entry.problem),
            key=lambda key: entries[key].row,
        )
        for start in range(0, len(keys), _COPIED_ROWS):
            some = keys[start : start + _COPIED_ROWS]
            self._add(read_rows(matrix, [entries[key].row for key in some]), some, entries)

    def finish(self) -> None:
        """Write the index; a kind without entries is not kept."""
        if not self._index:
            del self._group.file[self._kind]
            return
        if self.width is not None:
            self._group["values"].resize(self._n_rows, axis=0)
        document = {json.dumps(key): asdict(entry) for key, entry in self._index.items()}
        text = np.frombuffer(json.dumps(document).encode(), np.uint8)
        self._group.create_dataset("index", data=text, chunks=text.shape, fletcher32=True)

    def _add(self, rows: NDArray[np.float32], keys: Sequence[Key], entries: Index) -> None:
        if self.width is None:
            self.width = rows.shape[1]
            self._group.create_dataset(
                "values",
                shape=(self._capacity, self.width),
                maxshape=(None, self.width),
                dtype=np.float32,
                chunks=(1, self.width),
                fletcher32=True,  # so that damage is found out
            )
        self._group["values"][self._n_rows : self._n_rows + len(rows)] = rows
        for row, key in enumerate(keys, start=self._n_rows):
            self._index[key] = replace(entries[key], row=row)
        self._n_rows += len(rows)


def _name(file: h5py.File | None) -> str:
    return file.filename if file else "features"


def _is_entry(key: Key, entry: Entry) -> bool:
    """Tell whether an entry is of the types that entries have."""
    numbers = (entry.seen, entry.row, *(number for state in entry.states for number in state))
    texts = (*key, *entry.digests, entry.problem)
    return all(type(n) is int for n in numbers) and all(isinstance(t, str) for t in texts)


def _entry(states: Any, digests: Any, seen: int, row: int, problem: str) -> Entry:
    return Entry(
        tuple((size, changed) for size, changed in states), tuple(digests), seen, row, problem
    )
