"""What is to be done where a participant has both modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from bsym_bids.jobs.base import Job
from bsym_bids.jobs.bold import RunJob, Settings
from bsym_bids.jobs.dwi import ScanJob
from bsym_bids.outputs.names import RunNames
from bsym_bids.outputs.publish import fingerprint


@dataclass(frozen=True)
class FusionJob(Job):
    """A BOLD run and the diffusion scan that it is fused with.

    Attributes
    ----------
    run : RunJob
        The run, whose names the outputs have.
    scan : ScanJob
        The scan.
    """

    run: RunJob
    scan: ScanJob
    kind = "fused_"

    @property
    def names(self) -> RunNames:  # type: ignore[override]
        """The output names."""
        return self.run.names

    @property
    def settings(self) -> Settings:  # type: ignore[override]
        """What decides the results."""
        return self.run.settings

    @property
    def waits_for(self) -> tuple[Job, ...]:
        """The jobs whose outputs it reads."""
        return self.run, self.scan

    @property
    def label(self) -> str:
        """What it is called in messages and tables."""
        return f"{self.run.label} with {self.scan.label}"

    @cached_property
    def fingerprints(self) -> Mapping[str, str]:
        """Expected fingerprint of each group of outputs."""
        both = self.run.fingerprints["embedding"], self.scan.fingerprints["structural"]
        return {"fused": fingerprint(*both)}


def fusions_of(runs: Sequence[RunJob], scans: Sequence[ScanJob]) -> list[FusionJob]:
    """Pair each BOLD run of a participant with a diffusion scan.

    Taken is the first scan of the run's own session. Where that has none, the first of all: the
    connectome of a person changes little between sessions.

    Returns
    -------
    list of FusionJob
        None when the model has no trained gate, or a modality is absent.
    """
    scans = [scan for scan in scans if scan.settings.structural]
    if not runs or not scans:
        return []
    release = runs[0].settings.release
    if not (release.trained and release.has_branch("gate")):
        return []
    return [FusionJob(run, _scan_for(run, scans)) for run in runs]


def _scan_for(run: RunJob, scans: Sequence[ScanJob]) -> ScanJob:
    session = run.run.entities.get("ses")
    same = (scan for scan in scans if scan.scan.entities.get("ses") == session)
    return next(same, scans[0])
