"""What the sidecars say: description, sources, columns, settings, software."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bsym_bids import __version__, atlas
from bsym_bids.jobs import EmbeddingJob, FusionJob, ScanJob
from bsym_bids.outputs.descriptions import about_table
from bsym_bids.outputs.names import fusion_products, scan_products
from bsym_bids.software import OF_ALL, OF_MODELS, OF_SCANS, library_versions

if TYPE_CHECKING:
    from bsym_bids.model.weights import Release

ATLAS = (
    f"{atlas.LABEL}, scale {atlas.SCALE}: Schaefer 2018 (400 parcels, 7 networks) and Tian 2020 "
    "(scale III); ROIs are named as in the atlas table and in its order"
)


def basic_sidecar(job: EmbeddingJob, key: str, sources: Sequence[str]) -> dict[str, Any]:
    """Return what the sidecar of any product says.

    Parameters
    ----------
    job : EmbeddingJob
        The run.
    key : str
        The product.
    sources : sequence of str
        BIDS URIs of the files it was made from.
    """
    document: dict[str, Any] = {
        "Description": job.names.product(key).description,
        "Sources": list(sources),
        "SpatialReference": job.run.space,
        "Atlas": ATLAS,
        "SoftwareVersions": software_versions(),
        "TimeSeriesSettings": dict(job.settings.timeseries),
    }
    optional = {
        "TaskName": job.run.entities.get("task"),
        "Resolution": job.names.resolution and f"of the source, res-{job.names.resolution}",
        "Density": job.names.density and f"of the source, den-{job.names.density}",
    }
    said = {name: value for name, value in optional.items() if value}
    return document | said | about_table(key)


def scan_sidecar(job: ScanJob, key: str, sources: Sequence[str]) -> dict[str, Any]:
    """Return what the sidecar of any product of a diffusion scan says."""
    return {
        "Description": scan_products()[key].description,
        "Sources": list(sources),
        "SpatialReference": job.scan.space or "orig",
        "Atlas": ATLAS,
        "SoftwareVersions": software_versions() | _scan_versions(job),
        "ConnectomeSettings": dict(job.settings.connectome),
    } | about_table(key)


def fusion_sidecar(job: FusionJob, key: str, sources: Sequence[str]) -> dict[str, Any]:
    """Return what the sidecar of any fused product says."""
    run = job.run
    resolution, density = run.run.resolution, run.run.density
    said = {} if resolution is None else {"Resolution": f"of the source, res-{resolution}"}
    said |= {} if density is None else {"Density": f"of the source, den-{density}"}
    return (
        said
        | {
            "Description": fusion_products()[key].description,
            "Sources": list(sources),
            "SpatialReference": run.run.space,
            "Atlas": ATLAS,
            "SoftwareVersions": software_versions(),
            "TaskName": run.run.entities.get("task", "n/a"),
            "TimeSeriesSettings": dict(run.settings.timeseries),
            "EmbeddingSettings": dict(run.settings.embedding),
            "ConnectomeSettings": dict(job.scan.settings.connectome),
            "StructuralSettings": dict(job.scan.settings.structural),
        }
        | about_model(run.settings.release)
        | about_table(key)
    )


def _scan_versions(job: ScanJob) -> dict[str, str]:
    return library_versions(*OF_SCANS) | {job.settings.engine.name: job.settings.engine.version}


def model_sidecar(
    job: EmbeddingJob, key: str, sources: Sequence[str], threads: int
) -> dict[str, Any]:
    """Return what the sidecar of any output of the model says."""
    return (
        basic_sidecar(job, key, sources)
        | {"EmbeddingSettings": dict(job.settings.embedding), "Threads": threads}
        | about_model(job.settings.release)
    )


def about_model(release: Release) -> dict[str, Any]:
    """Return what sidecars say of the model that a file comes from."""
    model = {
        "Name": release.name,
        "Version": release.version,
        "Trained": release.trained,
        "Fingerprint": release.fingerprint,
        "SHA256": dict(release.sha256),
    }
    return {"Model": model} | ({"Warning": release.warning} if release.warning else {})


def software_versions() -> dict[str, str]:
    """Return the versions of what the numbers depend on."""
    found = library_versions(*OF_ALL, *OF_MODELS)
    return {"bsym-bids": __version__, "python": platform.python_version(), **found}


def as_text(versions: Mapping[str, str]) -> str:
    """Return versions as BIDS wants them of images."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())
