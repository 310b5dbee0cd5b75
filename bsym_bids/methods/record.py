"""The settings that a dataset was made under, kept on record one by one.

Each block of settings has a file of its own, ``logs/methods/<hash>.json``, named after what it
holds. Jobs that work on one dataset at the same time add theirs, and write the same where they ran
the same.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bsym_bids.errors import InputMissingError
from bsym_bids.methods.facts import Block, Facts
from bsym_bids.outputs.publish import explained, write_whole
from bsym_bids.outputs.tables import Json
from bsym_bids.untrusted import read_json

LOGGER = logging.getLogger("bsym_bids")
_FOLDER = "methods"


def folder_of(output_dir: Path) -> Path:
    """Return the folder of the record."""
    return output_dir / "logs" / _FOLDER


@contextmanager
def locked(output_dir: Path) -> Iterator[None]:
    """Keep other processes from the record and from the text while it is changed."""
    from filelock import FileLock

    if not output_dir.is_dir():
        raise InputMissingError(f"{output_dir}: no such folder")
    lock = output_dir / "logs" / ".methods.lock"
    with explained(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock)
        held.acquire()
    try:
        yield
    finally:
        held.release()


def add(output_dir: Path, facts: Facts) -> None:
    """Add settings to the record of a dataset, for a caller that has the lock.

    Parameters
    ----------
    output_dir : Path
        Root of the dataset.
    facts : Facts
        What was run; what is counted in it is not kept.

    Raises
    ------
    CannotCreateOutputError, OutputIOError
        The record cannot be written.
    """
    for block in facts.blocks:
        path = _path(output_dir, block.digest)
        if not path.is_file() or _read(path) is None:
            document = {"Aspect": block.aspect, "Settings": dict(block.settings)}
            write_whole(path, Json(document))


def replace(output_dir: Path, facts: Facts) -> None:
    """Make settings all that is on record, for a caller that has the lock."""
    add(output_dir, facts)
    kept = {_path(output_dir, block.digest) for block in facts.blocks}
    for path in folder_of(output_dir).glob("*.json"):
        if path not in kept:
            with explained(path):
                path.unlink(missing_ok=True)


def recall(output_dir: Path) -> Facts:
    """Read all settings that are on record.

    Returns
    -------
    Facts
        Without counts. Files that cannot be read are left out with a warning.
    """
    blocks = []
    for path in sorted(folder_of(output_dir).glob("*.json")):
        block = _read(path)
        if block is None:
            LOGGER.warning("%s: left out of the methods text: not what was written there", path)
        else:
            blocks.append(block)
    ordered = sorted(blocks, key=lambda block: (block.aspect, block.digest))
    return Facts(tuple(ordered), {}, is_counted=False)


def _path(output_dir: Path, digest: str) -> Path:
    return folder_of(output_dir) / f"{digest}.json"


def _read(path: Path) -> Block | None:
    """Return what a file holds; None if that is not what its name says."""
    try:
        document = read_json(path)
        block = Block(document["Aspect"], document["Settings"])
        return block if block.digest == path.stem and isinstance(block.settings, dict) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None
