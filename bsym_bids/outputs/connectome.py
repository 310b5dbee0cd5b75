"""What is written of a diffusion scan: edges, ROIs, sampling, quality, images, streamlines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bsym_bids import atlas
from bsym_bids.dwi.connectome import SEARCH_RADIUS, Connectome
from bsym_bids.dwi.records import FittedModel, PlacedAnatomy, PreparedDwi
from bsym_bids.jobs import ScanJob
from bsym_bids.outputs.descriptions import column_names
from bsym_bids.outputs.images import FileCopy, Volume
from bsym_bids.outputs.publish import OutputFile, publish
from bsym_bids.outputs.reading import read_matrix, read_roi_column
from bsym_bids.outputs.sidecars import as_text, scan_sidecar
from bsym_bids.outputs.tables import Content, Matrix, Table

_MEASURES = {
    "count": "number of streamlines",
    "sift2": "fibre bundle capacity: sum of SIFT2 weights times mu",
    "invnodevol": "streamlines divided by the mean volume of the two ROIs",
    "meanlength": "mean length of streamlines",
    "meanfa": "mean over streamlines of the mean fractional anisotropy along each",
}
_IMAGES = (
    "labels",
    "reference",
    "brain_mask",
    "coloured_anisotropy",
    "track_density",
    "tissues",
)


def write_connectome(
    job: ScanJob,
    dwi: PreparedDwi,
    placed: PlacedAnatomy,
    model: FittedModel,
    connectome: Connectome,
    tractogram: Path | None,
) -> tuple[Path, ...]:
    """Publish the connectome of one diffusion scan.

    Parameters
    ----------
    job : ScanJob
        The scan with its settings and output names.
    dwi, placed, model : PreparedDwi, PlacedAnatomy, FittedModel
        What the steps before found; notes and details go into the sidecars.
    connectome : Connectome
        The edges.
    tractogram : Path, optional
        The streamlines, where they are kept.

    Returns
    -------
    tuple of Path
        The data files.
    """
    names = atlas.roi_names()
    matrices = {
        "count": connectome.counts,
        "sift2": connectome.sift2,
        "invnodevol": connectome.counts_per_volume(),
        "meanlength": connectome.meanlength,
        "meanfa": connectome.meanfa,
    }
    contents: dict[str, Content] = {
        key: Matrix(values, names, rows=names)
        for key, values in matrices.items()
        if values is not None
    }
    contents |= {
        "rois": _roi_table(connectome),
        "sampling": Matrix(connectome.curve, column_names("sampling")),
        "scan_quality": Table(
            {key: [value] for key, value in _quality(dwi, placed, connectome).items()}
        ),
        "labels": FileCopy(Path(placed.labels)),
        "reference": FileCopy(Path(dwi.b0)),
    }
    contents |= _maps(dwi, placed, connectome)
    if tractogram is not None:
        contents["tractogram"] = FileCopy(tractogram)
    details = _details(job, dwi, placed, model, connectome)
    outputs = [
        OutputFile(job.names.path(key), content, details[key]) for key, content in contents.items()
    ]
    stale = list(job.names.possible_paths("connectome"))
    # What another connectome gave goes, also where this model gives nothing in its place.
    if "structural" not in job.fingerprints or not job.is_done("structural"):
        stale += job.names.possible_paths("structural")
    publish(outputs, job.fingerprints["connectome"], stale)
    return tuple(output.path for output in outputs)


def read_counts(job: ScanJob) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read back the counts (450, 450) and ROI volumes (450,) in mm3 that were published.

    Raises
    ------
    BadDataError
        A file cannot be read.
    """
    names = job.names
    return read_matrix(names.path("count")), read_roi_column(names.path("rois"), "volume")


def _maps(dwi: PreparedDwi, placed: PlacedAnatomy, connectome: Connectome) -> dict[str, Content]:
    """Return the images that are there to be looked at."""
    maps: dict[str, Content] = {"brain_mask": FileCopy(Path(dwi.mask))}
    if dwi.colour_fa is not None:
        image = nib.load(dwi.colour_fa)
        colours = np.asanyarray(image.dataobj, dtype=np.float32)
        maps["coloured_anisotropy"] = Volume(colours, np.asarray(image.affine))
    density, affine = connectome.track_density, connectome.track_density_affine
    if density is not None and affine is not None:
        maps["track_density"] = Volume(density, affine)
    if placed.tissue is not None:
        maps["tissues"] = largest_tissue(Path(placed.tissue))
    return maps


