"""Trees named as BIDS, fMRIPrep and QSIPrep name them.

Discovery reads no image, so that the images are empty.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MNI2009 = "space-MNI152NLin2009cAsym"
MNI6 = "space-MNI152NLin6Asym"
CIFTI = "space-fsLR_den-91k"
TEMPLATE = "MNI152NLin2009cAsym"
FMRIPREP = {
    "Name": "fMRIPrep - fMRI PREProcessing workflow",
    "BIDSVersion": "1.4.0",
    "DatasetType": "derivative",
    "GeneratedBy": [{"Name": "fMRIPrep", "Version": "23.2.1"}],
}


QSIPREP = {
    "Name": "QSIPrep output",
    "BIDSVersion": "1.9.0",
    "DatasetType": "derivative",
    "GeneratedBy": [{"Name": "QSIPrep", "Version": "1.0.1"}],
}
#: b-values of a series with 8 directions, and of one without any.
DIRECTIONS = (0, 0, *(1000,) * 8)
NO_DIRECTIONS = (0, 5, 50)


def write(path: Path, content: Any = "") -> Path:
    """Write a file with text, or with JSON when it is anything else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def make_raw(root: Path, *participants: str) -> Path:
    """Make a BIDS dataset with a raw run of each participant."""
    write(root / "dataset_description.json", {"Name": "fake", "BIDSVersion": "1.8.0"})
    for label in participants:
        write(root / f"sub-{label}" / "func" / f"sub-{label}_task-rest_bold.nii.gz")
        write(root / f"sub-{label}" / "anat" / f"sub-{label}_T1w.nii.gz")
    return root


def make_fmriprep(root: Path, *runs: str, description: Any = FMRIPREP, **options: Any) -> Path:
    """Make an fMRIPrep dataset with some runs; ``description=None`` leaves it out."""
    root.mkdir(parents=True, exist_ok=True)
    if description is not None:
        write(root / "dataset_description.json", description)
    write(root / "logs" / "CITATION.md")
    for run in runs:
        add_run(root, run, **options)
    return root


def func_folder(dataset: Path, run: str) -> Path:
    """Return where the files of a run are."""
    parts = [part for part in run.split("_") if part.startswith(("sub-", "ses-"))]
    return dataset.joinpath(*parts, "func")


def series_name(run: str, form: str) -> str:
    """Return the name of a series in one form; the empty form is the scanner's own space."""
    stem = f"{run}_{form}" if form else run
    return f"{stem}_bold.dtseries.nii" if "den-" in form else f"{stem}_desc-preproc_bold.nii.gz"


def add_run(
    dataset: Path,
    run: str,
    forms: Sequence[str] = (f"{MNI2009}_res-2",),
    repetition_time: Any = 2.0,
    confounds: str = "timeseries",
) -> Path:
    """Add what fMRIPrep writes for one run, and return the folder.

    Parameters
    ----------
    dataset : Path
        The derivative dataset.
    run : str
        ``sub-01_ses-1_task-rest_run-1``.
    forms : sequence of str
        ``space-MNI152NLin6Asym_res-2``; empty for the scanner's own space; with ``den-`` CIFTI.
    repetition_time : optional
        For the sidecars of the series; None leaves it out of them.
    confounds : str
        Suffix of the confounds table; empty for none.
    """
    folder = func_folder(dataset, run)
    participant = run.split("_")[0]
    write(dataset / f"{participant}.html")
    write(dataset / participant / "figures" / f"{run}_desc-carpetplot_bold.svg")
    write(folder / f"{run}_desc-coreg_boldref.nii.gz")
    write(folder / f"{run}_hemi-L_space-fsaverage_bold.func.gii")
    metadata = {"TaskName": "rest"}
    if repetition_time is not None:
        metadata["RepetitionTime"] = repetition_time
    for form in forms:
        series = write(folder / series_name(run, form))
        write(series.with_name(series.name.split(".")[0] + ".json"), metadata)
        if "den-" not in form:
            write(folder / series.name.replace("desc-preproc_bold", "desc-brain_mask"))
            write(folder / series.name.replace("desc-preproc_bold", "boldref"))
    if confounds:
        write(folder / f"{run}_desc-confounds_{confounds}.tsv", "trans_x\n0\n")
        write(folder / f"{run}_desc-confounds_{confounds}.json", {})
    return folder


