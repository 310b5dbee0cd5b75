"""The pages of participants: after their runs, or again from what is there."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bsym_bids.config import MODALITIES, RunConfig
from bsym_bids.errors import BsymError, InputMissingError, NothingSelectedError, explain_machine
from bsym_bids.outputs.dataset import check_location, make_writable
from bsym_bids.outputs.names import participant_page, sidecar_of, study_page
from bsym_bids.outputs.participant_record import (
    record_of,
    record_path,
    recorded_participants,
    write_record,
)
from bsym_bids.outputs.tables import NOT_AVAILABLE
from bsym_bids.summary import Outcome, exit_code, print_failures
from bsym_bids.workflows.invocation import (
    memory_of,
    processes_of,
    run_log,
    set_up_console,
    set_up_libraries,
)

if TYPE_CHECKING:
    from bsym_bids.inputs import Participant, Plan
    from bsym_bids.jobs import Job

LOGGER = logging.getLogger("bsym_bids")
#: What the pages are called among the runs of a participant.
REPORT = "report"
#: Folder in the work folder that the group level keeps what it has read in.
GROUP_WORK = "group"
_CLOCKS_DIFFER = 60 * 10**9  # ns, at most, between the machines of a cluster
_PAGE_GB = 0.8  # of a process that makes pages


def run_group_report(config: RunConfig) -> int:
    """Make the page of all participants anew, and the text of methods; return the exit code.

    Raises
    ------
    BsymError
        There are no outputs, or the folder cannot be written.
    """
    config = _prepared(config)
    if not _known_participants(config.output_dir):
        raise NothingSelectedError(
            f"{config.output_dir}: holds no outputs of any participant",
            hint="process the participants first, or name their output folder",
        )
    if config.dry_run:
        print(study_page(config.output_dir))
        return 0
    with run_log(config):
        failed = report_study(config) + _write_methods(config, None)
        print_failures(failed)
    return exit_code(failed)


def report_study(config: RunConfig) -> list[Outcome]:
    """Make the page of all participants and its table; return what failed."""
    from bsym_bids.reports.group_page import write_group_page

    if not _known_participants(config.output_dir):
        return []

    def write() -> None:
        for path in write_group_page(config.output_dir, config.scratch / GROUP_WORK):
            print(path)

    return _guarded(NOT_AVAILABLE, "page of all participants", write)


def rewrite_study_methods(config: RunConfig) -> list[Outcome]:
    """Make the text of methods anew, from all outputs; return what failed."""
    return _write_methods(config, None)


def _known_participants(output_dir: Path) -> list[str]:
    """Return everyone who has outputs or is on record, sorted."""
    from bsym_bids.reports.measures import find_participants

    return sorted({*find_participants(output_dir), *recorded_participants(output_dir)})


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
    config = _prepared(config)
    there = _known_participants(config.output_dir)
    for label in config.participant_label:
        if label not in there:
            LOGGER.warning("sub-%s: there are no outputs of it", label)
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
        outcomes = [failed.get(outcome.participant, outcome) for outcome in outcomes]
        outcomes += _write_methods(config, None)
        print(f"{len(labels) - len(failed)} of {len(labels)} report(s) made", file=sys.stderr)
        print_failures(outcomes)
    return exit_code(outcomes)


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
    stale, failed = [], []
    by_label: dict[str, list[Outcome]] = {}
    for one in outcomes:
        by_label.setdefault(one.participant, []).append(one)
    for participant in plan.participants:
        own = by_label.get(participant.label)
        if not own:  # another process works on all of it, and makes the page
            continue
        failed += _guarded(
            participant.label,
            "record",
            partial(_keep_record, config, plan, participant, own, call),
        )
        page = participant_page(config.output_dir, participant.label)
        record = record_path(config.output_dir, participant.label)
        if not _is_current(page, record, jobs[participant.label]):
            stale.append(participant.label)
    if config.skip_reports or not stale:
        return failed
    failed += write_pages(config, stale).values()
    return failed + _write_methods(config, stale)


def _keep_record(
    config: RunConfig,
    plan: Plan,
    participant: Participant,
    outcomes: Sequence[Outcome],
    call: str,
) -> None:
    record = record_of(plan, participant, outcomes, call, config.output_dir)
    write_record(config.output_dir, record, is_whole=not _is_partial(config))


def _is_partial(config: RunConfig) -> bool:
    """Tell whether a call looks at a part of what there is of a participant."""
    chosen = config.session_label, config.task_id, config.run_id, config.bids_filter_file
    return any(chosen) or set(config.modalities) != set(MODALITIES)


def _write_methods(config: RunConfig, labels: Sequence[str] | None) -> list[Outcome]:
    """Write the text of methods after some participants, or anew; return what failed."""
    from bsym_bids.methods import rewrite_methods, write_methods

    if labels is None:
        write: Callable[[], object] = partial(rewrite_methods, config.output_dir)
    else:
        write = partial(write_methods, config.output_dir, labels)
    return _guarded(NOT_AVAILABLE, "methods text", write)


def _guarded(participant: str, what: str, write: Callable[[], object]) -> list[Outcome]:
    """Do something that must not stop anything else; return what failed."""
    try:
        write()
    except Exception as error:
        known = error if isinstance(error, BsymError) else explain_machine(error, "bsym-bids")
        if known is None:
            LOGGER.error("a fault of the program", exc_info=error)
            known = BsymError(f"a fault of the program: {type(error).__name__}: {error}")
        return [Outcome(participant, what, "failed", str(known), known.hint, known.exit_code)]
    return []


def _is_current(page: Path, record: Path, jobs: Sequence[Job]) -> bool:
    """Tell whether a page was begun after the record and the outputs that it shows were there.

    A page of a time to come, of a clock that was wrong, tells nothing of that.
    """
    finished = [
        sidecar_of(path)
        for job in jobs
        for group in job.fingerprints
        if group not in job.to_do
        for path in job.names.group_paths(group)
    ]
    try:
        begun = page.stat().st_mtime_ns
        if begun > time.time_ns() + _CLOCKS_DIFFER:
            return False
        return all(path.stat().st_mtime_ns <= begun for path in (record, *finished))
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
