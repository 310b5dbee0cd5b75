"""The output dataset as a whole: may it be written here, and what describes it."""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from bsym_bids import __version__, atlas
from bsym_bids.errors import CannotCreateOutputError, OutputIOError
from bsym_bids.outputs.images import FileCopy
from bsym_bids.outputs.publish import explained, write_whole
from bsym_bids.outputs.tables import Json, Text
from bsym_bids.untrusted import read_json, read_text

LOGGER = logging.getLogger("bsym_bids")
NAME = "bsym-bids"
#: Folder in the work folder that holds the steps of a run, and that ``--clean-workdir`` empties.
WORK_ROOT = "bsym"
#: Suffixes of tables with a column for each ROI.
OF_ROIS = ("timeseries", "relmat")
#: Those that diffusion scans have.
OF_SCANS = ("relmat",)
BIDS_VERSION = "1.11.1"
# Folders have no trailing slash, or the validator walks into them. The names below are proposals
# (BEP012, BEP017, BEP038) or ours; `data/bids_schema` has a schema that knows them.
_BIDSIGNORE = (
    "work",
    "logs",
    "*_timeseries.*",
    "*_relmat.*",
    "*_embedding.*",
    "*_qc.*",
    "*_stat-coverage_bold.*",
    "*_dwiref.*",
    "*_tractogram.*",
    "*_scale-450_dseg.*",
    "atlas-*",
    "*_predictions.*",
    "*_stat.*",
    "*_figure.*",
    "*_desc-mean_boldref.*",
    "*_scale-450_desc-brain_mask.*",
    "*_dwimap.*",
    "*_tissues.*",
    "sub-*.html",
    "group_participants.*",
)
#: Names of datasets as BIDS URIs have them.
_LINK_NAME = re.compile(r"[A-Za-z0-9._-]+")
_README = """\
# bsym-bids outputs

Time series, functional and structural connectivity and BrainSymphony embeddings of the 450 ROIs of
the Schaefer 2018 (400 parcels, 7 networks) and Tian 2020 (scale III) atlases, made by bsym-bids.
The JSON file beside each table says what it holds and how it was made.
What could not be measured is `n/a`; no ROI is ever left out.
"""


def check_location(
    bids_dir: Path, output_dir: Path, work_dir: Path, database_dir: Path | None = None
) -> None:
    """Refuse folders to write in that would mix with the input or with another dataset.

    Parameters
    ----------
    bids_dir : Path
        The input.
    output_dir, work_dir : Path
        Output dataset and scratch folder.
    database_dir : Path, optional
        Where it is kept what there is in the input.

    Raises
    ------
    CannotCreateOutputError
        A folder is the input dataset, lies in its raw data, or is no folder; the output folder is
        the work folder, or holds a dataset of another program; or intermediate results would go
        where the input or the output is, or are another user's.
    """
    example = bids_dir / "derivatives" / "bsym"
    _check_outside(bids_dir, output_dir, "output", f"choose another, for example {example}")
    _check_outside(bids_dir, work_dir, "work", "choose another with --work-dir")
    if database_dir is not None:
        hint = "choose another with --bids-database-dir"
        _check_outside(bids_dir, database_dir, "database", hint)
    if work_dir.resolve() == output_dir.resolve():
        raise CannotCreateOutputError(
            f"{work_dir}: the work folder is the output folder",
            hint="choose a folder of its own with --work-dir",
        )
    steps = work_dir.resolve() / WORK_ROOT
    _check_owner(steps)
    for folder in (bids_dir, output_dir):
        if folder.resolve().is_relative_to(steps):
            raise CannotCreateOutputError(
                f"{work_dir}: the work folder keeps its files in {steps}, but {folder} is there",
                hint="choose another with --work-dir",
            )
    owner = _generator(output_dir / "dataset_description.json")
    if owner not in (None, NAME):
        raise CannotCreateOutputError(
            f"{output_dir}: already holds a dataset made by {owner}",
            hint=f"choose a folder of its own, for example {example}",
        )


