"""Streamlines in MRtrix3's ``.tck`` files: read in pieces, put together, and turned into ``.trx``.

A file is a text header and triplets of floating point numbers: points in mm, a triplet of NaN after
each streamline, one of infinity at the end
(https://mrtrix.readthedocs.io/en/3.0.4/getting_started/image_data.html#tracks-file-format-tck).
Nothing here loops over streamlines, and nothing holds more than a piece of a file.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bsym_bids.errors import BadDataError, InputMissingError

_MAGIC = b"mrtrix tracks"
_LONGEST_HEADER = 1 << 20
_DTYPES = {"Float32LE": "<f4", "Float32BE": ">f4", "Float64LE": "<f8", "Float64BE": ">f8"}
_POINT = np.dtype("<f4").itemsize * 3
# Small enough for a processor's cache: larger pieces take longer, and memory in each process.
_PIECE_BYTES = 1 << 21
_COPY_BYTES = 1 << 22
_OWN_FIELDS = frozenset({"count", "datatype", "file"})
_DAMAGED = "the file is damaged or incomplete: make it again"


class Streamlines(NamedTuple):
    """Some streamlines.

    Attributes
    ----------
    points : ndarray of float32, shape (N, 3)
        Points of all streamlines, one after the other, in mm.
    offsets : ndarray of int64, shape (n + 1,)
        Streamline i has the points ``offsets[i]`` to ``offsets[i + 1]``; it may have none.
    """

    points: NDArray[np.float32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True)
class TckHeader:
    """What stands before the points.

    Attributes
    ----------
    dtype : numpy.dtype
        Type of the numbers on disk, byte order included.
    offset : int
        Bytes before the first point.
    count : int, optional
        Number of streamlines, as far as it is said.
    fields : mapping of str to str
        All other fields. Of those that come more than once, the last.
    """

    dtype: np.dtype
    offset: int
    count: int | None = None
    fields: Mapping[str, str] = field(default_factory=dict)


# --- reading -------------------------------------------------------------------------------------


def read_tck_header(path: Path) -> TckHeader:
    """Read the header of a ``.tck`` file.

    Raises
    ------
    InputMissingError
        There is no such file.
    BadDataError
        It is none, or of a type of numbers that the format doesn't have.
    """
    fields = _read_fields(path)
    try:
        dtype = np.dtype(_DTYPES[fields["datatype"]])
        name, offset = fields["file"].split()
        count = fields.get("count")
        header = TckHeader(
            dtype,
            int(offset),
            None if count is None else int(count),
            {key: value for key, value in fields.items() if key not in _OWN_FIELDS},
        )
    except (KeyError, ValueError) as error:
        raise BadDataError(
            f"{path}: the header of a .tck file has to say datatype, file and count; "
            f"not understood: {error}",
            hint=_DAMAGED,
        ) from error
    if not 0 <= header.offset <= path.stat().st_size or (header.count or 0) < 0:
        raise BadDataError(
            f"{path}: its points do not begin in the file, or their number is below 0",
            hint=_DAMAGED,
        )
    if name != ".":
        raise BadDataError(f"{path}: its points are in another file, {name}")
    return header


def _read_fields(path: Path) -> dict[str, str]:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise InputMissingError(f"{path}: no such file") from None
    with file:
        if file.readline(_LONGEST_HEADER).strip() != _MAGIC:
            raise BadDataError(f"{path}: is not a .tck file", hint="its first line says so")
        fields = {}
        while (line := file.readline(_LONGEST_HEADER)).strip() != b"END":
            if not line or file.tell() > _LONGEST_HEADER:
                raise BadDataError(f"{path}: the header has no end", hint=_DAMAGED)
            key, _, value = line.decode("utf-8", errors="replace").partition(":")
            fields[key.strip()] = value.strip()
    return fields


def read_tck(path: Path, piece_bytes: int = _PIECE_BYTES) -> Iterator[Streamlines]:
    """Yield the streamlines of a ``.tck`` file in pieces, in order.

    Parameters
    ----------
    path : Path
        The file, of any type of numbers and byte order that the format has.
    piece_bytes : int
        Bytes to read at a time. What is yielded differs in how it is divided only.

    Yields
    ------
    Streamlines
        Complete streamlines; one without points is one too.

    Raises
    ------
    InputMissingError, BadDataError
        As `read_tck_header`; the file ends before its end mark, or holds points that are not
        finite.
    """
    header = read_tck_header(path)
    n_numbers = 3 * max(1, piece_bytes // (3 * header.dtype.itemsize))
    rest = np.empty((0, 3), np.float32)
    with path.open("rb") as file:
        file.seek(header.offset)
        ended = False
        while not ended:
            numbers = np.fromfile(file, header.dtype, n_numbers)
            if len(numbers) < 3:
                raise BadDataError(f"{path}: ends without the mark of its end", hint=_DAMAGED)
            rows = numbers[: len(numbers) // 3 * 3].reshape(-1, 3).astype(np.float32, copy=False)
            marks = np.flatnonzero(~np.isfinite(rows[:, 0]))
            last = marks[np.isinf(rows[marks, 0])][:1]
            ended = bool(last.size)
            if ended:
                rows, marks = rows[: last[0]], marks[marks < last[0]]
            if not marks.size:
                rest = np.concatenate([rest, rows])
                continue
            streamlines = _without_marks(
                np.concatenate([rest, rows[: marks[-1] + 1]]), marks + len(rest)
            )
            rest = rows[marks[-1] + 1 :]
            if not np.isfinite(streamlines.points).all():
                raise BadDataError(f"{path}: holds points that are not finite", hint=_DAMAGED)
            yield streamlines
    if len(rest):
        raise BadDataError(f"{path}: its last streamline is not complete", hint=_DAMAGED)


def _without_marks(rows: NDArray[np.float32], marks: NDArray[np.int64]) -> Streamlines:
    kept = np.ones(len(rows), bool)
    kept[marks] = False
    ends = marks - np.arange(len(marks))
    return Streamlines(rows[kept], np.concatenate([[0], ends]))


# --- writing -------------------------------------------------------------------------------------


def write_tck(
    path: Path, streamlines: Streamlines, fields: Mapping[str, str] | None = None
) -> None:
    """Write a ``.tck`` file (Float32LE).

    Parameters
    ----------
    path : Path
        Where to.
    streamlines : Streamlines
        All of its streamlines.
    fields : mapping of str to str, optional
        Further fields for its header.
    """
    with path.open("wb") as file:
        file.write(_header(len(streamlines), fields or {}))
        file.write(_with_marks(streamlines))
        file.write(_end_mark())


def create_tck(path: Path, fields: Mapping[str, str] | None = None) -> None:
    """Write a ``.tck`` file without streamlines, for `append_tck`."""
    write_tck(path, Streamlines(np.empty((0, 3), np.float32), np.zeros(1, np.int64)), fields)


def append_tck(path: Path, source: Path, n_streamlines: int) -> None:
    """Append all streamlines of one ``.tck`` file to another.

    The file is complete before and after. When this is interrupted in between, `cut_tck` makes it
    complete again.

    Parameters
    ----------
    path : Path
        A file that `create_tck` began.
    source : Path
        Any ``.tck`` file.
    n_streamlines : int
        How many are in ``source``; who makes a file knows.

    Raises
    ------
    BadDataError
        ``source`` cannot be read.
    """
    target, header = read_tck_header(path), read_tck_header(source)
    with path.open("r+b") as file:
        file.seek(-_POINT, os.SEEK_END)
        if header.dtype == np.dtype("<f4") and _ends_with_mark(source):
            with source.open("rb") as points:
                points.seek(header.offset)
                shutil.copyfileobj(points, file, _COPY_BYTES)
        else:
            for piece in read_tck(source):
                file.write(_with_marks(piece))
            file.write(_end_mark())
        _put_count(file, target, (target.count or 0) + n_streamlines)
        file.flush()
        os.fsync(file.fileno())  # callers remove the source next


def cut_tck(path: Path, n_streamlines: int, n_bytes: int) -> None:
    """Take a file back to an earlier state, after its last ``append_tck`` was interrupted.

    Parameters
    ----------
    path : Path
        A file that `append_tck` works on.
    n_streamlines : int
        Streamlines it had.
    n_bytes : int
        Bytes that these take, separators included, see `points_size`.

    Raises
    ------
    BadDataError
        It has less than that.
    """
    header = read_tck_header(path)
    end = header.offset + n_bytes
    with path.open("r+b") as file:
        if file.seek(0, os.SEEK_END) < end:
            raise BadDataError(f"{path}: has less than {n_bytes} bytes of points", hint=_DAMAGED)
        file.truncate(end)
        file.seek(end)
        file.write(_end_mark())
        _put_count(file, header, n_streamlines)


def points_size(n_points: int, n_streamlines: int) -> int:
    """Return how many bytes streamlines take in a Float32 file, header and end mark left out."""
    return (n_points + n_streamlines) * _POINT


def _with_marks(streamlines: Streamlines) -> memoryview:
    """Return the bytes of streamlines, each with the mark of its end."""
    points = np.asarray(streamlines.points, dtype="<f4")
    return np.insert(points, streamlines.offsets[1:], np.nan, axis=0).data


def _header(count: int, fields: Mapping[str, str]) -> bytes:
    """Return a header of a length that doesn't depend on the count."""
    lines = [_MAGIC.decode(), f"count: {count:010d}", "datatype: Float32LE"]
    lines += [f"{key}: {value}" for key, value in fields.items() if key not in _OWN_FIELDS]
    text = "\n".join(lines).encode()
    end = len(text) + len("\nfile: . 0000000\nEND\n")
    return text + f"\nfile: . {end:07d}\nEND\n".encode()


