"""The participant level: plan, check, run, and say what became of everyone."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bsym_bids.config import RunConfig
from bsym_bids.errors import BsymError, CannotCreateOutputError, InputMissingError
from bsym_bids.inputs import Plan, Selection, plan_inputs
from bsym_bids.inputs.case import check_case
from bsym_bids.jobs import (
    Job,
    RunJob,
    ScanJob,
    ScanSettings,
    Settings,
    in_chunks,
    jobs_of,
)
from bsym_bids.outputs.claims import KINDS, Claims, same_settings
from bsym_bids.outputs.dataset import (
    OF_ROIS,
    OF_SCANS,
    WORK_ROOT,
    check_apart,
    check_location,
    check_space,
    describe_dataset,
    make_writable,
)
from bsym_bids.outputs.publish import explained, fingerprint
from bsym_bids.progress import Progress
from bsym_bids.summary import (
    Outcome,
    exit_code,
    print_failures,
    print_plan,
    print_summary,
    write_summary,
)
from bsym_bids.workflows.invocation import (
    memory_of,
    processes_of,
    run_log,
    set_up_console,
    set_up_libraries,
)
from bsym_bids.workflows.reports import report_call, run_reports_only

if TYPE_CHECKING:
    from bsym_bids.model.weights import Release
    from bsym_bids.workflows.base import Threads
    from bsym_bids.workflows.execution import Failure, PluginChoice

LOGGER = logging.getLogger("bsym_bids")
_CHUNK = 50  # participants per graph: bounds the memory of the graph and of its bookkeeping
_BYTES_PER_RUN = 40_000_000  # outputs and work files of a run of 1200 volumes
# While a scan is at work: fibre orientations and streamlines, and so many times its series.
_BYTES_PER_SCAN, _COPIES_OF_SERIES, _COPIES_WITH_FSL = 1_500_000_000, 4, 7
_BYTES_PER_PCA = 750_000_000  # its voxels in the ROIs, on disk while their components are taken


def run_participant_level(config: RunConfig) -> int:
    """Run the participant level and return its exit code.

    Parameters
    ----------
    config : RunConfig
        The settings of the run.

    Returns
    -------
    int
        0 when every participant is complete; otherwise as `bsym_bids.summary.exit_code` says.

    Raises
    ------
    BsymError
        Whatever keeps the run from starting.
    """
    from bsym_bids.bold.nuisance import load_strategy
    from bsym_bids.model.fetch import fetch_release, first_use_source
    from bsym_bids.model.weights import default_model_name

    if config.reports_only:
        return run_reports_only(config)
    config = config.with_absolute_paths()  # the steps work in folders of their own
    set_up_libraries(config.scratch)
    set_up_console(config.verbose)
    check_location(config.bids_dir, config.output_dir, config.scratch, config.bids_database_dir)
    strategy = load_strategy(config.nuisance)
    model = config.model or default_model_name()
    config = replace(config, model=model)
    try:
        release = _find_release(model, config.model_dir)
    except BsymError:
        if config.dry_run:
            print_plan(_plan(config), None)
        raise
    plan = _plan(config)
    for dataset in plan.datasets:
        check_apart(dataset.root, config.output_dir)
    is_trial = config.dry_run or config.write_slurm is not None
    check_case(plan, config.output_dir, config.scratch, is_trial=is_trial)
    if release is None:
        if config.dry_run:
            print_plan(plan, None)
            source = first_use_source(model, config.model_dir)
            print(f"model {model}: not here; a run would first fetch it from {source}")
            return 0
        release = fetch_release(model)
    settings = Settings.of(config, strategy, release)
    plan, scan_settings = _scan_settings(plan, config, release)
    jobs = jobs_of(plan, config, settings, scan_settings)
    if config.dry_run:
        _log_notes(plan)
        print_plan(plan, jobs)
        return 0
    if config.write_slurm is not None:
        if scan_settings is not None:  # no node shall choose its own
            config = replace(config, engine=scan_settings.engine.name)
        return _write_slurm(config, config.write_slurm, plan, jobs)
    return _process(config, plan, jobs, settings, scan_settings)


def _process(
    config: RunConfig,
    plan: Plan,
    jobs: Mapping[str, Sequence[Job]],
    settings: Settings,
    scan_settings: ScanSettings | None,
) -> int:
    """Do what there is to do and nobody else does, say what became of it; return the exit code."""
    release = settings.release
    plugin = _plugin(config)
    unfinished = [job for own in jobs.values() for job in own if job.to_do]
    _check_network(release, unfinished)
    _prepare_folders(config, unfinished)
    logs = config.output_dir / "logs"
    decided = _decided_by(settings, scan_settings, unfinished)
    with (
        run_log(config) as run_id,
        same_settings(logs, decided),
        Claims([logs, config.scratch]) as claims,
    ):
        _describe(config, plan, unfinished)
        _log_notes(plan)
        if config.clean_workdir:
            _clean_work(config.scratch / WORK_ROOT, claims, config.participant_label)
        todo, taken = _claim(jobs, claims)
        if release.warning:
            LOGGER.warning("%s", release.warning)
        _warn_of_deviations(todo)
        started = [job for own in todo.values() for job in own]
        threads = _threads(config, started, plugin)
        LOGGER.info("model %s, version %s", release.name, release.version)
        LOGGER.info("plugin %s %s, %s a step", plugin.name, plugin.arguments, threads)
        LOGGER.info("work directory %s", config.scratch)
        planned = {(label, job.label) for label, runs in todo.items() for job in runs}
        failures = taken | _run_all(todo, config, plugin, threads)
        outcomes = _outcomes(plan, jobs, planned, failures)
        print_summary(outcomes, config.output_dir)  # first: the disk may be what failed
        write_summary(outcomes, logs / f"{run_id}_summary.tsv")
        own = [one for one in outcomes if (one.participant, one.run) not in taken]
        failed = report_call(config, plan, jobs, own, run_id)
        print_failures(failed)
        outcomes += failed
    return exit_code(outcomes)


def _write_slurm(
    config: RunConfig, path: Path, plan: Plan, jobs: Mapping[str, Sequence[Job]]
) -> int:
    """Write the script for SLURM instead of processing anything, and return the exit code."""
    from bsym_bids.slurm import ParticipantWork, submission_script

    work = []
    for participant in plan.participants:
        todo = [job for job in jobs[participant.label] if job.to_do]
        if todo or participant.problems:  # a job says which, in a summary
            runs = sum(isinstance(job, RunJob) for job in todo)
            scans = sum(isinstance(job, ScanJob) for job in todo)
            work.append(ParticipantWork(participant.label, runs, scans))
    with explained(path):
        path.write_text(submission_script(config, work), "utf-8", "surrogateescape")
    print(
        f"wrote {path}: {len(work)} of {len(plan.participants)} participant(s) to be processed\n"
        f"submit it: bash {path} [options of sbatch, as --account=... --partition=...]"
    )
    return 0


def _find_release(name: str, model_dir: Path | None) -> Release | None:
    """Return the model, or None when its files are not here but may be fetched."""
    from bsym_bids.model.fetch import first_use_source
    from bsym_bids.model.weights import resolve_release

    try:
        return resolve_release(name, model_dir=model_dir)
    except InputMissingError:
        if first_use_source(name, model_dir) is None:
            raise
        return None


def _scan_settings(
    plan: Plan, config: RunConfig, release: Release
) -> tuple[Plan, ScanSettings | None]:
    """Return what decides connectomes; without an engine, a plan in which scans are problems."""
    if not any(participant.dwi_scans for participant in plan.participants):
        return plan, None
    try:
        return plan, ScanSettings.of(config, release)
    except InputMissingError as error:  # the engine: time series can be had without it
        participants = tuple(
            (
                replace(person, dwi_scans=(), problems=(*person.problems, error))
                if person.dwi_scans
                else person
            )
            for person in plan.participants
        )
        return replace(plan, participants=participants), None


def _check_network(release: Release, jobs: Sequence[Job]) -> None:
    """Load the network once before anything is computed: what is wrong with it stops the run.

    In a process of its own, since a process whose torch has threads must not be forked. Imported
    here, where it starts none, torch need not be imported again in every process that is.
    """
    from bsym_bids.bold.windows import WINDOW_LENGTH
    from bsym_bids.model.contract import load_and_check
    from bsym_bids.workflows.execution import call_apart

    functional = any(isinstance(job, RunJob) and "embedding" in job.to_do for job in jobs)
    structural = any(isinstance(job, ScanJob) and "structural" in job.to_do for job in jobs)
    if functional or structural:
        import torch  # noqa: F401
    if release.files and (functional or structural):
        call_apart(load_and_check, release, WINDOW_LENGTH, functional)


def _decided_by(
    settings: Settings, scan_settings: ScanSettings | None, jobs: Sequence[Job]
) -> dict[str, str | None]:
    """Return what tells calls of other settings from this one, for what it will work on."""
    bold, dwi, _ = KINDS
    decided: dict[str, str | None] = {}
    jobs = [one for job in jobs for one in (job, *job.waits_for)]  # what it reads has to stay
    if any(isinstance(job, RunJob) for job in jobs):
        decided[bold] = fingerprint(settings.timeseries, settings.embedding)
    if scan_settings is not None and any(isinstance(job, ScanJob) for job in jobs):
        decided[dwi] = fingerprint(
            scan_settings.connectome, scan_settings.structural, scan_settings.preprocessing
        )
    return decided


def _warn_of_deviations(todo: Mapping[str, Sequence[Job]]) -> None:
    """Say how inputs will differ from what the model was made for; sidecars say it for each."""
    counts = Counter(
        deviation
        for runs in todo.values()
        for job in runs
        if {"embedding", "structural"} & set(job.to_do)
        for deviation in job.expected_deviations()
    )
    for deviation, count in counts.items():
        LOGGER.warning("%d run(s) or scan(s): %s", count, deviation)


def _plan(config: RunConfig) -> Plan:
    """Find what there is to do."""
    return plan_inputs(
        config.bids_dir,
        derivatives=config.derivatives,
        selection=Selection.of(config),
        spaces=config.space,
        skip_bids_validation=config.skip_bids_validation,
        database_dir=config.bids_database_dir,
        modalities=config.modalities,
    )


def _log_notes(plan: Plan) -> None:
    """Log how the plan was found: the file of the log is not there yet when it is."""
    for note in plan.notes:
        LOGGER.info("%s", note)


def _plugin(config: RunConfig) -> PluginChoice:
    from bsym_bids.workflows.execution import choose_plugin

    return choose_plugin(config.use_plugin, processes_of(config), memory_of(config))


def _threads(config: RunConfig, jobs: Sequence[Job], plugin: PluginChoice) -> Threads:
    """Return threads of one step: as asked, else what runs or scans leave idle among them.

    Scans are by far the longer, so that they do not leave room for runs. What a step has that is a
    job of its own is not known here: it gets one thread unless more are asked for.
    """
    from bsym_bids.workflows.base import Threads

    if not plugin.is_here:
        threads = config.omp_nthreads or 1
        return Threads(threads, threads)
    processes = processes_of(config)
    scans = sum(isinstance(job, ScanJob) for job in jobs)
    runs = sum(isinstance(job, RunJob) for job in jobs)
    if config.omp_nthreads:
        threads = min(config.omp_nthreads, processes)
        return Threads(threads, threads)
    return Threads(
        run=min(8, max(1, processes // max(1, runs))),
        scan=max(1, processes // max(1, scans)),
    )


def _describe(config: RunConfig, plan: Plan, jobs: Sequence[Job]) -> None:
    """Say of what datasets the outputs are, and what their columns mean."""
    of_runs = any(isinstance(job, RunJob) for job in jobs)
    of_scans = any(isinstance(job, ScanJob) for job in jobs)
    links = {dataset.name: dataset.root for dataset in plan.datasets}
    describe_dataset(config.output_dir, links, OF_ROIS if of_runs else OF_SCANS if of_scans else ())


def _prepare_folders(config: RunConfig, jobs: Sequence[Job]) -> None:
    """Make the output and work folders, and refuse to start without the space for them."""
    output, work = config.output_dir, config.scratch
    make_writable(output)
    make_writable(work)
    runs = sum(isinstance(job, RunJob) for job in jobs)
    scans = [job for job in jobs if isinstance(job, ScanJob)]
    needed = (runs + len(scans)) * _BYTES_PER_RUN
    check_space(output, needed)
    if config.parcel_method == "pca":
        needed += min(runs, processes_of(config)) * _BYTES_PER_PCA
    missing = sorted((_missing_bytes(work, job) for job in scans), reverse=True)
    needed += sum(missing[: processes_of(config)])
    check_space(work, needed)


def _missing_bytes(work: Path, job: ScanJob) -> int:
    """Return what the work folder of a scan will need beyond what an earlier run left there."""
    from bsym_bids.workflows.base import run_folder

    if "connectome" not in job.to_do:
        return 0
    copies = _COPIES_WITH_FSL if job.uses_fsl else _COPIES_OF_SERIES
    needed = _BYTES_PER_SCAN + copies * job.work_bytes
    there = sum(
        path.stat().st_size
        for path in run_folder(work, job.names.entities["sub"], job).rglob("*")
        if path.is_file()
    )
    return max(needed - there, 0)


def _clean_work(root: Path, claims: Claims, labels: Collection[str]) -> None:
    """Remove what earlier runs left in the work folder, but not what another process works on.

    Of some participants, where these alone were asked for.
    """
    from bsym_bids.workflows.base import participant_name

    if root.is_symlink():
        raise CannotCreateOutputError(
            f"{root}: is a link, and --clean-workdir does not empty what it leads to",
            hint="remove the link, or choose another --work-dir",
        )
    names = set(map(participant_name, labels))
    for folder in sorted(root.glob("sub_*/*")):
        is_asked_for = not names or folder.parent.name in names
        is_link = folder.is_symlink() or folder.parent.is_symlink()
        if is_asked_for and not is_link and folder.is_dir() and claims.claim(folder.name):
            with explained(folder):
                shutil.rmtree(folder)
            claims.release(folder.name)


def _claim(
    jobs: Mapping[str, Sequence[Job]], claims: Claims
) -> tuple[dict[str, list[Job]], dict[tuple[str, str], Failure]]:
    """Return what there is to do and nobody else does, and what another process works on."""
    from bsym_bids.workflows.execution import Failure

    todo: dict[str, list[Job]] = {}
    taken = {}
    for label, own in jobs.items():
        elsewhere = set()
        for job in own:
            if not job.to_do:
                continue
            waits = any(source.work_name in elsewhere for source in job.waits_for)
            if not waits and claims.claim(job.work_name):
                todo.setdefault(label, []).append(job)
            else:
                elsewhere.add(job.work_name)
                taken[label, job.label] = Failure(
                    "another process is working on this run",
                    "wait for it to end, then run the same command again",
                    CannotCreateOutputError.exit_code,
                )
    return todo, taken


def _run_all(
    todo: Mapping[str, Sequence[Job]], config: RunConfig, plugin: PluginChoice, threads: Threads
) -> dict[tuple[str, str], Failure]:
    """Run everything, and once more alone what a killed worker took down with it."""
    from bsym_bids.workflows.execution import PluginChoice as Choice

    if todo:
        _load_libraries()
    steps = _count_all_steps(todo, threads)
    progress = Progress(steps)
    failures: dict[tuple[str, str], Failure] = {}
    for labels in in_chunks(list(todo), _CHUNK):
        chunk = {label: todo[label] for label in labels}
        new = _run_chunk(chunk, config, plugin, threads, progress)
        victims = {label for (label, _), failure in new.items() if failure.worker_died}
        if victims and not config.stop_on_first_crash:
            LOGGER.warning("%d participant(s) lost their worker: trying again alone", len(victims))
            most = max(threads.run, threads.scan)
            alone = Choice(plugin.name, {**plugin.arguments, "n_procs": most})
            again = {label: chunk[label] for label in victims}
            new = {key: value for key, value in new.items() if key[0] not in victims}
            new |= _run_chunk(again, config, alone, threads, progress)
        failures |= new
        failed = {label for label, _ in failures}
        stopped = config.stop_on_first_crash and bool(failed)
        for label in failed if stopped else labels:
            progress.close(label, failed=label in failed)
        if stopped:
            break
    return failures


def _load_libraries() -> None:
    """Import what most steps use, before there are processes that would each do so."""
    import scipy.fft
    import scipy.interpolate
    import scipy.linalg
    import scipy.ndimage
    import scipy.signal
    import scipy.spatial  # noqa: F401


def _count_all_steps(todo: Mapping[str, Sequence[Job]], threads: Threads) -> dict[str, int]:
    """Return the number of steps of each participant."""
    # A graph takes a while to be made, and where the same is to be done it has the same steps.
    counted: dict[tuple[tuple[type[Job], tuple[str, ...]], ...], int] = {}
    steps = {}
    for label, jobs in todo.items():
        shape = tuple((type(job), job.to_do) for job in jobs)
        if shape not in counted:
            counted[shape] = _count_steps(jobs, threads)
        steps[label] = counted[shape]
    return steps


def _count_steps(runs: Sequence[Job], threads: Threads) -> int:
    from bsym_bids.workflows.base import init_participant_wf

    graph = init_participant_wf(label="x", jobs=runs, threads=threads)
    return len(graph.list_node_names())


def _run_chunk(
    jobs: Mapping[str, Sequence[Job]],
    config: RunConfig,
    plugin: PluginChoice,
    threads: Threads,
    progress: Progress,
) -> dict[tuple[str, str], Failure]:
    """Run some participants and return the failures by participant and run."""
    from bsym_bids.workflows.base import (
        crash_folder,
        init_participants_wf,
        participant_name,
        run_folder,
    )
    from bsym_bids.workflows.execution import (
        clear_failures,
        crash_files,
        failure_of,
        run_graph,
        unrecorded,
    )

    work = config.scratch.resolve()
    folders = {
        (label, job.label): run_folder(work, label, job)
        for label, runs in jobs.items()
        for job in runs
    }
    for folder in folders.values():
        clear_failures(folder)
    labels = {participant_name(label): label for label in jobs}

    def note(node: object, status: str) -> None:
        _, participant, *_, step = str(node.fullname).split(".")  # type: ignore[attr-defined]
        what = step.replace("_", " ")
        LOGGER.info("sub-%s: %s: %s", labels[participant], what, status)
        progress.step(labels[participant], status, what)

    earlier = {label: crash_files(crash_folder(config.output_dir, label)) for label in jobs}
    workflow = init_participants_wf(
        jobs=jobs,
        output_dir=config.output_dir,
        work_dir=work,
        threads=threads,
        stop_on_first_crash=config.stop_on_first_crash,
    )
    error = run_graph(workflow, plugin.build(note))
    if error is not None:
        LOGGER.debug("the graph ended with", exc_info=error)
    missing = [(label, job.label) for label, runs in jobs.items() for job in runs if job.to_do]
    failures = {}
    for label, run in missing:
        crashes = crash_folder(config.output_dir, label)
        if failure := failure_of(folders[label, run], crashes, earlier[label]):
            failures[label, run] = failure
    if config.stop_on_first_crash and failures:
        return failures  # the others were not run
    return {key: failures.get(key) or unrecorded(error) for key in missing}


def _outcomes(
    plan: Plan,
    jobs: Mapping[str, Sequence[Job]],
    planned: Collection[tuple[str, str]],
    failures: Mapping[tuple[str, str], Failure],
) -> list[Outcome]:
    """Say what became of every run of every participant."""
    outcomes = []
    for participant in plan.participants:
        label = participant.label
        for problem in participant.problems:
            outcomes.append(
                Outcome(label, "n/a", "failed", str(problem), problem.hint, problem.exit_code)
            )
        for job in jobs[label]:
            outcomes.append(_outcome(label, job, planned, failures))
    return outcomes


def _outcome(
    label: str,
    job: Job,
    planned: Collection[tuple[str, str]],
    failures: Mapping[tuple[str, str], Failure],
) -> Outcome:
    """Say what became of one run, scan, or both together."""
    for source in job.waits_for:
        if job.to_do and (label, source.label) in failures:
            return Outcome(label, job.label, "not run", f"it needs {source.label}, which failed")
    failure = failures.get((label, job.label))
    if failure:
        return Outcome(label, job.label, "failed", failure.message, failure.hint, failure.exit_code)
    if job.to_do:
        return Outcome(label, job.label, "not run", "stopped before", "", 1)
    status = "done" if (label, job.label) in planned else "unchanged"
    return Outcome(label, job.label, status, model_domain=job.model_domain())