def _check_owner(steps: Path) -> None:
    """Refuse intermediate results of another user: Nipype reads them in a way that runs code."""
    try:
        owner = os.stat(steps).st_uid
    except OSError:  # there are none yet, or they may not be looked at
        return
    if os.geteuid() not in (0, owner):
        raise CannotCreateOutputError(
            f"{steps}: belongs to another user, and intermediate results are for their user alone",
            hint="choose a folder of your own with --work-dir",
        )


def check_apart(derivatives: Path, output_dir: Path) -> None:
    """Refuse an output folder that is a derivative dataset of the input, or in a participant's.

    Raises
    ------
    CannotCreateOutputError
        Outputs would stand among the files they are made from.
    """
    inside = output_dir.resolve()
    root = derivatives.resolve()
    among = inside.is_relative_to(root) and inside.relative_to(root).parts[:1]
    if inside == root or (among and among[0].startswith("sub-")):
        raise CannotCreateOutputError(
            f"{output_dir}: the output folder lies in the derivatives that are read, {derivatives}",
            hint=f"choose a folder beside it, for example {derivatives.parent / 'bsym'}",
        )


def _check_outside(bids_dir: Path, folder: Path, role: str, hint: str) -> None:
    bids, resolved = bids_dir.resolve(), folder.resolve()
    if resolved == bids:
        raise CannotCreateOutputError(f"{folder}: the {role} folder is the input dataset", hint)
    if resolved.is_relative_to(bids) and resolved.relative_to(bids).parts[0] != "derivatives":
        raise CannotCreateOutputError(
            f"{folder}: the {role} folder lies inside the input data of {bids_dir}", hint
        )
    # os.path: a folder that may not be searched is `make_writable`'s to explain
    if os.path.exists(resolved) and not os.path.isdir(resolved):
        raise CannotCreateOutputError(f"{folder}: is a file, not a folder", hint)


def _generator(description: Path) -> str | None:
    """Return which program says to have made a dataset; None without a description."""
    if not os.path.isfile(description):
        return None
    try:
        document = read_json(description)
        return str(document["GeneratedBy"][0]["Name"])
    except (OSError, ValueError, LookupError, TypeError):
        return "an unknown program"


def make_writable(folder: Path) -> None:
    """Create a folder if need be and prove that files can be made in it.

    Raises
    ------
    CannotCreateOutputError
        The folder or a file in it cannot be created.
    OutputIOError
        The disk is full.
    """
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"bsym-bids")
            file.flush()
            os.fsync(file.fileno())


