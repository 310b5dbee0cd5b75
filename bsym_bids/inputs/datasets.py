"""Datasets: is this BIDS, and which derivatives of fMRIPrep does it come with."""

from __future__ import annotations

import itertools
import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bsym_bids.errors import InputMissingError, NotBidsError
from bsym_bids.inputs.records import Derivatives

LOGGER = logging.getLogger("bsym_bids")
_LOOK_AT = 20  # participants that are looked into before a folder is said to hold no series


def check_bids(bids_dir: Path, skip_validation: bool) -> None:
    """Refuse an input folder that is no BIDS dataset.

    Raises
    ------
    InputMissingError
        The folder does not exist.
    NotBidsError
        Its ``dataset_description.json`` is absent or no JSON object, and validation is not skipped.
    """
    if not bids_dir.is_dir():
        raise InputMissingError(f"{bids_dir}: no such folder")
    path = bids_dir / "dataset_description.json"
    problem = ""
    try:
        if not isinstance(json.loads(path.read_text("utf-8")), dict):
            problem = "is not a JSON object"
    except FileNotFoundError:
        problem = "is absent"
    except (OSError, ValueError) as error:
        problem = f"cannot be read as JSON: {error}"
    if problem and not skip_validation:
        raise NotBidsError(
            f"{path}: {problem}, so this is no BIDS dataset",
            "is this the right folder? --skip-bids-validation goes on all the same",
        )
    if problem:
        LOGGER.warning("%s: %s", path, problem)


def find_derivatives(
    bids_dir: Path, named: Mapping[str, Path] | None = None
) -> tuple[Derivatives, ...]:
    """Return the derivative datasets to read.

    Parameters
    ----------
    bids_dir : Path
        The dataset.
    named : mapping of str to Path, optional
        Datasets that the user names: those are taken and no others.

    Returns
    -------
    tuple of Derivatives
        Those named; else those under ``bids_dir/derivatives`` that fMRIPrep says to have made, or
        that look like it; and ``bids_dir`` itself when it is one.

    Raises
    ------
    InputMissingError
        A named folder does not exist, or none is found.
    """
    if named:
        for name, path in named.items():
            if not path.is_dir():
                raise InputMissingError(f"--derivatives {name}={path}: no such folder")
        return tuple(Derivatives(_uri_name(name), path) for name, path in named.items())
    looked_at = [bids_dir, *_candidates(bids_dir / "derivatives")]
    found = [path for path in looked_at if _is_fmriprep(path)]
    if not found:
        listed = ", ".join(map(str, looked_at))
        raise InputMissingError(
            f"{bids_dir}: no fMRIPrep derivatives found (looked at {listed})",
            "name them: --derivatives fmriprep=PATH",
        )
    return tuple(Derivatives(_uri_name(path.resolve().name), path) for path in found)


def _candidates(folder: Path) -> list[Path]:
    """Return the folders below ``derivatives``, and those one level further down."""
    if not folder.is_dir():
        return []
    direct = sorted(
        p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "sub-"))
    )
    nested = [
        inner
        for outer in direct
        if not _has_participants(outer)
        for inner in sorted(outer.iterdir())
        if inner.is_dir()
    ]
    return direct + nested


def _is_fmriprep(folder: Path) -> bool:
    """Tell whether a folder holds what fMRIPrep writes, by its own word or by its files."""
    names = [name.lower() for name in _generators(folder / "dataset_description.json")]
    if any("fmriprep" in name for name in names):
        return True
    if "bsym-bids" in names:
        return False
    return any(_looks_like_series(path) for path in _some_files(folder))


def _generators(description: Path) -> list[str]:
    """Return the programs that say to have made a dataset."""
    document: Any = None
    try:
        document = json.loads(description.read_text("utf-8"))
    except (OSError, ValueError):
        return []
    if not isinstance(document, dict):
        return []
    generated = document.get("GeneratedBy", [])
    entries = [
        *(generated if isinstance(generated, list) else []),
        document.get("PipelineDescription"),
    ]
    return [str(entry["Name"]) for entry in entries if isinstance(entry, dict) and "Name" in entry]


def _has_participants(folder: Path) -> bool:
    return any(folder.glob("sub-*"))


def _some_files(folder: Path) -> Iterator[Path]:
    participants = (path for path in folder.glob("sub-*") if path.is_dir())
    for participant in itertools.islice(participants, _LOOK_AT):
        yield from participant.glob("func/*_bold.*")
        yield from participant.glob("ses-*/func/*_bold.*")


def _looks_like_series(path: Path) -> bool:
    return bool(re.search(r"_desc-preproc_bold\.nii(\.gz)?$|_bold\.dtseries\.nii$", path.name))


def _uri_name(name: str) -> str:
    """Return a name that BIDS URIs may hold."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name) or "derivatives"


def participants_of(folder: Path) -> set[str]:
    """Return the labels of the participant folders of a dataset."""
    return {p.name.removeprefix("sub-") for p in folder.glob("sub-*") if p.is_dir()}
