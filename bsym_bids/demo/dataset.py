"""A small BIDS dataset with the derivatives that preprocessing makes, without any real data."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from isal import igzip
from numpy.typing import NDArray
from scipy import ndimage

from bsym_bids import atlas
from bsym_bids.errors import UsageError
from bsym_bids.outputs.tables import Table
from bsym_bids.simulation.bold import Artefacts, artefacts, series_with
from bsym_bids.simulation.diffusion import Score, make_phantom, score_connectome
from bsym_bids.simulation.diffusion_files import write_phantom
from bsym_bids.simulation.people import draw_correlation

_SPACE = "MNI152NLin2009cAsym"
_ORIGIN_MM = (-96.0, -132.0, -78.0)
_EXTENT_MM = (193, 229, 193)
_BASELINE = 10_000.0  # fMRIPrep's series have arbitrary units of about this size
_SIGNAL = 100.0  # one percent
_NOISE = 1.0  # of a voxel, in standard deviations of the signal
_SCAN_MM = 3.0
#: b-values in s/mm2 and volumes of diffusion scans: few, for each has to be registered.
_SHELLS = ((0.0, 2), (2500.0, 28))


@dataclass(frozen=True)
class DemoScan:
    """A simulated diffusion scan.

    Attributes
    ----------
    derivatives : {'fmriprep', 'qsiprep'}
        ``fmriprep``: a raw series of a head that moves, with the anatomy that fMRIPrep makes.
        ``qsiprep``: series and anatomy as QSIPrep makes them.
    session : str, optional
        Its session.
    """

    derivatives: Literal["fmriprep", "qsiprep"]
    session: str | None = None


@dataclass(frozen=True)
class DemoParticipant:
    """A simulated person.

    Attributes
    ----------
    age : int
        In years.
    sex : str
        ``F`` or ``M``.
    sessions : mapping of str to float
        Repetition time in seconds of each session with a BOLD run.
    cifti : bool
        Grayordinates instead of a volume.
    scan : DemoScan, optional
        The diffusion scan.
    """

    age: int
    sex: str
    sessions: Mapping[str, float]
    cifti: bool = False
    scan: DemoScan | None = None


#: Who is simulated: both kinds of BOLD file, two repetition times, one person with two sessions;
#: one person with both modalities, and one with diffusion alone.
PARTICIPANTS: Mapping[str, DemoParticipant] = {
    "01": DemoParticipant(24, "F", {"1": 0.8}, scan=DemoScan("fmriprep", "1")),
    "02": DemoParticipant(41, "M", {"1": 0.8, "2": 2.0}),
    "03": DemoParticipant(67, "F", {"1": 0.8}, cifti=True),
    "04": DemoParticipant(33, "M", {}, scan=DemoScan("qsiprep")),
}
#: Those with BOLD runs, and those with a diffusion scan.
WITH_BOLD = tuple(label for label, person in PARTICIPANTS.items() if person.sessions)
WITH_SCAN = tuple(label for label, person in PARTICIPANTS.items() if person.scan)


def make_demo_dataset(
    out: Path,
    seed: int = 0,
    participants: Sequence[str] = WITH_BOLD,
    resolution_mm: float = 4.0,
    n_volumes: int = 260,
    scans: Sequence[str] = (),
) -> dict[str, NDArray[np.float64]]:
    """Make the dataset.

    Parameters
    ----------
    out : Path
        Folder of the dataset.
    seed : int
        The same seed makes the same data.
    participants : sequence of str
        Whose BOLD runs to simulate, of `WITH_BOLD`.
    resolution_mm : float
        Voxel size of the volumes.
    n_volumes : int
        Volumes at a repetition time of 0.8 s; runs at another one last as long.
    scans : sequence of str
        Whose diffusion scans to simulate, of `WITH_SCAN`: some seconds each.

    Returns
    -------
    dict of str to ndarray
        The functional connectivity (450, 450) that was put into each run, by the run's name. It is
        also kept in ``sourcedata/simulation``, and so is what is true of each scan.
    """
    _describe(out, sorted({*participants, *scans}))
    truth = {}
    for label in participants:
        person = PARTICIPANTS[label]
        rng = np.random.default_rng([seed, int(label)])
        correlation = draw_correlation(person.age, rng)
        for session, repetition_time in person.sessions.items():
            name = f"sub-{label}_ses-{session}_task-rest"
            count = math.ceil(n_volumes * 0.8 / repetition_time)
            added = artefacts(count, repetition_time, rng)
            signal = series_with(correlation, count, repetition_time, rng) + added.in_rois
            folder = out / "derivatives" / "fmriprep" / f"sub-{label}" / f"ses-{session}" / "func"
            folder.mkdir(parents=True)
            if person.cifti:
                _write_cifti(folder / name, signal, repetition_time, rng)
            else:
                _write_volume(folder / name, signal, repetition_time, resolution_mm, rng)
            _write_confounds(folder / name, added)
            truth[name] = correlation
    folder = out / "sourcedata" / "simulation"
    folder.mkdir(parents=True)
    for name, correlation in truth.items():
        np.savez_compressed(folder / f"{name}_truth.npz", connectivity=correlation)
    for label in scans:
        _write_scan(out, label, seed)
    return truth


def compare_with_truth(dataset: Path, files: Iterable[Path]) -> list[tuple[str, float]]:
    """Correlate recovered functional connectivity with the one that was simulated.

    Parameters
    ----------
    dataset : Path
        The simulated dataset.
    files : iterable of Path
        Tables of functional connectivity, as the participant level writes them.

    Returns
    -------
    list of (str, float)
        Name of the run, and Pearson's r over all pairs of ROIs that both have.
    """
    compared = []
    for path in files:
        name = path.name.split("_space-")[0]
        truth_file = dataset / "sourcedata" / "simulation" / f"{name}_truth.npz"
        truth = np.load(truth_file)["connectivity"]
        found = np.genfromtxt(path, delimiter="\t", skip_header=1, missing_values="n/a")[:, 1:]
        upper = np.triu_indices(len(truth), k=1)
        usable = np.isfinite(found[upper])
        r = np.corrcoef(found[upper][usable], truth[upper][usable])[0, 1]
        compared.append((name, float(r)))
    return compared


def compare_connectomes(dataset: Path, files: Iterable[Path]) -> list[tuple[str, Score]]:
    """Compare recovered structural connectomes with the bundles that were simulated.

    Parameters
    ----------
    dataset : Path
        The simulated dataset.
    files : iterable of Path
        Tables of fibre bundle capacity or streamline counts, as the participant level writes them.

    Returns
    -------
    list of (str, Score)
        Name of the scan, and how well its bundles were found; see `score_connectome`.
    """
    compared = []
    for path in files:
        name = re.split("_(?:space|atlas)-", path.name)[0]
        truth_file = dataset / "sourcedata" / "simulation" / f"{name}_dwi_truth.npz"
        truth = np.load(truth_file)["weights"]
        found = np.genfromtxt(path, delimiter="\t", skip_header=1, missing_values="n/a")[:, 1:]
        compared.append((name, score_connectome(found, truth)))
    return compared


def _write_scan(out: Path, label: str, seed: int) -> None:
    """Write a person's diffusion scan, their anatomy, and what is true of both."""
    scan = PARTICIPANTS[label].scan
    if scan is None:
        raise UsageError(f"participant {label} has no diffusion scan")
    still = {"rotation": (0, 0, 0), "motion": 0} if scan.derivatives == "qsiprep" else {}
    own_seed = int(np.random.SeedSequence((seed, int(label))).generate_state(1)[0])
    phantom = make_phantom(own_seed, voxel_mm=_SCAN_MM, shells=_SHELLS, **still)
    write_phantom(phantom, out, label, derivatives=scan.derivatives, session=scan.session)