def check_space(folder: Path, needed: int) -> None:
    """Refuse to start when the disk under ``folder`` has fewer than ``needed`` bytes left."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputIOError(
            f"{folder}: {free / 1e6:.0f} MB free, but about {needed / 1e6:.0f} MB are needed",
            hint="make space, choose another folder (output_dir, --work-dir), or process fewer "
            "participants at once (--participant-label)",
        )


def describe_dataset(
    output_dir: Path, links: Mapping[str, Path], of_rois: Iterable[str] = ()
) -> None:
    """Write what every output dataset has: description, README, ignore list, atlas.

    Files that would not change are left as they are. Safe to call from several processes: the
    links of all are kept.

    Parameters
    ----------
    output_dir : Path
        Root of the output dataset.
    links : mapping of str to Path
        Input datasets by the name that BIDS URIs in the sidecars use.
    of_rois : iterable of str
        Suffixes of tables with a column for each ROI that there will be, of `OF_ROIS`: BIDS wants
        no description of what is not there.
    """
    from filelock import FileLock

    logs = output_dir / "logs"
    with explained(logs):
        logs.mkdir(parents=True, exist_ok=True)
    lock = logs / ".description.lock"
    with explained(lock), FileLock(lock):
        path = output_dir / "dataset_description.json"
        known = _read_links(path)
        _warn_of_moves(path, known, links)
        document = _description(known, links)
        if _read_json(path) != document:  # what says the same already is left as it is
            write_whole(path, Json(document))
        _write_text(output_dir / "README.md", _README)
        _ignore(output_dir / ".bidsignore")
        for source in atlas.table_path(), atlas.description_path():
            _copy(source, output_dir / source.name)
            _copy(source.with_suffix(".json"), output_dir / source.with_suffix(".json").name)
        for suffix in of_rois:
            described = output_dir / f"atlas-{atlas.LABEL}_scale-{atlas.SCALE}_{suffix}.json"
            if _read_json(described) != describe_rois():
                write_whole(described, Json(describe_rois()))


def describe_rois() -> dict[str, dict[str, str]]:
    """Return what the columns of ROIs are, for all tables that have them: BIDS lets them inherit.

    In every sidecar of its own it would be 40 kB.
    """
    sides = {"L": "left", "R": "right"}
    return {
        roi.name: {
            "Description": f"ROI {roi.index} of the atlas: {sides[roi.hemisphere]}, {roi.network}"
        }
        for roi in atlas.rois()
    }


def linked_folders(output_dir: Path) -> dict[str, str]:
    """Return the folders of the datasets that an output dataset was made from, by their names."""
    links = _read_links(output_dir / "dataset_description.json")
    folders = {name: path_of(uri) for name, uri in links.items()}
    # They are put into pages; other names, and other places, are not ours.
    return {
        name: folder
        for name, folder in folders.items()
        if _LINK_NAME.fullmatch(name) and folder.startswith("/")
    }


def path_of(uri: str) -> str:
    """Return the path that an address has; empty where it is none."""
    try:
        return unquote(urlparse(uri).path)
    except ValueError:  # of brackets without an end
        return ""


def _read_json(path: Path) -> Any:
    """Return what a file holds; None where it cannot be read."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None


def _read_links(path: Path) -> dict[str, str]:
    try:
        links = dict(_read_json(path).get("DatasetLinks", {}))
    except (ValueError, AttributeError, TypeError):
        return {}
    return {name: uri for name, uri in links.items() if isinstance(uri, str)}


def _warn_of_moves(path: Path, known: Mapping[str, str], links: Mapping[str, Path]) -> None:
    for name, folder in links.items():
        now = folder.resolve().as_uri()
        if known.get(name, now) != now:
            LOGGER.warning(
                "%s: %s was %s, now %s: if it was not moved, sidecars of earlier runs point "
                "to the wrong one; name it otherwise with --derivatives",
                path,
                name,
                known[name],
                now,
            )


def _description(known: Mapping[str, str], links: Mapping[str, Path]) -> dict[str, Any]:
    merged = {**known, **{name: path.resolve().as_uri() for name, path in links.items()}}
    return {
        "Name": "BrainSymphony embeddings",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": NAME, "Version": __version__}],
        "SourceDatasets": [{"URL": uri} for uri in merged.values()],
        "DatasetLinks": merged,
        "HowToAcknowledge": (
            "Please cite Khajehnejad et al. 2025 (arXiv 2506.18314), Schaefer et al. 2018 "
            "(doi:10.1093/cercor/bhx179) and Tian et al. 2020 (doi:10.1038/s41593-020-00711-6)."
        ),
    }


def _write_text(path: Path, text: str) -> None:
    if not os.path.lexists(path):
        write_whole(path, Text(text))


def _ignore(path: Path) -> None:
    """Name what BIDS does not know, beside what users or earlier versions have named."""
    with explained(path):
        # What a link leads to elsewhere is not for a dataset that others may get.
        is_own = path.is_file() and path.resolve().parent == path.parent.resolve()
        known = _lines(path) if is_own else []
        missing = [line for line in _BIDSIGNORE if line not in known]
        if missing:
            write_whole(path, Text("\n".join([*known, *missing]) + "\n"))


def _lines(path: Path) -> list[str]:
    try:
        return read_text(path).splitlines()
    except ValueError:  # it is not text: it is kept no longer
        return []


def _copy(source: Path, target: Path) -> None:
    if source.is_file() and not os.path.lexists(target):
        write_whole(target, FileCopy(source))