def _put_count(file: BinaryIO, header: TckHeader, count: int) -> None:
    file.seek(0)
    text = _header(count, header.fields)
    if len(text) != header.offset:
        raise BadDataError(f"{file.name}: not begun by bsym-bids, its header cannot be changed")
    file.write(text)


def _end_mark() -> bytes:
    return np.full(3, np.inf, "<f4").tobytes()


def _ends_with_mark(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-_POINT, os.SEEK_END)
        return file.read() == _end_mark()


# --- TRX -----------------------------------------------------------------------------------------


def tck_to_trx(
    tck: Path,
    trx: Path,
    *,
    affine: NDArray[np.floating],
    shape: tuple[int, int, int],
    per_streamline: Mapping[str, NDArray[np.float32]] | None = None,
) -> None:
    """Convert a ``.tck`` file to a ``.trx`` file (https://github.com/tee-ar-ex/trx-spec).

    Points are copied as they are, float32. The memory it takes doesn't grow with the points, and
    nothing but the file itself is written: equal input gives equal bytes.

    Parameters
    ----------
    tck, trx : Path
        From and to.
    affine : ndarray, shape (4, 4)
        Of the image that the streamlines belong to.
    shape : tuple of int
        Its voxels along x, y, z.
    per_streamline : mapping of str to ndarray, optional
        (n,) each, to go with the streamlines, for example ``{"sift2": weights}``.

    Raises
    ------
    BadDataError
        The file cannot be read.
    """
    lengths = np.concatenate([np.diff(piece.offsets) for piece in read_tck(tck)] or [np.empty(0)])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype("<u8")
    header = {
        "DIMENSIONS": [int(size) for size in shape],
        "VOXEL_TO_RASMM": np.asarray(affine, dtype=float).tolist(),
        "NB_VERTICES": int(offsets[-1]),
        "NB_STREAMLINES": len(lengths),
    }
    with zipfile.ZipFile(trx, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_entry("header.json"), json.dumps(header))
        with archive.open(_entry("offsets.uint64"), "w", force_zip64=True) as file:
            file.write(offsets.tobytes())
        for name, values in (per_streamline or {}).items():
            with archive.open(_entry(f"dps/{name}.float32"), "w", force_zip64=True) as file:
                file.write(np.asarray(values, dtype="<f4").tobytes())
        with archive.open(_entry("positions.3.float32"), "w", force_zip64=True) as file:
            for piece in read_tck(tck):
                file.write(piece.points.astype("<f4", copy=False).tobytes())


def _entry(name: str) -> zipfile.ZipInfo:
    """Return an entry of an archive without the time of writing."""
    entry = zipfile.ZipInfo(name)
    entry.external_attr = 0o644 << 16
    return entry
