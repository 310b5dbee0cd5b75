"""Trees named as fMRIPrep names them. Discovery reads no image, so that the images are empty."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MNI2009 = "space-MNI152NLin2009cAsym"
MNI6 = "space-MNI152NLin6Asym"
CIFTI = "space-fsLR_den-91k"
FMRIPREP = {
    "Name": "fMRIPrep - fMRI PREProcessing workflow",
    "BIDSVersion": "1.4.0",
    "DatasetType": "derivative",
    "GeneratedBy": [{"Name": "fMRIPrep", "Version": "23.2.1"}],
}


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


def undownload(path: Path) -> Path:
    """Turn a file into what datalad leaves of it before ``datalad get``."""
    path.unlink()
    path.symlink_to("../../../.git/annex/objects/Xx/Yy/MD5E-s1--0.nii.gz/MD5E-s1--0.nii.gz")
    return path
