"""What is to be done for each BOLD run and diffusion scan, decided before anything is computed.

The settings that decide a result, the input files and the version of the program give a
fingerprint. What carries the expected fingerprint is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from bsym_bids.jobs.base import Job
from bsym_bids.jobs.bold import EmbeddingJob, RunJob, Settings
from bsym_bids.jobs.cohort import CohortJob
from bsym_bids.jobs.dwi import ScanJob, ScanSettings
from bsym_bids.jobs.fusion import FusionJob, fusions_of
from bsym_bids.outputs.names import RunNames, ScanNames

if TYPE_CHECKING:
    from bsym_bids.config import RunConfig
    from bsym_bids.inputs import Participant, Plan

__all__ = [
    "CohortJob",
    "EmbeddingJob",
    "FusionJob",
    "Job",
    "RunJob",
    "ScanJob",
    "ScanSettings",
    "Settings",
    "in_chunks",
    "jobs_of",
]


def jobs_of(
    plan: Plan, config: RunConfig, settings: Settings, scan_settings: ScanSettings | None = None
) -> dict[str, list[Job]]:
    """Return the jobs of every participant by label, in the order of the plan.

    Parameters
    ----------
    plan : Plan
        What was found.
    config : RunConfig
        The settings of the call.
    settings : Settings
        What decides the results of BOLD runs.
    scan_settings : ScanSettings, optional
        What decides those of diffusion scans; without, there are no jobs for them.

    Returns
    -------
    dict
        BOLD runs, then diffusion scans, then what needs both.
    """
    found: dict[str, list[Job]] = {}
    for participant in plan.participants:
        runs = _run_jobs(participant, config, settings)
        scans = _scan_jobs(participant, config, scan_settings) if scan_settings else []
        found[participant.label] = [*runs, *scans, *fusions_of(runs, scans)]
    return found


def _run_jobs(participant: Participant, config: RunConfig, settings: Settings) -> list[RunJob]:
    return [
        RunJob(
            run=run,
            names=RunNames(
                output_dir=config.output_dir,
                entities=run.entities,
                space=run.space,
                resolution=run.resolution,
                density=run.density,
                method=config.parcel_method,
            ),
            settings=settings,
        )
        for run in participant.bold_runs
    ]


def _scan_jobs(
    participant: Participant, config: RunConfig, settings: ScanSettings
) -> list[ScanJob]:
    return [
        ScanJob(
            scan=scan,
            names=ScanNames(
                output_dir=config.output_dir,
                entities=scan.entities,
                space=scan.space,
                tractogram=settings.tractogram,
                fibre_capacity=settings.engine.has_weights and settings.preset.sift2,
            ),
            settings=settings,
        )
        for scan in participant.dwi_scans
    ]


def in_chunks(labels: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """Cut a list of participants into pieces, so that no graph grows without bound."""
    for start in range(0, len(labels), size):
        yield labels[start : start + size]
