"""A dataset of simulated people, in the shape that the participant level writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bsym_bids import __version__, atlas
from bsym_bids.errors import CannotCreateOutputError, UsageError
from bsym_bids.outputs.dataset import OF_ROIS, describe_dataset, make_writable
from bsym_bids.outputs.names import RunNames, sidecar_of
from bsym_bids.outputs.publish import write_whole
from bsym_bids.outputs.tables import Json, Matrix, Table
from bsym_bids.simulation.bold import draw_run
from bsym_bids.simulation.people import (
    OLDEST,
    YOUNGEST,
    draw_correlation,
    draw_streamline_counts,
)

SPACE = "MNI152NLin2009cAsym"
NOTICE = "Simulated: no person was measured."


def simulate_dataset(
    out: Path, n_participants: int, seed: int = 0, first: int = 1, seconds: float = 400.0
) -> list[str]:
    """Write simulated people: a denoised run, streamline counts and an age each.

    A participant's data depend on the seed and their number alone, not on how many there are.

    Parameters
    ----------
    out : Path
        Folder of the dataset, new or empty.
    n_participants : int
        How many.
    seed : int
        Not negative.
    first : int
        Number of the first participant.
    seconds : float
        Length of each run.

    Returns
    -------
    list of str
        Participants' labels.

    Raises
    ------
    UsageError
        For numbers out of range.
    CannotCreateOutputError
        When the folder is not empty or cannot be written to.
    """
    if n_participants < 1 or seed < 0 or first < 1 or not seconds >= 60:
        raise UsageError(
            "a simulation needs at least one participant, a first number above 0, a seed that is "
            "not negative and runs of at least 60 s"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CannotCreateOutputError(f"{out}: is not an empty folder", hint="name a new folder")
    make_writable(out)
    describe_dataset(out, {}, OF_ROIS)
    labels, ages = [], []
    for number in range(first, first + n_participants):
        rng = np.random.default_rng([seed, number])
        label = f"sim{number:04d}"
        age = round(float(rng.uniform(YOUNGEST, OLDEST)), 1)
        _write_run(out, label, age, seconds, rng)
        _write_connectome(out, label, age, rng)
        labels.append(label)
        ages.append(age)
    table = {"participant_id": [f"sub-{label}" for label in labels], "age": ages}
    write_whole(out / "participants.tsv", Table(table))
    write_whole(
        out / "participants.json",
        Json({"age": {"Description": f"Simulated age. {NOTICE}", "Units": "year"}}),
    )
    return labels


def _sidecar(description: str) -> dict[str, Any]:
    return {
        "Description": f"{description} {NOTICE}",
        "Simulated": True,
        "Sources": [],
        "SoftwareVersions": {"bsym-bids": __version__},
    }


def _write(path: Path, content: Matrix, sidecar: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)
    write_whole(sidecar_of(path), Json(sidecar))


def _write_run(out: Path, label: str, age: float, seconds: float, rng: np.random.Generator) -> None:
    run = draw_run(draw_correlation(age, rng), seconds, rng)
    path = RunNames(out, {"sub": label, "task": "rest"}, SPACE).path("denoised")
    sidecar = _sidecar("Denoised time series of each ROI.")
    sidecar |= {
        "RepetitionTime": run.repetition_time,
        "SamplingFrequency": 1 / run.repetition_time,
        "StartTime": 0.0,
        "CensoredVolumes": [],
        "Units": "arbitrary",
    }
    _write(path, Matrix(run.timeseries, atlas.roi_names()), sidecar)


def _write_connectome(out: Path, label: str, age: float, rng: np.random.Generator) -> None:
    counts = draw_streamline_counts(age, rng)
    name = f"sub-{label}_atlas-{atlas.LABEL}_scale-{atlas.SCALE}_desc-count_relmat.tsv"
    names = atlas.roi_names()
    sidecar = _sidecar("Streamline counts between ROIs.")
    sidecar |= {"Measure": "streamline count", "Directed": False, "Weighted": True}
    _write(out / f"sub-{label}" / "dwi" / name, Matrix(counts, names, rows=names), sidecar)
