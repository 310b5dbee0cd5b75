"""Datasets: is this BIDS, and which derivatives of fMRIPrep and QSIPrep does it come with."""

from __future__ import annotations

import itertools
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bsym_bids.errors import InputMissingError, NotBidsError
from bsym_bids.inputs.records import Derivatives

LOGGER = logging.getLogger("bsym_bids")
_LOOK_AT = 20  # participants that are looked into before a folder is said to hold no series
_LABEL = re.compile(r"[a-zA-Z0-9+]+")
# What fMRIPrep alone writes: XCP-D and others name their series desc-denoised and the like.
_SERIES = re.compile(
    r"_desc-preproc_bold\.nii(\.gz)?$|_den-[a-zA-Z0-9]+(_desc-preproc)?_bold\.dtseries\.nii$"
)
_DIFFUSION = re.compile(r"_space-(ACPC|T1w)_([a-zA-Z]+-[^_]+_)*desc-preproc_dwi\.nii(\.gz)?$")
_ANATOMY = re.compile(r"^(?!.*_space-(?!ACPC_)).*_desc-preproc_T1w\.nii(\.gz)?$")
_PROGRAMS = ("fmriprep", "smriprep", "qsiprep")


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
        Those named; else ``bids_dir`` itself when it is one, and those under
        ``bids_dir/derivatives`` that fMRIPrep or QSIPrep say to have made, or that look like it.
        Roots are absolute, names differ.

    Raises
    ------
    InputMissingError
        A named folder does not exist.
    """
    if named:
        for name, path in named.items():
            if not path.is_dir():
                raise InputMissingError(f"--derivatives {name}={path}: no such folder")
        return _with_names(named.items())
    found: dict[Path, Path] = {}
    for path in filter(_is_read, _looked_at(bids_dir)):
        found.setdefault(path.resolve(), path)  # links may lead to the same dataset twice
    return _with_names(_folder_names(found.values()))


def _looked_at(bids_dir: Path) -> list[Path]:
    """Return the folders that may be derivative datasets."""
    return [bids_dir, *_candidates(bids_dir / "derivatives")]


def nothing_found(bids_dir: Path, modalities: Sequence[str]) -> InputMissingError:
    """Return the error for a dataset in which there is nothing of what is wanted."""
    listed = ", ".join(map(str, _looked_at(bids_dir)))
    wanted = {"bold": "no fMRIPrep derivatives found", "dwi": "no diffusion series found"}
    absent = ", ".join(text for key, text in wanted.items() if key in modalities)
    names = {
        "bold": "name derivatives: --derivatives fmriprep=PATH",
        "dwi": "diffusion series are sub-<label>/[ses-<label>/]dwi/*_dwi.nii.gz in the dataset, "
        "or QSIPrep's: --derivatives qsiprep=PATH",
    }
    return InputMissingError(
        f"{bids_dir}: {absent} (looked at {listed})",
        "; ".join(text for key, text in names.items() if key in modalities),
    )


def raw_dataset(bids_dir: Path, derivatives: Sequence[Derivatives]) -> Derivatives:
    """Return the record of the dataset itself, by a name that no derivative dataset has."""
    root = bids_dir.absolute()
    for dataset in derivatives:
        if dataset.root == root:
            return dataset
    named = [(dataset.name, dataset.root) for dataset in derivatives]
    return _with_names([*named, ("raw", root)])[-1]


def _folder_names(paths: Iterable[Path]) -> list[tuple[str, Path]]:
    """Name datasets after their folders; those whose folders share a name, also the one above."""
    # A path such as ".." has no name of its own.
    named = [path if path.name not in ("", "..") else path.resolve() for path in paths]
    count = Counter(path.name for path in named)
    return [
        (path.name if count[path.name] == 1 else f"{path.parent.name}-{path.name}", path)
        for path in named
    ]


def _with_names(named: Iterable[tuple[str, Path]]) -> tuple[Derivatives, ...]:
    """Make the records, with names that BIDS URIs may hold and that no two datasets share."""
    datasets: dict[str, Derivatives] = {}
    for wanted, path in named:
        plain = re.sub(r"[^A-Za-z0-9._-]", "_", wanted) or "derivatives"
        numbered = (f"{plain}-{number}" for number in itertools.count(2))
        name = next(name for name in itertools.chain([plain], numbered) if name not in datasets)
        datasets[name] = Derivatives(name, path.absolute())
    return tuple(datasets.values())


def _candidates(folder: Path) -> list[Path]:
    """Return the folders below ``derivatives``, and those one level further down."""
    direct = _folders(folder)
    nested = [
        inner for outer in direct if not _has_participants(outer) for inner in _folders(outer)
    ]
    return direct + nested


def _folders(folder: Path) -> list[Path]:
    """Return what may be datasets in a folder; none when it cannot be looked into."""
    found = (path for path in folder.glob("*") if not path.name.startswith((".", "sub-")))
    return sorted(path for path in found if path.is_dir())


def _is_read(folder: Path) -> bool:
    """Tell whether a folder holds what fMRIPrep or QSIPrep write, by its word or by its files."""
    names = _generators(folder)
    # Programs that work on fMRIPrep's outputs keep its entry and put their own before it.
    if names and any(program in names[0] for program in _PROGRAMS):
        return True
    if "bsym-bids" in names:
        return False
    files = itertools.chain(bold_files(folder, _LOOK_AT), dwi_files(folder, _LOOK_AT))
    if any(_SERIES.search(path.name) or _DIFFUSION.search(path.name) for path in files):
        return True
    # Many programs copy the anatomy they worked on: it counts only where none claims the dataset.
    anatomy = _files(folder, "anat", "sub-*_T1w.*", _LOOK_AT)
    return not names and any(_ANATOMY.search(path.name) for path in anatomy)


def is_qsiprep(dataset: Derivatives) -> bool:
    """Tell whether a derivative dataset is QSIPrep's, by its own word or by its files."""
    names = _generators(dataset.root)
    if names and any(program in names[0] for program in _PROGRAMS):
        return "qsiprep" in names[0]
    return any(_DIFFUSION.search(path.name) for path in dwi_files(dataset.root, _LOOK_AT))


