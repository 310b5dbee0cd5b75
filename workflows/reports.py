"""The pages of participants: after their runs, or again from what is there."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bsym_bids.config import RunConfig
from bsym_bids.errors import BsymError, InputMissingError, NothingSelectedError
from bsym_bids.outputs.dataset import check_location, make_writable
from bsym_bids.outputs.names import participant_page, sidecar_of, study_page
from bsym_bids.outputs.participant_record import record_of, recorded_participants, write_record
from bsym_bids.summary import Outcome, exit_code, print_summary
from bsym_bids.workflows.invocation import (
    memory_of,
    processes_of,
    run_log,
    set_up_console,
    set_up_libraries,
)

if TYPE_CHECKING:
    from bsym_bids.inputs import Plan
    from bsym_bids.jobs import Job

LOGGER = logging.getLogger("bsym_bids")
#: What the pages are called among the runs of a participant.
REPORT = "report"
#: Folder in the work folder that the group level keeps what it has read in.
GROUP_WORK = "group"
_PAGE_GB = 0.8  # of a process that makes pages


def run_group_report(config: RunConfig) -> int:
    """Make the page of all participants anew, and the text of methods; return the exit code.

    Raises
    ------
    BsymError
        There are no outputs, or the folder cannot be written.
    """
    config = _prepared(config)
    if config.dry_run:
        print(study_page(config.output_dir))
        return 0
    with run_log(config):
        for path in write_study_page(config):
            print(path)
        write_study_methods(config)
    return 0


def write_study_page(config: RunConfig) -> Sequence[Path]:
    """Make the page of all participants and its table; return their paths."""
    from bsym_bids.reports.group_page import write_group_page

    return write_group_page(config.output_dir, config.scratch / GROUP_WORK)


def write_study_methods(config: RunConfig) -> None:
    """Make the text of methods anew, from all outputs."""
    from bsym_bids.methods import rewrite_methods

    rewrite_methods(config.output_dir)


def _prepared(config: RunConfig) -> RunConfig:
    """Return settings to make reports with, after what every call does first."""
    config = config.with_absolute_paths()
    set_up_libraries(config.scratch)
    set_up_console(config.verbose)
    check_location(config.bids_dir, config.output_dir, config.scratch)
    if not config.output_dir.is_dir():
        raise InputMissingError(
            f"{config.output_dir}: no such folder",
            hint="process the participants first, or name their output folder",
        )
    if not config.dry_run:
        make_writable(config.output_dir)
    return config


def run_reports_only(config: RunConfig) -> int:
    """Make the pages anew of participants whose outputs are there, and return the exit code.

    Raises
    ------
    BsymError
        There are no outputs, or the folder cannot be written.
    """
    from bsym_bids.methods import rewrite_methods
    from bsym_bids.reports.measures import find_participants

    config = _prepared(config)
    known = {*find_participants(config.output_dir), *recorded_participants(config.output_dir)}
    there = sorted(known)
    labels = [one for one in there if one in (config.participant_label or there)]
    if not labels:
        raise NothingSelectedError(
            f"{config.output_dir}: holds no outputs of the participants that are asked for",
            hint="process the participants first, and see its summary under logs/",
        )
    if config.dry_run:
        for label in labels:
            print(participant_page(config.output_dir, label))
        return 0
    with run_log(config):
        outcomes = [Outcome(label, REPORT, "done") for label in labels]
        failed = write_pages(config, labels)
        with_methods = _with_methods(partial(rewrite_methods, config.output_dir))
        outcomes = [failed.get(outcome.participant, outcome) for outcome in outcomes]
        print_summary([*outcomes, *with_methods], config.output_dir)
    return exit_code([*outcomes, *with_methods])


def report_call(
    config: RunConfig,
    plan: Plan,
    jobs: Mapping[str, Sequence[Job]],
    outcomes: Sequence[Outcome],
    call: str,
) -> list[Outcome]:
    """Keep on record what became of everyone, and make the pages that are not up to date.

    Parameters
    ----------
    config : RunConfig
        The settings of the call.
    plan : Plan
        All that was found.
    jobs : mapping of str to sequence of Job
        The jobs by participant.
    outcomes : sequence of Outcome
        What became of them, without what another process works on.
    call : str
        Name of the call.

    Returns
    -------
    list of Outcome
        One for each page that could not be made.
    """
    from bsym_bids.methods import write_methods

    stale = []
    for participant in plan.participants:
        own = [one for one in outcomes if one.participant == participant.label]
        if not own:  # another process works on all of it, and makes the page
            continue
        record = record_of(plan, participant, own, call, config.output_dir)
        write_record(config.output_dir, record)
        page = participant_page(config.output_dir, participant.label)
        is_new = any(one.status != "unchanged" for one in own)
        if is_new or not _is_current(page, jobs[participant.label]):
            stale.append(participant.label)
    if config.skip_reports:
        return []
    failed = write_pages(config, stale)
    if not stale:
        return []
    return [*failed.values(), *_with_methods(partial(write_methods, config.output_dir, stale))]


def _is_current(page: Path, jobs: Sequence[Job]) -> bool:
    """Tell whether a page is there and no older than the outputs that it shows."""
    try:
        made = page.stat().st_mtime_ns
        return all(
            sidecar_of(path).stat().st_mtime_ns <= made
            for job in jobs
            for group in job.fingerprints
            for path in job.names.group_paths(group)
        )
    except OSError:
        return False


def write_pages(config: RunConfig, labels: Sequence[str]) -> dict[str, Outcome]:
    """Make the pages of participants in processes; return what failed, by participant."""
    from bsym_bids.cohort.parallel import each_apart, memory_allows
    from bsym_bids.reports.participant_page import write_participant_page

    n_workers = memory_allows(processes_of(config), memory_of(config), _PAGE_GB)
    make = partial(write_participant_page, config.output_dir)
    failed = {}
    for index, result in each_apart(make, labels, min(n_workers, len(labels))):
        if isinstance(result, BsymError):
            label = labels[index]
            hint = result.hint or "then make it again with --reports-only"
            failed[label] = Outcome(label, REPORT, "failed", str(result), hint, result.exit_code)
        else:
            LOGGER.info("%s", result)
    return failed


def _with_methods(write: partial[object]) -> list[Outcome]:
    """Write the text of methods; return what failed."""
    try:
        write()
    except BsymError as error:
        return [Outcome("n/a", "methods text", "failed", str(error), error.hint, error.exit_code)]
    return []