def add_dwi(
    dataset: Path,
    scan: str,
    bvals: Sequence[float] | None = DIRECTIONS,
    phase_encoding: str | None = "",
    kinds: Sequence[str] = ("bval", "bvec", "json"),
) -> Path:
    """Add a raw diffusion series with what belongs to it, and return the series.

    Parameters
    ----------
    dataset : Path
        The raw dataset.
    scan : str
        ``sub-01_ses-1_dir-AP_run-1``.
    bvals : sequence of float
        Its b-values.
    phase_encoding : str, optional
        For its sidecar, None for none; by default that of dir-AP and dir-PA.
    kinds : sequence of str
        The files beside it.
    """
    folder = func_folder(dataset, scan).with_name("dwi")
    if phase_encoding == "":
        phase_encoding = "j-" if "dir-AP" in scan else "j" if "dir-PA" in scan else None
    sidecar = {"PhaseEncodingDirection": phase_encoding} if phase_encoding else {}
    contents = {
        "bval": " ".join(map(str, bvals)),
        "bvec": "\n".join(" ".join(row * len(bvals)) for row in "100"),
        "json": sidecar,
    }
    for kind in kinds:
        write(folder / f"{scan}_dwi.{kind}", contents[kind])
    return write(folder / f"{scan}_dwi.nii.gz")


def make_qsiprep(root: Path, *scans: str, description: Any = QSIPREP, **options: Any) -> Path:
    """Make a QSIPrep dataset with some scans; ``description=None`` leaves it out."""
    root.mkdir(parents=True, exist_ok=True)
    if description is not None:
        write(root / "dataset_description.json", description)
    for scan in scans:
        add_qsiprep(root, scan, **options)
    return root


def add_qsiprep(dataset: Path, scan: str, form: str = "space-ACPC", mask: bool = True) -> Path:
    """Add what QSIPrep writes for one scan, and return the series."""
    folder = func_folder(dataset, scan).with_name("dwi")
    stem = f"{scan}_{form}" if form else scan
    write(folder / f"{stem}_dwiref.nii.gz")
    write(folder / f"{scan}_desc-confounds_timeseries.tsv", "trans_x\n0\n")
    for kind in ("bval", "bvec", "b", "json"):
        write(folder / f"{stem}_desc-preproc_dwi.{kind}", {} if kind == "json" else "0 1000\n")
    if mask:
        write(folder / f"{stem}_desc-brain_mask.nii.gz")
    return write(folder / f"{stem}_desc-preproc_dwi.nii.gz")


def add_anatomy(
    dataset: Path,
    stem: str,
    space: str = "",
    tails: Sequence[str] = ("mask", "probseg", "dseg", "xfm"),
) -> Path:
    """Add the anatomy that fMRIPrep writes (QSIPrep with ``space="ACPC"``); return the T1w."""
    folder = func_folder(dataset, stem).with_name("anat")
    whole = f"{stem}_space-{space}" if space else stem
    target = space or "T1w"
    names = {
        "mask": [f"{whole}_desc-brain_mask.nii.gz"],
        "probseg": [f"{whole}_label-{tissue}_probseg.nii.gz" for tissue in ("GM", "WM", "CSF")],
        "dseg": [f"{whole}_dseg.nii.gz"],
        "aseg": [f"{whole}_desc-aseg_dseg.nii.gz"],
        "aparcaseg": [f"{whole}_desc-aseg_dseg.nii.gz", f"{whole}_desc-aparcaseg_dseg.nii.gz"],
        "xfm": [
            f"{stem}_from-{one}_to-{other}_mode-image_xfm.h5"
            for one, other in ((TEMPLATE, target), (target, TEMPLATE))
        ],
        "other-xfm": [f"{stem}_from-MNI152NLin6Asym_to-{target}_mode-image_xfm.h5"],
    }
    for tail in tails:
        for name in names[tail]:
            write(folder / name)
    for name in ("desc-preproc_T1w", "desc-brain_mask", "dseg", "label-GM_probseg"):
        write(folder / f"{stem}_space-MNI152NLin2009cAsym_res-1_{name}.nii.gz")
    return write(folder / f"{whole}_desc-preproc_T1w.nii.gz")


def undownload(path: Path) -> Path:
    """Turn a file into what datalad leaves of it before ``datalad get``."""
    path.unlink()
    path.symlink_to("../../../.git/annex/objects/Xx/Yy/MD5E-s1--0.nii.gz/MD5E-s1--0.nii.gz")
    return path


def undownload_unlocked(path: Path) -> Path:
    """Turn a file into what git-annex leaves of an unlocked one that is not downloaded."""
    path.write_text("/annex/objects/MD5E-s1--0.nii.gz\n")
    return path