def _describe(out: Path, participants: Sequence[str]) -> None:
    """Write what is not an image."""
    derivatives = out / "derivatives" / "fmriprep"
    derivatives.mkdir(parents=True)
    common = {"BIDSVersion": "1.10.0", "License": "CC0"}
    _write_json(
        out / "dataset_description.json",
        {"Name": "bsym-bids demo: simulated participants", "DatasetType": "raw", **common},
    )
    _write_json(
        derivatives / "dataset_description.json",
        {
            "Name": "Simulated derivatives in the shape of fMRIPrep's",
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "fMRIPrep", "Description": "shape only: made by bsym-demo"}],
            **common,
        },
    )
    (out / "README").write_text(
        "Simulated participants, made by bsym-demo. No person's data are in here.\n"
    )
    Table(
        {
            "participant_id": [f"sub-{label}" for label in participants],
            "age": [PARTICIPANTS[label].age for label in participants],
            "sex": [PARTICIPANTS[label].sex for label in participants],
        }
    ).write(out / "participants.tsv")
    _write_json(
        out / "participants.json",
        {
            "age": {"Description": "Age of the simulated person", "Units": "year"},
            "sex": {"Description": "Sex", "Levels": {"F": "female", "M": "male"}},
        },
    )


def _write_volume(
    stem: Path,
    signal: NDArray[np.float64],
    repetition_time: float,
    resolution: float,
    rng: np.random.Generator,
) -> None:
    """Write series and brain mask on a grid of the template's field of view."""
    shape = tuple(math.ceil(extent / resolution) for extent in _EXTENT_MM)
    affine = np.diag([resolution, resolution, resolution, 1.0])
    affine[:3, 3] = _ORIGIN_MM
    labels = atlas.labels_on_grid(shape, affine, _SPACE)
    brain = ndimage.binary_fill_holes(ndimage.binary_closing(labels > 0, iterations=2))
    anatomy = _BASELINE * (1 + 0.2 * ndimage.gaussian_filter(rng.standard_normal(shape), 2))
    data = np.zeros((*shape, len(signal)), dtype=np.int16)
    data[brain] = np.rint(
        anatomy[brain][:, None] + _SIGNAL * _voxels(signal, labels[brain], rng)
    ).astype(np.int16)
    stem = stem.with_name(f"{stem.name}_space-{_SPACE}")
    _write_nifti(stem, "desc-preproc_bold", data, affine, repetition_time)
    _write_nifti(stem, "desc-brain_mask", brain.astype(np.uint8), affine)
    sidecar = {"RepetitionTime": repetition_time, "TaskName": "rest", "SkullStripped": False}
    _write_json(stem.with_name(f"{stem.name}_desc-preproc_bold.json"), sidecar)