def largest_tissue(path: Path) -> Volume:
    """Return which of five tissues has the largest share of each voxel, 1 to 5; 0 for none."""
    image = nib.load(path)
    largest = np.zeros(image.shape[:3], np.float32)
    labels = np.zeros(image.shape[:3], np.uint8)
    for index in range(image.shape[3]):
        share = np.asanyarray(image.dataobj[..., index], dtype=np.float32)
        more = share > largest
        labels[more], largest[more] = index + 1, share[more]
    return Volume(labels, np.asarray(image.affine))


def _roi_table(connectome: Connectome) -> Table:
    return Table(
        {
            "name": atlas.roi_names(),
            "network": atlas.networks(),
            "volume": connectome.roi_volumes,
            "streamlines": connectome.roi_streamlines,
            "present": connectome.roi_volumes > 0,
        }
    )


def _quality(dwi: PreparedDwi, placed: PlacedAnatomy, connectome: Connectome) -> dict[str, Any]:
    """Return the row of the table of quality."""
    motion = dwi.details.get("MotionCorrection", {})
    present = connectome.roi_volumes > 0
    pairs = np.triu(present & present[:, None], k=1)
    counts = np.where(pairs, connectome.counts, 0)
    row = {
        "streamlines": connectome.n_streamlines,
        "assigned": connectome.n_assigned,
        "assigned_share": connectome.n_assigned / max(1, connectome.n_streamlines),
        "sampling_reliability": connectome.sampling_reliability,
        "density": float((counts > 0).sum() / max(1, pairs.sum())),
        "absent_rois": int((~present).sum()),
        "rois_without_streamlines": int((present & (connectome.roi_streamlines == 0)).sum()),
        "mean_length": _weighted_mean(connectome.meanlength, counts),
        "registration": placed.details.get("RegistrationQuality", {}).get("Verdict"),
        "mean_translation": motion.get("MeanTranslationMm"),
        "mean_rotation": motion.get("MeanRotationDegrees"),
        "gradient_check": _gradient_check(dwi),
    }
    return {name: row[name] for name in column_names("scan_quality")}


def _gradient_check(dwi: PreparedDwi) -> str | None:
    check = dwi.details.get("GradientCheck", {})
    return "not checked" if "NotChecked" in check else check.get("Action")


def _weighted_mean(values: NDArray[np.floating], weights: NDArray[np.floating]) -> float:
    used = weights > 0
    return float(np.average(values[used], weights=weights[used])) if used.any() else float("nan")


def _details(
    job: ScanJob,
    dwi: PreparedDwi,
    placed: PlacedAnatomy,
    model: FittedModel,
    connectome: Connectome,
) -> dict[str, dict[str, Any]]:
    """Return the sidecar of each product."""
    names = job.names
    series = job.sources()
    counted = [names.uri("labels"), *series]
    sources = {
        **{key: counted for key in _MEASURES},
        "rois": counted,
        "sampling": counted,
        "scan_quality": counted,
        **{key: series for key in (*_IMAGES, "tractogram")},
    }
    common = _how_it_was_made(dwi, placed, model, connectome)
    sidecars = {key: scan_sidecar(job, key, uris) | common for key, uris in sources.items()}
    for key, measure in _MEASURES.items():
        sidecars[key] |= {"Measure": measure, "Directed": False, "Weighted": True}
    sidecars["track_density"]["StreamlinesCounted"] = connectome.track_density_streamlines
    for key in _IMAGES:
        sidecars[key]["SoftwareVersions"] = as_text(sidecars[key]["SoftwareVersions"])
    for key in ("reference", "coloured_anisotropy", "track_density", "tissues"):
        sidecars[key]["SkullStripped"] = key in ("coloured_anisotropy", "tissues")
    sidecars["brain_mask"]["Type"] = "Brain"
    return sidecars


def _how_it_was_made(
    dwi: PreparedDwi, placed: PlacedAnatomy, model: FittedModel, connectome: Connectome
) -> Mapping[str, Any]:
    """Return what every sidecar says of the steps that led there."""
    missing = np.array(atlas.roi_names())[connectome.roi_volumes <= 0].tolist()
    return {
        "Preprocessing": dict(dwi.details),
        "Anatomy": dict(placed.details),
        "FibreOrientations": dict(model.details),
        "Tracking": dict(connectome.details),
        "Streamlines": connectome.n_streamlines,
        "SamplingReliability": connectome.sampling_reliability,
        "AssignmentRadius": SEARCH_RADIUS,
        "MissingROIs": missing,
        "MissingROIRule": "no voxel in the person's space: n/a",
        "Notes": [*dwi.notes, *placed.notes, *model.notes, *connectome.notes],
    }
