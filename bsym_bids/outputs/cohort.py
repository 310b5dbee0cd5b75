"""What is written of cohort scaling as such: the statistics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from bsym_bids import atlas
from bsym_bids.bold.scaling import RoiStatistics
from bsym_bids.cohort.scaling import CohortScaling
from bsym_bids.errors import BadDataError
from bsym_bids.outputs.descriptions import columns_of
from bsym_bids.outputs.names import COHORT_SCALING, dataset_path, dataset_products, own_uri
from bsym_bids.outputs.publish import OutputFile, publish
from bsym_bids.outputs.reading import read_roi_column, read_sidecar
from bsym_bids.outputs.sidecars import ATLAS, software_versions
from bsym_bids.outputs.tables import Table

_RULE = (
    "quartiles of the mean over participants of the distribution of each one's kept frames, of all "
    "runs together; definition 2 of Hyndman & Fan 1996. A run that was processed in several spaces "
    "counts once"
)
_AGAIN = "take the file away, then run the same command again"


def write_cohort_scaling(scaling: CohortScaling, output_dir: Path, expected: str) -> Path:
    """Publish the statistics of a cohort.

    Parameters
    ----------
    scaling : CohortScaling
        The statistics.
    output_dir : Path
        Root of the dataset.
    expected : str
        Fingerprint of what they were taken from.

    Returns
    -------
    Path
        The table.
    """
    table = Table(
        {
            "name": atlas.roi_names(),
            "network": atlas.networks(),
            "median": scaling.statistics.location,
            "iqr": scaling.statistics.spread,
            "n_participants": scaling.n_participants,
        }
    )
    sidecar: dict[str, Any] = {
        "Description": dataset_products()[COHORT_SCALING].description,
        "Sources": [own_uri(output_dir, path) for path in scaling.runs],
        "Atlas": ATLAS,
        "SoftwareVersions": software_versions(),
        "TimeSeriesSettings": dict(scaling.timeseries),
        "StatisticsRule": _RULE,
        "ScalingStatistics": scaling.fingerprint,
        "Participants": list(scaling.participants),
        "LeftOut": list(scaling.left_out),
        **columns_of(COHORT_SCALING),
    }
    path = dataset_path(output_dir, COHORT_SCALING)
    publish([OutputFile(path, table, sidecar)], expected)
    return path


def read_cohort_scaling(output_dir: Path) -> CohortScaling:
    """Read the statistics of a cohort back.

    Raises
    ------
    BadDataError
        There are none, they cannot be read, or they are not what the sidecar says.
    """
    path = dataset_path(output_dir, COHORT_SCALING)
    document = read_sidecar(path)
    median, iqr, count = (
        read_roi_column(path, name) for name in ("median", "iqr", "n_participants")
    )
    if not np.isfinite(count).all():
        raise BadDataError(f"{path}: n_participants are no numbers", hint=_AGAIN)
    settings = document.get("TimeSeriesSettings")
    found = CohortScaling(
        RoiStatistics(median, iqr),
        count.astype(np.int64),
        _texts(document, "Participants"),
        tuple(_source(output_dir, path, uri) for uri in _texts(document, "Sources")),
        _texts(document, "LeftOut"),
        settings if isinstance(settings, dict) else {},
    )
    if found.fingerprint != document.get("ScalingStatistics"):
        raise BadDataError(
            f"{path}: the statistics are not those that the sidecar is of", hint=_AGAIN
        )
    return found


def _texts(document: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = document.get(key)
    return tuple(map(str, value)) if isinstance(value, list) else ()


def _source(output_dir: Path, table: Path, uri: str) -> Path:
    """Return the file of the dataset that a BIDS URI names, and of no other place."""
    place = PurePosixPath(uri.removeprefix("bids::"))
    if not uri.startswith("bids::") or place.is_absolute() or ".." in place.parts:
        raise BadDataError(f"{table}: its Sources name {uri}, outside of the dataset", hint=_AGAIN)
    return output_dir / place
