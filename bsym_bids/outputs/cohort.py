"""What is written of cohort scaling as such: the statistics."""

from __future__ import annotations

from pathlib import Path
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
    found = CohortScaling(
        RoiStatistics(median, iqr),
        count.astype(np.int64),
        tuple(document.get("Participants", ())),
        tuple(output_dir / uri.removeprefix("bids::") for uri in document.get("Sources", ())),
        tuple(document.get("LeftOut", ())),
        document.get("TimeSeriesSettings", {}),
    )
    if found.fingerprint != document.get("ScalingStatistics"):
        raise BadDataError(
            f"{path}: the statistics are not those that the sidecar is of",
            hint="take the file away, then run the same command again",
        )
    return found
