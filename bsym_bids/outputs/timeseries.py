"""What is written of a run before the model: series, coverage, connectivity, quality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsym_bids import atlas
from bsym_bids.bold.cleaning import CleanedRun
from bsym_bids.bold.connectivity import functional_connectivity
from bsym_bids.bold.filtering import ORDER
from bsym_bids.bold.parcellate import Parcellation, drop_low_coverage
from bsym_bids.bold.quality import run_quality
from bsym_bids.jobs import RunJob
from bsym_bids.outputs.descriptions import column_names
from bsym_bids.outputs.images import Volume
from bsym_bids.outputs.names import STATISTICS
from bsym_bids.outputs.publish import OutputFile, publish, read_fingerprint
from bsym_bids.outputs.sidecars import as_text, basic_sidecar, software_versions
from bsym_bids.outputs.tables import Content, Matrix, Table

_SUMMARIES = {
    "mean": "mean over voxels (grayordinates)",
    "pca": "first principal component of voxels (grayordinates), taken before cleaning",
}


def write_timeseries(
    job: RunJob, parcellation: Parcellation, cleaned: CleanedRun
) -> tuple[Path, ...]:
    """Publish the outputs of one run that need no model.

    Embeddings of this run that were made under other settings are removed in the same step, so
    that they never stand beside series they do not come from.

    Returns
    -------
    tuple of Path
        The data files.
    """
    raw = drop_low_coverage(
        parcellation.timeseries, parcellation.coverage, job.settings.timeseries["MinCoverage"]
    )
    connectivity = functional_connectivity(cleaned.timeseries, ~cleaned.censored)
    quality = run_quality(raw, cleaned, connectivity)
    if parcellation.method == "pca":
        quality["tsnr_median"] = None  # a component has no mean to divide
    names = atlas.roi_names()
    contents: dict[str, Content] = {
        "timeseries": Matrix(raw, names),
        "denoised": Matrix(_without_censored(cleaned), names),
        "coverage": _coverage_table(parcellation, cleaned),
        "connectivity": Matrix(connectivity, names, rows=names),
        "censoring": _censoring_table(cleaned),
        "run_quality": Table({name: [quality[name]] for name in column_names("run_quality")}),
    }
    if parcellation.mean_volume is not None and parcellation.affine is not None:
        contents["mean_bold"] = Volume(parcellation.mean_volume, parcellation.affine)
    details = _details(job, parcellation, cleaned)
    outputs = [
        OutputFile(job.names.path(key), content, details[key]) for key, content in contents.items()
    ]
    stale = list(job.names.possible_paths("timeseries"))
    if not job.is_done("embedding"):
        stale += job.names.possible_paths("embedding")
        stale += job.names.possible_paths("fused")
    # What cohort scaling made of older series goes with them.
    if read_fingerprint(job.names.path("denoised")) != job.fingerprints["timeseries"]:
        stale += replace(job.names, cohort_scaled=True).possible_paths("embedding")
    publish(outputs, job.fingerprints["timeseries"], stale)
    return tuple(output.path for output in outputs)


def _without_censored(cleaned: CleanedRun) -> NDArray[np.float64]:
    """Return the clean series with n/a where a frame was not measured but interpolated."""
    series = cleaned.timeseries.copy()
    series[cleaned.censored] = np.nan
    return series


def _coverage_table(parcellation: Parcellation, cleaned: CleanedRun) -> Table:
    return Table(
        {
            "name": atlas.roi_names(),
            "network": atlas.networks(),
            "coverage": parcellation.coverage,
            "n_voxels": parcellation.n_voxels,
            "n_voxels_expected": parcellation.n_voxels_expected,
            "included": np.isfinite(cleaned.timeseries).all(axis=0),
        }
    )


def _censoring_table(cleaned: CleanedRun) -> Table:
    displacement = cleaned.framewise_displacement
    return Table(
        {
            "framewise_displacement": (
                np.full(len(cleaned.censored), np.nan) if displacement is None else displacement
            ),
            "censored": cleaned.censored,
        }
    )


def _details(
    job: RunJob, parcellation: Parcellation, cleaned: CleanedRun
) -> Mapping[str, dict[str, Any]]:
    """Return the sidecar of each product."""
    inputs = job.sources()
    images = [inputs[role] for role in ("bold", "mask") if role in inputs]
    series_uri = job.names.uri("timeseries")
    sources = {
        "timeseries": images,
        "coverage": images,
        "mean_bold": [inputs["bold"]],
        "denoised": [series_uri, *([inputs["confounds"]] if "confounds" in inputs else [])],
        "censoring": [inputs.get("confounds", inputs["bold"])],
        "connectivity": [job.names.uri("denoised")],
        "run_quality": [series_uri, job.names.uri("denoised")],
    }
    sidecars = {key: basic_sidecar(job, key, uris) for key, uris in sources.items()}
    timing = {
        "RepetitionTime": cleaned.repetition_time,
        "SamplingFrequency": 1 / cleaned.repetition_time,
        "StartTime": 0.0,
    }
    source = {
        "RepetitionTimeSource": "sidecar" if job.run.repetition_time else "header",
        "HeaderRepetitionTime": parcellation.header_repetition_time,
    }
    cleaning = {
        "Confounds": list(cleaned.confounds),
        "Filter": _filter_rule(job, cleaned),
        "CensoredVolumes": np.flatnonzero(cleaned.censored).tolist(),
        "Notes": [*_timing_notes(parcellation), *cleaned.notes],
    }
    summary = {
        "ROISummary": _SUMMARIES[parcellation.method],
        "Statistic": STATISTICS[parcellation.method],
    }
    sidecars["timeseries"] |= timing | source | summary
    sidecars["denoised"] |= timing | cleaning
    sidecars["connectivity"] |= cleaning | {
        "Measure": "Pearson correlation",
        "Directed": False,
        "Weighted": True,
    }
    sidecars["mean_bold"] |= {
        "Units": "arbitrary",
        "SkullStripped": False,
        "SoftwareVersions": as_text(software_versions()),
    }
    sidecars["censoring"] |= timing
    return sidecars


def _filter_rule(job: RunJob, cleaned: CleanedRun) -> str:
    """Say how the frequencies between the cut-offs were kept."""
    if not cleaned.high_pass and not cleaned.low_pass:
        return "none"
    if job.settings.strategy.filter == "cosine":
        return "discrete cosines among the regressors"
    return f"Butterworth, order {ORDER}, forth and back (zero phase), on series and confounds alike"


def _timing_notes(parcellation: Parcellation) -> list[str]:
    """Say so when header and sidecar disagree on the repetition time."""
    used, header = parcellation.repetition_time, parcellation.header_repetition_time
    if not used or not header or abs(used - header) <= 0.01 * used:
        return []
    return [f"the sidecar says {used:g} s between volumes, which is used, the header {header:g} s"]
