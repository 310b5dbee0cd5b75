"""Names and folders of BIDS: entities, places, inheritance, and files that are not there."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsym_bids.errors import BadDataError, InputMissingError
from bsym_bids.inputs.listing import ABSENT
from bsym_bids.untrusted import read_json

if TYPE_CHECKING:
    from bsym_bids.inputs.listing import Listing
    from bsym_bids.inputs.records import Derivatives

_ENTITY = re.compile(r"[a-zA-Z]+-[a-zA-Z0-9+]+")
#: How the file begins that git-annex leaves for content that is not here, and how long it may be.
_POINTER, _LONGEST_POINTER = b"/annex/objects/", 32768


def entities_of(path: Path) -> dict[str, str]:
    """Split a BIDS name into its entities, in order; nothing is dropped.

    PyBIDS knows the entities of its configuration only; two files that differ in another one must
    not become one run.
    """
    return _split(path.name)


def _split(name: str) -> dict[str, str]:
    return dict(part.split("-", 1) for part in name.split("_")[:-1] if "-" in part)


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


def first_file(listing: Listing, folder: Path, names: Iterable[str]) -> Path | None:
    """Return the first of some files that there is in a folder."""
    # A dangling link counts: its content is to be fetched, not done without.
    found = listing.look(folder)
    return next((folder / name for name in names if found.has(name)), None)


def check_present(paths: Iterable[Path | None]) -> None:
    """Complain about the first file whose content is not there.

    Raises
    ------
    InputMissingError
        A file is a link to content that has not been downloaded, or what git-annex leaves in its
        place, or gone.
    """
    for path in paths:
        if path is not None and (error := _absence(path)):
            raise error


def _absence(path: Path) -> InputMissingError | None:
    """Return what is wrong with a file that was listed, if its content is not there."""
    try:
        status = os.stat(path)
    except OSError as error:
        return _absent(path) if error.errno in ABSENT else None
    if stat.S_ISREG(status.st_mode) and status.st_size <= _LONGEST_POINTER and _is_pointer(path):
        return _not_downloaded(path)
    return None


def why_lost(folder: Path) -> InputMissingError:
    """Return the error for a folder that leads nowhere, or that may not be looked into."""
    try:
        os.stat(folder)
    except OSError as error:
        if error.errno in ABSENT:
            return _absent(folder)
    return InputMissingError(
        f"{folder}: may not be looked into",
        "ask for the right to read it; in a container, it has to be bound as well",
    )


def _absent(path: Path) -> InputMissingError:
    """Return the error for a file that was listed but is not there."""
    try:
        target = os.readlink(path)
    except OSError:
        return InputMissingError(
            f"{path}: no longer there", "it was a moment ago: run the same command again"
        )
    if "/annex/" in target.replace(os.sep, "/"):
        return _not_downloaded(path)
    return InputMissingError(
        f"{path}: a link to {target}, which is not there",
        "mount or copy what it leads to; in a container, the folder of the target as well",
    )


def _is_pointer(path: Path) -> bool:
    """Tell whether a small file is what git-annex leaves of an unlocked file without content."""
    try:
        with path.open("rb") as stream:
            return stream.read(len(_POINTER)) == _POINTER
    except OSError:
        return False  # whoever reads it says what is wrong


def _not_downloaded(path: Path) -> InputMissingError:
    return InputMissingError(f"{path}: not downloaded: datalad get {path}")


def applying(path: Path, dataset: Derivatives, *endings: str) -> Iterator[Path]:
    """Yield the files that apply to a series by BIDS's inheritance principle.

    Parameters
    ----------
    path : Path
        The series.
    dataset : Derivatives
        Its dataset, above whose root nothing counts.
    endings : str
        How the names end: ``bold.json``.

    Yields
    ------
    Path
        The nearest first, in one folder the most specific first.
    """
    entities = _split(path.name).items()
    folder = path.parent
    while True:
        names = {
            name
            for ending in endings
            for name in dataset.listing.look(folder).ending(ending)
            if (name == ending or name.endswith(f"_{ending}")) and _split(name).items() <= entities
        }
        for name in sorted(names, key=lambda name: (-len(_split(name)), name)):
            yield folder / name
        if folder == dataset.root or dataset.root not in folder.parents:
            return
        folder = folder.parent


def metadata(path: Path, dataset: Derivatives, key: str, *endings: str) -> tuple[Any, Path] | None:
    """Return a field of the sidecars of a series, and the one it is from; None where none has it.

    Raises
    ------
    InputMissingError
        A sidecar is a link to content that is not there.
    BadDataError
        A sidecar cannot be read.
    """
    for sidecar in applying(path, dataset, *endings):
        value = _read_sidecar(sidecar).get(key)
        if value is not None:
            return value, sidecar
    return None


def _read_sidecar(path: Path) -> dict[str, Any]:
    check_present([path])
    try:
        document = read_json(path)
    except (OSError, ValueError) as error:
        raise BadDataError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(document, dict):
        raise BadDataError(f"{path}: is not a JSON object")
    return document
