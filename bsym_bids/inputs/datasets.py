"""Datasets: is this BIDS, and which derivatives of fMRIPrep and QSIPrep does it come with."""

from __future__ import annotations

import itertools
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bsym_bids.errors import InputMissingError, NotBidsError
from bsym_bids.inputs.files import check_present, is_there
from bsym_bids.inputs.listing import Listing
from bsym_bids.inputs.records import Derivatives
from bsym_bids.untrusted import read_json

LOGGER = logging.getLogger("bsym_bids")
_LOOK_AT = 20  # participants that are looked into before a folder is said to hold no series
_PARTICIPANT = re.compile(r"sub-[a-zA-Z0-9+]+")
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
        The folder does not exist, or the content of the file below is not there.
    NotBidsError
        Its ``dataset_description.json`` is absent or no JSON object, and validation is not skipped.
    """
    if not bids_dir.is_dir():
        raise InputMissingError(f"{bids_dir}: no such folder")
    path = bids_dir / "dataset_description.json"
    problem = ""
    if is_there(path) and not skip_validation:
        check_present([path])
    try:
        if not isinstance(read_json(path), dict):
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
    bids_dir: Path,
    named: Mapping[str, Path] | None = None,
    listing: Listing | None = None,
) -> tuple[Derivatives, ...]:
    """Return the derivative datasets to read.

    Parameters
    ----------
    bids_dir : Path
        The dataset.
    named : mapping of str to Path, optional
        Datasets that the user names: those are taken and no others.
    listing : Listing, optional
        What there is in folders.

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
    listing = listing or Listing()
    if named:
        for name, path in named.items():
            if not path.is_dir():
                raise InputMissingError(f"--derivatives {name}={path}: no such folder")
        return _with_names(named.items(), listing)
    found: dict[Path, Path] = {}
    for path in _looked_at(bids_dir, listing):
        if _is_read(path, listing):
            found.setdefault(path.resolve(), path)  # links may lead to the same dataset twice
    return _with_names(_folder_names(found.values()), listing)


def _looked_at(bids_dir: Path, listing: Listing) -> list[Path]:
    """Return the folders that may be derivative datasets."""
    return [bids_dir, *_candidates(bids_dir / "derivatives", listing)]


def nothing_found(bids_dir: Path, modalities: Sequence[str], listing: Listing) -> InputMissingError:
    """Return the error for a dataset in which there is nothing of what is wanted."""
    listed = ", ".join(map(str, _looked_at(bids_dir, listing)))
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


def raw_dataset(
    bids_dir: Path, derivatives: Sequence[Derivatives], listing: Listing
) -> Derivatives:
    """Return the record of the dataset itself, by a name that no derivative dataset has."""
    root = bids_dir.absolute()
    for dataset in derivatives:
        if dataset.root == root:
            return dataset
    named = [(dataset.name, dataset.root) for dataset in derivatives]
    return _with_names([*named, ("raw", root)], listing)[-1]


def _folder_names(paths: Iterable[Path]) -> list[tuple[str, Path]]:
    """Name datasets after their folders; those whose folders share a name, also the one above."""
    # A path such as ".." has no name of its own.
    named = [path if path.name not in ("", "..") else path.resolve() for path in paths]
    count = Counter(path.name for path in named)
    return [
        (path.name if count[path.name] == 1 else f"{path.parent.name}-{path.name}", path)
        for path in named
    ]


def _with_names(named: Iterable[tuple[str, Path]], listing: Listing) -> tuple[Derivatives, ...]:
    """Make the records, with names that BIDS URIs may hold and that no two datasets share."""
    datasets: dict[str, Derivatives] = {}
    for wanted, path in named:
        plain = re.sub(r"[^A-Za-z0-9._-]", "_", wanted) or "derivatives"
        numbered = (f"{plain}-{number}" for number in itertools.count(2))
        name = next(name for name in itertools.chain([plain], numbered) if name not in datasets)
        datasets[name] = Derivatives(name, path.absolute(), listing)
    return tuple(datasets.values())


def _candidates(folder: Path, listing: Listing) -> list[Path]:
    """Return the folders below ``derivatives``, and those one level further down."""
    direct = _folders(folder, listing)
    nested = [
        inner
        for outer in direct
        if not participant_folders(outer, listing)
        for inner in _folders(outer, listing)
    ]
    return direct + nested


def _folders(folder: Path, listing: Listing) -> list[Path]:
    """Return what may be datasets in a folder; none when it cannot be looked into."""
    names = listing.look(folder).folders
    return [folder / name for name in names if not name.startswith("sub-")]