def _generators(folder: Path) -> list[str]:
    """Return the programs that say to have made a dataset, in small letters."""
    document: Any = None
    try:
        document = json.loads((folder / "dataset_description.json").read_text("utf-8"))
    except (OSError, ValueError):
        return []
    if not isinstance(document, dict):
        return []
    generated = document.get("GeneratedBy", [])
    entries = [
        *(generated if isinstance(generated, list) else []),
        document.get("PipelineDescription"),
    ]
    return [
        str(entry["Name"]).lower()
        for entry in entries
        if isinstance(entry, dict) and "Name" in entry
    ]


def _has_participants(folder: Path) -> bool:
    return any(folder.glob("sub-*"))


def bold_files(folder: Path, participants: int | None = None) -> Iterator[Path]:
    """Yield what may be BOLD series by name and place, without an index.

    Parameters
    ----------
    folder : Path
        Root of a dataset.
    participants : int, optional
        Look into so many participants only.
    """
    return _files(folder, "func", "sub-*_bold.*", participants)


def dwi_files(folder: Path, participants: int | None = None) -> Iterator[Path]:
    """Yield what may be diffusion series by name and place, as `bold_files` does."""
    return _files(folder, "dwi", "sub-*_dwi.nii*", participants)


def _files(folder: Path, datatype: str, pattern: str, participants: int | None) -> Iterator[Path]:
    people = sorted(path for path in folder.glob("sub-*") if path.is_dir())
    for participant in people[:participants]:
        yield from participant.glob(f"{datatype}/{pattern}")
        yield from participant.glob(f"ses-*/{datatype}/{pattern}")


def participants_of(folder: Path) -> set[str]:
    """Return the labels of the participant folders of a dataset."""
    return {p.name.removeprefix("sub-") for p in folder.glob("sub-*") if _is_participant(p)}


def odd_participants(folder: Path) -> list[Path]:
    """Return the folders that are no participant's although they begin like one: ``sub-01_old``."""
    return sorted(p for p in folder.glob("sub-*") if p.is_dir() and not _is_participant(p))


def _is_participant(folder: Path) -> bool:
    label = folder.name.removeprefix("sub-")
    return folder.is_dir() and _LABEL.fullmatch(label) is not None
