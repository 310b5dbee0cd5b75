"""How files reach the output dataset: whole or not at all, and never mixed.

Files are written aside under a hidden name in their own folder and renamed when all of them are
complete. Each sidecar carries the fingerprint of the settings and inputs that made its file; a
group of files counts as done when every file is there and every sidecar has the fingerprint that
is expected. Sidecars are removed first and written last, so that a run killed in between leaves
files that count as not done.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bsym_bids.errors import DEVICE_ERRORS, CannotCreateOutputError, OutputIOError
from bsym_bids.outputs.names import sidecar_of
from bsym_bids.outputs.tables import Content, Json
from bsym_bids.untrusted import read_json

_OLD = 3600.0  # seconds after which nobody writes a part any more
FINGERPRINT_KEY = "Fingerprint"
#: Folders of an output dataset that are made here.
_OWN_FOLDERS = re.compile("(sub|ses)-.*|func|dwi|logs|methods")


@dataclass(frozen=True)
class OutputFile:
    """A data file and its sidecar, ready to be written.

    Attributes
    ----------
    path : Path
        Where the data file goes.
    content : Content
        What it holds.
    sidecar : mapping
        Metadata for the JSON beside it.
    """

    path: Path
    content: Content
    sidecar: Mapping[str, Any]


def fingerprint(*parts: Any) -> str:
    """Return a digest of JSON-like values: equal values, equal digest."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def file_identity(path: Path | None) -> list[Any]:
    """Return what tells one state of an input file from another: name, size, time of change."""
    if path is None:
        return []
    try:
        status = path.stat()
    except OSError:
        return [path.name]  # whoever reads it says what is wrong
    return [path.name, status.st_size, status.st_mtime_ns]


def is_complete(paths: Iterable[Path], expected: str) -> bool:
    """Tell whether all files are there and were made under the expected fingerprint."""
    # os.path: what may not be looked at counts as not there
    return all(os.path.isfile(path) and read_fingerprint(path) == expected for path in paths)


def read_fingerprint(path: Path) -> str | None:
    """Return the fingerprint in a data file's sidecar; None when there is none to read."""
    try:
        return read_json(sidecar_of(path)).get(FINGERPRINT_KEY)
    except (OSError, ValueError, AttributeError):
        return None


def publish(outputs: Sequence[OutputFile], expected: str, stale: Iterable[Path] = ()) -> None:
    """Write a group of files so that it appears as a whole.

    Parameters
    ----------
    outputs : sequence of OutputFile
        The files of the group.
    expected : str
        Fingerprint to put into every sidecar.
    stale : iterable of Path
        Data files that must not survive beside the new ones (their sidecars included).

    Raises
    ------
    CannotCreateOutputError
        A folder or file cannot be made.
    OutputIOError
        The disk is full or fails; nothing of the group is left behind.
    """
    stale = [*stale, *(output.path for output in outputs)]
    _remove_parts(stale)
    pending: list[tuple[Path, Path]] = []
    try:
        for output in outputs:
            with explained(output.path):
                make_folder(output.path.parent)
                pending.append(_write_aside(output.path, output.content))
        for output in outputs:
            document = {**output.sidecar, FINGERPRINT_KEY: expected}
            with explained(output.path):
                pending.append(_write_aside(sidecar_of(output.path), Json(document)))
        remove(stale)
        while pending:
            with explained(pending[0][1]):
                os.replace(*pending[0])
            pending.pop(0)
    finally:
        for part, _ in pending:
            part.unlink(missing_ok=True)


def remove(data_files: Iterable[Path]) -> None:
    """Remove data files and their sidecars, sidecars first."""
    data_files = list(data_files)
    for path in [*map(sidecar_of, data_files), *data_files]:
        with explained(path):
            path.unlink(missing_ok=True)


def _remove_parts(data_files: Iterable[Path]) -> None:
    """Remove what a killed run was writing when it died."""
    for path in data_files:
        for part in map(_part, (path, sidecar_of(path))):
            with explained(part):
                part.unlink(missing_ok=True)


def write_whole(path: Path, content: Content) -> None:
    """Write one file aside and rename it into place; several processes may write the same."""
    with explained(path):
        make_folder(path.parent)
        _remove_old_parts(path)
        part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
        try:
            content.write(part)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder for outputs, unless a folder on the way leads out of the dataset.

    An output dataset may be from someone else; what is written to it must not end up elsewhere.

    Parameters
    ----------
    folder : Path
        The folder.

    Raises
    ------
    CannotCreateOutputError
        A folder of the dataset is a link.
    OSError
        It cannot be made.
    """
    for one in (folder, *folder.parents):
        if not _OWN_FOLDERS.fullmatch(one.name):
            break
        if one.is_symlink():
            raise CannotCreateOutputError(
                f"{one}: is a link, and outputs are not written through links",
                hint="put a folder in its place, or choose another output folder",
            )
    folder.mkdir(parents=True, exist_ok=True)


def _remove_old_parts(path: Path) -> None:
    """Remove what killed processes were writing of a file."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > _OLD:
                part.unlink()


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _write_aside(path: Path, content: Content) -> tuple[Path, Path]:
    part = _part(path)
    try:
        content.write(part)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return part, path


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an operating system error while writing ``path`` into an explained one."""
    try:
        yield
    except OSError as error:
        if error.errno in DEVICE_ERRORS:
            raise OutputIOError(
                f"{path}: {error.strerror}",
                hint="make space, then run the same command again: finished files are kept",
            ) from error
        raise CannotCreateOutputError(
            f"{path}: {error.strerror or error}",
            hint="check the permissions of the output and work directories",
        ) from error
