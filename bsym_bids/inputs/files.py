"""Names and folders of BIDS: entities, places, inheritance, and files that are not there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bsym_bids.errors import BadDataError, InputMissingError

_ENTITY = re.compile(r"[a-zA-Z]+-[a-zA-Z0-9+]+")


def entities_of(path: Path) -> dict[str, str]:
    """Split a BIDS name into its entities, in order; nothing is dropped.

    PyBIDS knows the entities of its configuration only; two files that differ in another one must
    not become one run.
    """
    parts = path.name.split("_")[:-1]
    return dict(part.split("-", 1) for part in parts if "-" in part)


def is_well_named(path: Path) -> bool:
    """Tell whether all of a name is entities, so that they tell it from every other file."""
    parts = path.name.split("_")[:-1]
    return len(entities_of(path)) == len(parts) and all(map(_ENTITY.fullmatch, parts))


def is_in_place(path: Path, root: Path, datatype: str) -> bool:
    """Tell whether a file is in the folder where its name belongs, and no copy put aside."""
    entities = entities_of(path)
    expected = [f"{key}-{entities[key]}" for key in ("sub", "ses") if key in entities]
    return path.relative_to(root).parts[:-1] == (*expected, datatype)


def join(entities: Mapping[str, str]) -> str:
    """Return entities as they are in a name."""
    return "_".join(f"{key}-{value}" for key, value in entities.items())


def in_order(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Return what sorts names as people do: run-2 before run-10."""
    parts = re.findall(r"\d+|\D+", path.name)
    numbered = [(int(p), "") if p.isdecimal() else (-1, p) for p in parts]
    return numbered, str(path)


def is_there(path: Path) -> bool:
    """Tell whether there is a file, or a link to content that is to be fetched."""
    return path.exists() or path.is_symlink()


def first_file(folder: Path, names: Iterable[str]) -> Path | None:
    """Return the first of some files that there is."""
    # A dangling link counts: its content is to be fetched, not done without.
    return next(filter(is_there, (folder / name for name in names)), None)


def check_present(paths: Iterable[Path | None]) -> None:
    """Complain about the first file whose content is not there.

    Raises
    ------
    InputMissingError
        A file is a link to content that has not been downloaded, or gone.
    """
    for path in paths:
        if path is not None and not path.exists():
            raise _absent(path)


def _absent(path: Path) -> InputMissingError:
    """Return the error for a file that the index or the folder lists but that is not there."""
    if path.is_symlink():
        return InputMissingError(f"{path}: not downloaded: datalad get {path}")
    return InputMissingError(f"{path}: no longer there: remove the index in --bids-database-dir")


def applying(path: Path, root: Path, *endings: str) -> Iterator[Path]:
    """Yield the files that apply to a series by BIDS's inheritance principle.

    Parameters
    ----------
    path : Path
        The series.
    root : Path
        Root of its dataset, above which nothing counts.
    endings : str
        How the names end: ``bold.json``.

    Yields
    ------
    Path
        The nearest first, in one folder the most specific first.
    """
    entities = entities_of(path).items()
    folder = path.parent
    while True:
        found = {
            other
            for ending in endings
            # Hidden are the ._ files of macOS, which copy the name but not the content.
            for other in folder.glob(f"[!.]*{ending[1:]}")
            if (other.name == ending or other.name.endswith(f"_{ending}"))
            and entities_of(other).items() <= entities
        }
        yield from sorted(found, key=lambda other: (-len(entities_of(other)), other.name))
        if folder == root or root not in folder.parents:
            return
        folder = folder.parent


def metadata(path: Path, root: Path, key: str, *endings: str) -> tuple[Any, Path] | None:
    """Return a field of the sidecars of a series, and the one it is from; None where none has it.

    Raises
    ------
    InputMissingError
        A sidecar is a link to content that is not there.
    BadDataError
        A sidecar cannot be read.
    """
    for sidecar in applying(path, root, *endings):
        value = _read_sidecar(sidecar).get(key)
        if value is not None:
            return value, sidecar
    return None


def _read_sidecar(path: Path) -> dict[str, Any]:
    check_present([path])
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadDataError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(document, dict):
        raise BadDataError(f"{path}: is not a JSON object")
    return document