def _is_read(folder: Path, listing: Listing) -> bool:
    """Tell whether a folder holds what fMRIPrep or QSIPrep write, by its word or by its files."""
    names = _generators(folder)
    # Programs that work on fMRIPrep's outputs keep its entry and put their own before it.
    if names and any(program in names[0] for program in _PROGRAMS):
        return True
    if "bsym-bids" in names:
        return False
    some = Derivatives("", folder, listing)
    files = itertools.chain(bold_files(some, _LOOK_AT), dwi_files(some, _LOOK_AT))
    if any(_SERIES.search(path.name) or _DIFFUSION.search(path.name) for path in files):
        return True
    # Many programs copy the anatomy they worked on: it counts only where none claims the dataset.
    anatomy = _files(some, "anat", "_T1w.", _LOOK_AT)
    return not names and any(_ANATOMY.search(path.name) for path in anatomy)


def is_qsiprep(dataset: Derivatives) -> bool:
    """Tell whether a derivative dataset is QSIPrep's, by its own word or by its files."""
    names = _generators(dataset.root)
    if names and any(program in names[0] for program in _PROGRAMS):
        return "qsiprep" in names[0]
    return any(_DIFFUSION.search(path.name) for path in dwi_files(dataset, _LOOK_AT))


def _generators(folder: Path) -> list[str]:
    """Return the programs that say to have made a dataset, in small letters."""
    document: Any = None
    try:
        document = read_json(folder / "dataset_description.json")
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


def participant_folders(folder: Path, listing: Listing) -> list[str]:
    """Return the names of what may be the folders of participants, sorted."""
    return [name for name in listing.look(folder).folders if name.startswith("sub-")]


def bold_files(dataset: Derivatives, participants: int | None = None) -> Iterator[Path]:
    """Yield what may be BOLD series of everybody, by name and place.

    Parameters
    ----------
    dataset : Derivatives
        The dataset.
    participants : int, optional
        Look into the folders of so many participants only.
    """
    return _files(dataset, "func", "_bold.", participants)


def dwi_files(dataset: Derivatives, participants: int | None = None) -> Iterator[Path]:
    """Yield what may be diffusion series of everybody, as `bold_files` does."""
    return _files(dataset, "dwi", DWI, participants)


#: Part of the names of diffusion series.
DWI = "_dwi.nii"


def _files(
    dataset: Derivatives, datatype: str, part: str, participants: int | None
) -> Iterator[Path]:
    for name in participant_folders(dataset.root, dataset.listing)[:participants]:
        yield from files_of(dataset, name.removeprefix("sub-"), datatype, part)


def files_of(dataset: Derivatives, label: str, datatype: str, part: str) -> Iterator[Path]:
    """Yield the files of a participant that are in a folder of their datatype.

    Parameters
    ----------
    dataset : Derivatives
        The dataset.
    label : str
        Label of the participant.
    datatype : str
        ``func``, ``dwi``, ``anat`` or ``fmap``.
    part : str
        What their names hold, beside ``sub-`` at the beginning.
    """
    for place in _places(dataset, label):
        for name in dataset.listing.look(place / datatype).files:
            if name.startswith("sub-") and part in name:
                yield place / datatype / name


def lost_folders(dataset: Derivatives, label: str, datatypes: Iterable[str]) -> Iterator[Path]:
    """Yield the folders of a participant that are there in name only, or may not be looked into.

    Parameters
    ----------
    dataset : Derivatives
        The dataset.
    label : str
        Label of the participant.
    datatypes : iterable of str
        What is wanted of the participant: ``func``, ``dwi``, ``anat``.
    """
    places = _places(dataset, label)
    for folder in (*places, *(place / name for place in places for name in datatypes)):
        if dataset.listing.is_lost(folder):
            yield folder


def _places(dataset: Derivatives, label: str) -> list[Path]:
    """Return the folder of a participant, and those of the sessions in it."""
    own = dataset.root / f"sub-{label}"
    names = dataset.listing.look(own).folders
    return [own, *(own / name for name in names if name.startswith("ses-"))]


def participants_of(dataset: Derivatives) -> set[str]:
    """Return the labels of the participant folders of a dataset."""
    names = participant_folders(dataset.root, dataset.listing)
    return {name.removeprefix("sub-") for name in names if _PARTICIPANT.fullmatch(name)}


def odd_participants(dataset: Derivatives) -> list[Path]:
    """Return the folders that are no participant's although they begin like one: ``sub-01_old``."""
    names = participant_folders(dataset.root, dataset.listing)
    return [dataset.root / name for name in names if not _PARTICIPANT.fullmatch(name)]
