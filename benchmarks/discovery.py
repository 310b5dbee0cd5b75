"""What it costs to plan a large dataset, for one participant and for all, and PyBIDS to index it.

    python benchmarks/discovery.py [--participants 2000] [--sessions 2] [--folder DIR]

makes a dataset of small files with derivatives of fMRIPrep and QSIPrep (or takes the one in DIR,
where it stays), plans it by ``bsym-bids --dry-run``, without and with a database, and indexes it
with PyBIDS as it is commonly done: all files of the dataset and its derivatives, without and with
the metadata of the sidecars. Each is a process of its own, of which everything counts: imports,
seconds by the clock and of processors, peak memory.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from measure import CommandCost, run_command

FMRIPREP = "derivatives/fmriprep"
QSIPREP = "derivatives/qsiprep"
_TEMPLATE = "MNI152NLin2009cAsym"
_SPACE = f"space-{_TEMPLATE}_res-2"
_TR = 0.8
_VOLUMES = 61
_CONFOUNDS = (
    *(f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"),
    *("csf", "white_matter", "global_signal", "framewise_displacement", "dvars"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--participants", type=int, default=2000)
    parser.add_argument("--sessions", type=int, default=2)
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where the dataset is to stay")
    parser.add_argument("--task", choices=("make", "files", "metadata"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder, size = arguments.folder, (arguments.participants, arguments.sessions)
    if arguments.task == "make":
        make_skeleton(folder, *size)
    elif arguments.task:
        index_with_pybids(folder, arguments.task == "metadata")
    else:
        with tempfile.TemporaryDirectory() as scratch:
            compare(folder or Path(scratch, "data"), Path(scratch), *size)


def compare(data: Path, scratch: Path, participants: int, sessions: int) -> None:
    few = scratch / "few"
    make(few, 20, sessions)
    if not (data / "participants.tsv").is_file():
        make(data, participants, sessions)
    database = ("--bids-database-dir", str(scratch / "database"))
    one = ("--participant-label", f"{participants // 2:05d}")
    plans = {
        "one participant of 20": (few, "--participant-label", "00010"),
        "one participant": (data, *one),
        "one participant, database": (data, *one, *database),
        "all": (data,),
        "all, database is made": (data, *database),
        "all, database is there": (data, *database),
    }
    costs = {}
    for name, (dataset, *options) in plans.items():
        costs[name] = plan(dataset, scratch / "out", *options)
        show(name, costs[name])
    for task, name in (("files", "PyBIDS, files"), ("metadata", "PyBIDS, files and metadata")):
        index = run(__file__, "--task", task, "--folder", data)
        show(name, index)
        for other in ("one participant", "all"):
            own = costs[other]
            print(
                f"    {other}: {index.seconds / own.seconds:.1f} times as fast, "
                f"{index.processor / own.processor:.1f} by processors, "
                f"1/{index.megabytes / own.megabytes:.1f} of the memory"
            )


def make(folder: Path, participants: int, sessions: int) -> None:
    size = ("--participants", participants, "--sessions", sessions)
    cost = run(__file__, "--task", "make", "--folder", folder, *size)
    show(f"making {participants} x {sessions} sessions", cost)


def show(name: str, cost: CommandCost) -> None:
    print(
        f"{name:28} {cost.seconds:7.1f} s {cost.processor:7.1f} s of processors "
        f"{cost.megabytes:6.0f} MB",
        flush=True,
    )


def plan(data: Path, out: Path, *options: str) -> CommandCost:
    """Plan a dataset by the command, and return what all of that cost."""
    call = ("-m", "bsym_bids.cli", data, out, "participant", "--dry-run", "--model", "bsym-sim-v1")
    return run(*call, *options)


def run(*arguments: object) -> CommandCost:
    """Run Python and return what it cost."""
    return run_command([sys.executable, *arguments])


def index_with_pybids(data: Path, metadata: bool) -> None:
    """Index all files of a dataset and its derivatives, in memory."""
    import warnings

    from bids.layout import BIDSLayout, BIDSLayoutIndexer

    warnings.simplefilter("ignore")
    indexer = BIDSLayoutIndexer(validate=False, index_metadata=metadata)
    derivatives = [data / FMRIPREP, data / QSIPREP]
    layout = BIDSLayout(data, validate=False, derivatives=derivatives, indexer=indexer)
    assert layout.get(suffix="bold", desc="preproc", scope="derivatives")


def make_skeleton(root: Path, participants: int, sessions: int = 2) -> int:
    """Make a dataset with one BOLD run, one diffusion series and one T1w in each session.

    Images hold a few voxels, everything else what planning reads of it.

    Parameters
    ----------
    root : Path
        Root of the raw dataset; derivatives of fMRIPrep and QSIPrep are made in it.
    participants, sessions : int
        How many, and of each of them.

    Returns
    -------
    int
        Number of files.
    """
    for folder, program in ((".", None), (FMRIPREP, "fMRIPrep"), (QSIPREP, "QSIPrep")):
        made = {"GeneratedBy": [{"Name": program, "Version": "24.1.0"}]} if program else {}
        description = {"Name": program or "raw", "BIDSVersion": "1.9.0", **made}
        path = root / folder / "dataset_description.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(description))
    labels = [f"{number:05d}" for number in range(1, participants + 1)]
    rows = [f"sub-{label}\t{20 + int(label) % 60}\n" for label in labels]
    (root / "participants.tsv").write_text("participant_id\tage\n" + "".join(rows))
    contents = _contents()
    names = (
        name for label in labels for name in (*_of_person(label), *_of_sessions(label, sessions))
    )
    return _write(root, names, contents) + 4


def _of_person(label: str) -> Iterator[str]:
    """Yield what the programs write once for all sessions of a participant."""
    sub = f"sub-{label}"
    yield f"{FMRIPREP}/{sub}.html"
    yield f"{FMRIPREP}/{sub}/figures/{sub}_dseg.svg"
    yield f"{QSIPREP}/{sub}.html"
    for folder, space, target in ((FMRIPREP, "", "T1w"), (QSIPREP, "space-ACPC_", "ACPC")):
        stem = f"{folder}/{sub}/anat/{sub}_"
        for tail in ("desc-preproc_T1w.nii.gz", "desc-preproc_T1w.json", "desc-brain_mask.nii.gz"):
            yield f"{stem}{space}{tail}"
        yield f"{stem}{space}dseg.nii.gz"
        yield f"{stem}from-{_TEMPLATE}_to-{target}_mode-image_xfm.h5"
    for tissue in ("GM", "WM", "CSF"):
        yield f"{FMRIPREP}/{sub}/anat/{sub}_label-{tissue}_probseg.nii.gz"
    yield f"{FMRIPREP}/{sub}/anat/{sub}_from-T1w_to-{_TEMPLATE}_mode-image_xfm.h5"


def _of_sessions(label: str, sessions: int) -> Iterator[str]:
    """Yield the files of all sessions of a participant."""
    for number in range(1, sessions + 1):
        place, stem = f"sub-{label}/ses-{number}", f"sub-{label}_ses-{number}"
        for tail in ("nii.gz", "json"):
            yield f"{place}/anat/{stem}_T1w.{tail}"
            yield f"{place}/func/{stem}_task-rest_bold.{tail}"
            yield f"{FMRIPREP}/{place}/func/{stem}_task-rest_{_SPACE}_desc-preproc_bold.{tail}"
            yield f"{FMRIPREP}/{place}/func/{stem}_task-rest_{_SPACE}_desc-brain_mask.{tail}"
        yield f"{FMRIPREP}/{place}/func/{stem}_task-rest_{_SPACE}_boldref.nii.gz"
        for tail in ("tsv", "json"):
            yield f"{FMRIPREP}/{place}/func/{stem}_task-rest_desc-confounds_timeseries.{tail}"
        for tail in ("nii.gz", "bval", "bvec", "json"):
            yield f"{place}/dwi/{stem}_dwi.{tail}"
            yield f"{QSIPREP}/{place}/dwi/{stem}_space-ACPC_desc-preproc_dwi.{tail}"
        yield f"{QSIPREP}/{place}/dwi/{stem}_space-ACPC_desc-brain_mask.nii.gz"
        yield f"{QSIPREP}/{place}/dwi/{stem}_space-ACPC_dwiref.nii.gz"


def _contents() -> dict[str, bytes]:
    """Return what files hold, by the end of their names; the first that fits counts."""
    import nibabel as nib
    import numpy as np

    image = nib.Nifti1Image(np.zeros((4, 4, 4, _VOLUMES), np.int16), np.eye(4))
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((2, 2, 2, _TR))
    documents = {
        "_bold.json": {"RepetitionTime": _TR, "TaskName": "rest", "SkullStripped": False},
        "_dwi.json": {"PhaseEncodingDirection": "j-", "TotalReadoutTime": 0.05},
        ".json": {"Sources": []},
    }
    rows = [0.0, *[1000.0] * (_VOLUMES - 1)]
    table = ["\t".join(_CONFOUNDS), *["\t".join(["0.01"] * len(_CONFOUNDS))] * _VOLUMES, ""]
    return {
        **{end: json.dumps(document).encode() for end, document in documents.items()},
        "_timeseries.tsv": "\n".join(table).encode(),
        ".bval": " ".join(map(str, rows)).encode(),
        ".bvec": "\n".join(" ".join(["0.577"] * _VOLUMES) for _ in range(3)).encode(),
        ".nii.gz": gzip.compress(image.to_bytes()),
        "": b"",
    }


def _write(root: Path, names: Iterable[str], contents: Mapping[str, bytes]) -> int:
    """Write files with what the ends of their names ask for; return how many."""
    count = 0
    for count, name in enumerate(names, 1):  # noqa: B007
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(next(content for end, content in contents.items() if name.endswith(end)))
    return count


if __name__ == "__main__":
    main()
