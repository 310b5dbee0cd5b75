"""What every sidecar says: sources, settings, software, and what the columns are."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from bsym_bids import __version__, atlas
from bsym_bids.jobs import RunJob
from bsym_bids.outputs.names import products

ROI_COLUMNS = {
    "name": {"Description": "Name of the ROI, as in the atlas table"},
    "network": {
        "Description": "Network of the ROI: the seven networks of Yeo et al. 2011, or Subcortex"
    },
}
_NODE = {"Node": {"Description": "Name of the ROI of this row"}}


def basic_sidecar(job: RunJob, key: str, sources: Sequence[str]) -> dict[str, Any]:
    """Return what the sidecar of any product says.

    Parameters
    ----------
    job : RunJob
        The run.
    key : str
        The product.
    sources : sequence of str
        BIDS URIs of the files it was made from.
    """
    return {
        "Description": products()[key].description,
        "Sources": list(sources),
        "SpatialReference": job.run.space,
        "Atlas": f"{atlas.LABEL}, scale {atlas.SCALE}: Schaefer 2018 (400 parcels, 7 networks) "
        "and Tian 2020 (scale III)",
        "SoftwareVersions": software_versions(job.settings.release is not None),
        "TimeSeriesSettings": dict(job.settings.timeseries),
    }


def software_versions(with_torch: bool = True) -> dict[str, str]:
    """Return the versions of what the numbers depend on."""
    packages = ["numpy", "scipy", "nibabel", *(["torch"] if with_torch else [])]
    found = {name: version(name) for name in packages}
    return {"bsym-bids": __version__, "python": platform.python_version(), **found}


def model_sidecar(job: RunJob, threads: int) -> dict[str, Any]:
    """Return what the sidecars of the model's outputs say on top of `basic_sidecar`."""
    release = job.settings.release
    described: dict[str, Any] = {
        "EmbeddingSettings": dict(job.settings.embedding),
        "Model": {
            "Name": release.name,
            "Version": release.version,
            "Trained": release.trained,
            "Fingerprint": release.fingerprint,
            "Files": dict(release.hashes),
        },
        "Threads": threads,
    }
    if release.warning:
        described["Warning"] = release.warning
    return described


def matrix_columns(meaning: str) -> dict[str, Any]:
    """Describe the columns of a matrix between ROIs."""
    return {**_NODE, **{name: {"Description": meaning} for name in ()}}


def described(columns: Mapping[str, str], units: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return column descriptions in the form of BIDS sidecars."""
    result: dict[str, Any] = {}
    for name, text in columns.items():
        result[name] = {"Description": text}
        if units and name in units:
            result[name]["Units"] = units[name]
    return result
