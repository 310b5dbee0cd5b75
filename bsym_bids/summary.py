"""What is said before and after a run: the plan, and what became of everyone."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from bsym_bids.errors import ParticipantsFailedError
from bsym_bids.outputs.publish import write_whole
from bsym_bids.outputs.tables import Table
from bsym_bids.untrusted import say

if TYPE_CHECKING:
    from bsym_bids.inputs import BoldRun, DwiScan, Plan
    from bsym_bids.jobs import Job


@dataclass(frozen=True)
class Outcome:
    """What became of one run.

    Attributes
    ----------
    participant, run : str
        Label of the participant and of the run.
    status : str
        ``done``, ``unchanged`` (outputs were up to date), ``failed`` or ``not run``.
    reason, hint : str
        Why it failed, and what to do.
    exit_code : int
        Exit code that the failure asks for.
    model_domain : str
        Whether the model knows the run's data, see `bsym_bids.model.domain`; empty if unknown.
    """

    participant: str
    run: str
    status: str
    reason: str = ""
    hint: str = ""
    exit_code: int = 0
    model_domain: str = ""


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """Return the exit code of a whole run.

    0 when nothing failed; 1 when some participants failed; the code of the failures themselves
    when no participant is complete and all failed for the same kind of reason.
    """
    failed = {outcome.participant for outcome in outcomes if outcome.exit_code}
    codes = {outcome.exit_code for outcome in outcomes if outcome.exit_code}
    if not failed:
        return 0
    complete = {outcome.participant for outcome in outcomes} - failed
    if not complete and len(codes) == 1:
        return codes.pop()
    return ParticipantsFailedError.exit_code


def write_summary(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write one row per run: participant, run, status, reason, hint, model_domain."""
    columns = {
        name: [getattr(outcome, name) for outcome in outcomes]
        for name in ("participant", "run", "status", "reason", "hint", "model_domain")
    }
    columns = {
        name: [" ".join(str(value).split()) for value in values] for name, values in columns.items()
    }
    write_whole(path, Table(columns))


def print_summary(
    outcomes: Sequence[Outcome], output_dir: Path, stream: TextIO | None = None
) -> None:
    """Print who is complete, who failed and why, and where to look."""
    stream = stream or sys.stderr
    counts = {
        status: sum(outcome.status == status for outcome in outcomes)
        for status in ("done", "unchanged", "failed", "not run")
    }
    said = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    participants = len({outcome.participant for outcome in outcomes})
    say(f"{participants} participant(s), {len(outcomes)} run(s): {said}", file=stream)
    print_failures(outcomes, stream)
    domains = Counter(outcome.model_domain for outcome in outcomes if outcome.model_domain)
    if domains:
        said = ", ".join(f"{count} {domain}" for domain, count in domains.most_common())
        say(f"does the model know these data? {said} (ModelDomain in the sidecars)", file=stream)
    say(f"outputs: {output_dir}", file=stream)


def print_failures(outcomes: Sequence[Outcome], stream: TextIO | None = None) -> None:
    """Print what failed and why."""
    stream = stream or sys.stderr
    for outcome in outcomes:
        if outcome.status in ("failed", "not run"):
            where = f"sub-{outcome.participant}"
            if outcome.run not in ("n/a", where):
                where = outcome.run
            say(f"  {where}: {outcome.status}: {outcome.reason}", file=stream)
            if outcome.hint:
                say(f"    hint: {outcome.hint}", file=stream)


def print_plan(
    plan: Plan, jobs: Mapping[str, Sequence[Job]] | None, stream: TextIO | None = None
) -> None:
    """Print what a run would do.

    Parameters
    ----------
    plan : Plan
        What was found.
    jobs : mapping, optional
        The jobs by participant; None when there is no model to make them with.
    stream : TextIO, optional
        Where to print; standard output by default.
    """
    stream = stream or sys.stdout
    for dataset in plan.datasets:
        kind = "derivatives" if dataset in plan.derivatives else "dataset"
        say(f"{kind} {dataset.name}: {dataset.root}", file=stream)
    for participant in plan.participants:
        say(f"sub-{participant.label}", file=stream)
        left = {job.label: job for job in (jobs or {}).get(participant.label, ())}
        for run in participant.bold_runs:
            _print_run(run, stream)
            _print_outputs(left.pop(run.label, None), stream)
        for scan in participant.dwi_scans:
            _print_scan(scan, stream)
            _print_outputs(left.pop(scan.label, None), stream)
        for label, job in left.items():
            say(f"  both {label}", file=stream)
            _print_outputs(job, stream)
        for problem in participant.problems:
            say(f"  problem: {problem}", file=stream)
    for skipped in plan.skipped:
        say(f"skipped {skipped.path}: {skipped.reason}", file=stream)
    say(f"{_count(plan)} to process", file=stream)


def _count(plan: Plan) -> str:
    runs = sum(len(participant.bold_runs) for participant in plan.participants)
    scans = sum(len(participant.dwi_scans) for participant in plan.participants)
    counts = [f"{len(plan.participants)} participant(s)"]
    counts += [f"{runs} run(s)"] * bool(runs or not scans) + [f"{scans} scan(s)"] * bool(scans)
    return ", ".join(counts)


def _print_run(run: BoldRun, stream: TextIO) -> None:
    say(f"  run {run.label}", file=stream)
    for role in ("bold", "mask", "confounds"):
        say(f"    {role:<9} {getattr(run, role) or 'none'}", file=stream)


def _print_scan(scan: DwiScan, stream: TextIO) -> None:
    from bsym_bids.inputs.routes import describe_route

    say(f"  scan {scan.label}", file=stream)
    for role, images in (("dwi", scan.images), ("reverse", scan.reverse)):
        for image in images:
            say(f"    {role:<9} {image.image}", file=stream)
            say(f"    {'gradients':<9} {image.bval} {image.bvec}", file=stream)
    if scan.is_preprocessed:
        say(f"    {'mask':<9} {scan.mask or 'none'}", file=stream)
    say(f"    {'t1w':<9} {scan.anatomy.t1w if scan.anatomy else 'none'}", file=stream)
    for sentence in describe_route(scan):
        say(f"    {sentence}", file=stream)


def _print_outputs(job: Job | None, stream: TextIO) -> None:
    if job is None:  # there is no model, or no engine
        return
    to_do = job.to_do  # which looks at all of its files
    for group in job.fingerprints:
        state = "write" if group in to_do else "keep"
        for path in job.names.group_paths(group):
            say(f"    {state:<9} {path}", file=stream)
