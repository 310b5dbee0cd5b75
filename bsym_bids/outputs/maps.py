"""Tables and figures of a cohort as a whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsym_bids import atlas
from bsym_bids.cohort import identification
from bsym_bids.cohort.contrast import Contrast, ContrastMap, EmbeddingShift
from bsym_bids.cohort.identification import Identification
from bsym_bids.cohort.recovery import CohortRecovery
from bsym_bids.model.weights import Release
from bsym_bids.outputs.dataset import describe_rois
from bsym_bids.outputs.descriptions import columns_of
from bsym_bids.outputs.names import dataset_path, dataset_products, own_uri
from bsym_bids.outputs.publish import OutputFile, explained, fingerprint, publish
from bsym_bids.outputs.sidecars import ATLAS, software_versions
from bsym_bids.outputs.tables import Matrix, Table
from bsym_bids.prediction.features import feature_kinds


@dataclass(frozen=True)
class Origin:
    """What a map was made of, and how.

    Attributes
    ----------
    settings : mapping
        For the sidecar.
    files : collection of Path
        Of the dataset.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    files: Collection[Path] = ()


def write_identification(
    results: Mapping[str, Sequence[Identification]], output_dir: Path, origin: Origin
) -> tuple[Path, ...]:
    """Publish how often people are identified by each kind of features, with a figure."""
    from bsym_bids.reports.cohort_figures import draw_identification

    table = _stacked({kind: identification.table(found) for kind, found in results.items()})
    path = _publish(output_dir, "identification", "", table, origin)
    titled = {_title(kind): found for kind, found in results.items()}
    figure = _draw(output_dir, "identification", lambda to: draw_identification(titled, to))
    return path, figure


def write_reliability(
    tables: Mapping[str, Mapping[str, Sequence[Any]]], output_dir: Path, origin: Origin
) -> tuple[Path, ...]:
    """Publish the reliability of each kind of features by network, with a figure."""
    from bsym_bids.reports.cohort_figures import draw_reliability

    path = _publish(output_dir, "reliability", "", _stacked(tables), origin)
    titled = {_title(kind): table for kind, table in tables.items()}
    figure = _draw(output_dir, "reliability", lambda to: draw_reliability(titled, to))
    return path, figure


def write_recovery(
    found: CohortRecovery, release: Release, output_dir: Path, origin: Origin
) -> tuple[Path, ...]:
    """Publish the network recovery of a cohort, with a figure."""
    from bsym_bids.reports.cohort_figures import draw_recovery

    path = dataset_path(output_dir, "recovery", "")
    table = found.table()
    document = _document("recovery", output_dir, origin) | columns_of("recovery", table)
    document["RecoveredParticipants"] = [f"sub-{person}" for person in found.participants]
    publish([OutputFile(path, Table(table), document)], fingerprint(document))
    figure = _draw(output_dir, "networkrecovery", lambda to: draw_recovery(table, release.name, to))
    return path, figure


def write_group_mean(
    kind: str, mean: NDArray[np.float64], output_dir: Path, origin: Origin
) -> Path:
    """Publish the mean over people of a matrix (450, 450)."""
    path = dataset_path(output_dir, "group_mean", kind)
    names = atlas.roi_names()
    document = _document("group_mean", output_dir, origin) | {"Atlas": ATLAS}
    document |= columns_of("group_mean") | describe_rois()
    document |= {"Directed": False, "Weighted": True, "Features": kind}
    publish([OutputFile(path, Matrix(mean, names, rows=names), document)], fingerprint(document))
    return path


def write_contrast(
    wanted: Contrast,
    maps: Sequence[tuple[str, ContrastMap | EmbeddingShift, Origin]],
    output_dir: Path,
) -> tuple[Path, ...]:
    """Publish the maps of a contrast, each with what it is of and its origin, with figures."""
    from bsym_bids.reports import cohort_figures as figures

    paths: list[Path] = []
    for name, found, origin in maps:
        label = f"{wanted.entity}{wanted.a}{wanted.entity}{wanted.b}{name}"
        paths.append(_publish(output_dir, "contrast", label, found.table(), origin))
        if name.endswith("pairs"):
            paths.append(_draw(output_dir, label, _drawn(figures.draw_network_matrix, found)))
        elif name.endswith("rois"):
            paths.append(_draw(output_dir, label, _drawn(figures.draw_roi_contrast, found)))
            paths.append(
                _draw(output_dir, label + "brain", _drawn(figures.draw_glass_brain, found))
            )
    return tuple(paths)


def _title(kind: str) -> str:
    """Return what a kind of features is called for people."""
    known = feature_kinds().get(kind)
    return known.title if known else kind


def _drawn(draw: Callable[[Any, Path], None], found: object) -> Callable[[Path], None]:
    return lambda to: draw(found, to)


def _stacked(tables: Mapping[str, Mapping[str, Sequence[Any]]]) -> dict[str, list[Any]]:
    """Put tables of the same columns below each other, the kind of features first."""
    stacked: dict[str, list[Any]] = {"features": []}
    for kind, table in tables.items():
        for name, values in table.items():
            stacked.setdefault(name, []).extend(values)
        stacked["features"] += [kind] * len(next(iter(table.values())))
    return stacked


def _publish(
    output_dir: Path,
    key: str,
    label: str,
    table: Mapping[str, Any],
    origin: Origin,
) -> Path:
    path = dataset_path(output_dir, key, label)
    document = _document(key, output_dir, origin) | columns_of(key, table)
    publish([OutputFile(path, Table(table), document)], fingerprint(document))
    return path


def _document(key: str, output_dir: Path, origin: Origin) -> dict[str, Any]:
    return {
        "Description": dataset_products()[key].description,
        "Sources": [own_uri(output_dir, path) for path in sorted(origin.files)],
        "GroupSettings": dict(origin.settings),
        "SoftwareVersions": software_versions(),
    }


def _draw(output_dir: Path, label: str, draw: Callable[[Path], None]) -> Path:
    """Draw a figure aside and put it in place."""
    path = dataset_path(output_dir, "cohort_figure", label)
    part = path.with_name(f".part_{path.name}")
    with explained(path):
        try:
            draw(part)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    return path