def _write_nifti(
    stem: Path,
    suffix: str,
    data: NDArray[Any],
    affine: NDArray[np.float64],
    repetition_time: float | None = None,
) -> None:
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm", "sec")
    if repetition_time is not None:
        image.header["pixdim"][4] = repetition_time
    path = stem.with_name(f"{stem.name}_{suffix}.nii.gz")
    path.write_bytes(igzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def _write_cifti(
    stem: Path, signal: NDArray[np.float64], repetition_time: float, rng: np.random.Generator
) -> None:
    """Write a series of 91,282 grayordinates."""
    values = _BASELINE + _SIGNAL * _voxels(signal, atlas.dlabel(), rng)
    axis = nib.load(atlas.dlabel_path()).header.get_axis(1)
    series = nib.cifti2.SeriesAxis(0, repetition_time, len(signal), "second")
    stem = stem.with_name(f"{stem.name}_space-fsLR_den-91k")
    image = nib.Cifti2Image(values.T.astype(np.float32), (series, axis))
    nib.save(image, stem.with_name(f"{stem.name}_bold.dtseries.nii"))
    sidecar = {"RepetitionTime": repetition_time, "TaskName": "rest"}
    _write_json(stem.with_name(f"{stem.name}_bold.json"), sidecar)


def _voxels(
    signal: NDArray[np.float64], labels: NDArray[np.uint16], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return the series of each voxel (V, T): its ROI's signal and noise of its own."""
    with_rest = np.column_stack([np.zeros(len(signal)), signal]).T.astype(np.float32)
    noise = rng.standard_normal((len(labels), len(signal)), dtype=np.float32)
    return with_rest[labels] + np.float32(_NOISE) * noise


def _write_confounds(stem: Path, added: Artefacts) -> None:
    Table(added.confounds).write(stem.with_name(f"{stem.name}_desc-confounds_timeseries.tsv"))
    _write_json(stem.with_name(f"{stem.name}_desc-confounds_timeseries.json"), {})


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
