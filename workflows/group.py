"""The group level: what the outputs of all participants say together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bsym_bids.config import RunConfig
from bsym_bids.errors import BsymError, InputMissingError, NothingSelectedError
from bsym_bids.inputs import Selection
from bsym_bids.outputs.claims import KINDS, same_settings
from bsym_bids.outputs.dataset import check_location, describe_dataset, make_writable
from bsym_bids.prediction.inventory import Inventory, take_inventory
from bsym_bids.summary import Outcome, exit_code, print_failures, print_summary, write_summary
from bsym_bids.untrusted import say
from bsym_bids.workflows.invocation import (
    memory_of,
    processes_of,
    run_log,
    set_up_console,
    set_up_libraries,
)
from bsym_bids.workflows.reports import (
    GROUP_WORK,
    report_study,
    rewrite_study_methods,
    run_group_report,
)

LOGGER = logging.getLogger("bsym_bids")


def run_group_level(config: RunConfig) -> int:
    """Run the group level and return its exit code.

    It reads the outputs of the participant level and the phenotype tables, nothing else, and leaves
    everything as it is that is there already. The page of all participants is made by every call.

    Parameters
    ----------
    config : RunConfig
        What is asked for. Without a request, the maps of the cohort are made.

    Returns
    -------
    int
        0; of cohort scaling, what `bsym_bids.summary.exit_code` says of the runs.

    Raises
    ------
    BsymError
        Whatever keeps the level from its work.
    """
    if config.reports_only:
        return run_group_report(config)
    config = config.with_absolute_paths()
    set_up_libraries(config.scratch, threads=processes_of(config))
    set_up_console(config.verbose)
    check_location(config.bids_dir, config.output_dir, config.scratch)
    if not config.bids_dir.is_dir():
        raise InputMissingError(f"{config.bids_dir}: no such folder")
    if config.dry_run:
        _print_plan(config, _inventory(config))
        return 0
    _check_there(config)
    make_writable(config.output_dir)
    make_writable(config.scratch / GROUP_WORK)
    with run_log(config) as run_id, same_settings(config.output_dir / "logs", {KINDS[2]: None}):
        # Of a cohort in which everything failed, too, and whatever becomes of what is asked for.
        failed = [] if config.skip_reports else report_study(config)
        inventory = _inventory(config)
        outcomes: Sequence[Outcome] = ()
        if config.scaling == "cohort":
            _describe(config)
            outcomes = _scale(config, str(inventory.model.get("Name", "")), run_id)
            inventory = _inventory(config)  # with what is there now
        try:
            _answer(config, inventory)
        finally:
            failed += [] if config.skip_reports else rewrite_study_methods(config)
            print_failures(failed)
    return exit_code([*outcomes, *failed])


def _describe(config: RunConfig) -> None:
    """Name the BIDS dataset among those that the outputs are of."""
    describe_dataset(config.output_dir, {"raw": config.bids_dir})


def _check_there(config: RunConfig) -> None:
    if not config.output_dir.is_dir():
        raise InputMissingError(
            f"{config.output_dir}: no such folder",
            hint=(
                f"process the participants first: bsym-bids {config.bids_dir} "
                f"{config.output_dir} participant"
            ),
        )


def _inventory(config: RunConfig) -> Inventory:
    """Return what the participant level has written."""
    _check_there(config)
    scaled = config.scaling == "cohort" and not config.dry_run
    inventory = take_inventory(config.output_dir, Selection.of(config), cohort_scaled=scaled)
    if not inventory.records:
        raise NothingSelectedError(
            f"{config.output_dir}: holds no complete outputs of any participant",
            hint="process the participants first, and see its summary under logs/",
        )
    return inventory


def _print_plan(config: RunConfig, inventory: Inventory) -> None:
    """Say what there is, and what would be done with it."""
    say(f"{len(inventory.participants)} participant(s) with outputs in {inventory.output_dir}")
    for modality in ("bold", "dwi"):
        records = inventory.of_modality(modality)
        people = {record.participant for record in records}
        say(f"  {modality}: {len(records)} of {len(people)} participant(s)")
    if config.contrast:
        say(f"contrast: {', '.join(config.contrast)}")
    if config.apply_head:
        say(f"apply: {config.apply_head}")
    if config.predict or config.state:
        _print_questions(config, inventory)


def _print_questions(config: RunConfig, inventory: Inventory) -> None:
    """Say what would be predicted of whom; raise what would keep the level from it."""
    from bsym_bids.prediction.study import Study

    study = Study.of(config, inventory, config.scratch / GROUP_WORK, processes_of(config))
    questions = [study.ask(column) for column in config.predict]
    if config.state:
        questions.append(study.ask_states(config.state))
    for question in questions:
        target = question.target
        classes = f" ({', '.join(target.classes)})" if target.classes else ""
        say(
            f"predict {target.name}: {target.task}{classes}, {target.labelled.sum()} of "
            f"{len(question.units)} labelled, {len(set(question.groups))} groups; "
            f"from {', '.join(study.source.kinds)}"
        )


def _scale(config: RunConfig, model: str, run_id: str) -> Sequence[Outcome]:
    """Embed everyone anew under cohort scaling, by the model of the outputs if none is named."""
    from bsym_bids.cohort.reembedding import run_cohort_scaling
    from bsym_bids.model.weights import default_model_name, resolve_release

    name = config.model or model or default_model_name()
    release = resolve_release(name, model_dir=config.model_dir)
    result = run_cohort_scaling(
        config.output_dir,
        release,
        model_tr=config.model_tr,
        window_step=config.window_step,
        seed=config.seed,
        n_workers=processes_of(config),
        memory_gb=memory_of(config),
        work_dir=config.scratch / GROUP_WORK,
        say=LOGGER.info,
    )
    print_summary(result.outcomes, config.output_dir)
    write_summary(result.outcomes, config.output_dir / "logs" / f"{run_id}_summary.tsv")
    return result.outcomes


def _answer(config: RunConfig, inventory: Inventory) -> None:
    """Do what was asked for; without a request, map the cohort."""
    from bsym_bids.cohort.maps import map_cohort, map_contrast
    from bsym_bids.prediction.store import FILE_NAME, FeatureStore
    from bsym_bids.prediction.study import Study

    work, n_workers = config.scratch / GROUP_WORK, processes_of(config)
    random = {"n_permutations": config.permutations, "seed": config.seed}
    failures: list[BsymError] = []
    requests: list[Callable[[], Sequence[str | Path]]] = [
        partial(map_contrast, label, inventory, **random) for label in config.contrast
    ]
    if config.predict or config.state or config.apply_head:
        with _collected(failures):
            study = Study.of(config, inventory, work, n_workers)
            if config.apply_head:
                requests.append(partial(study.apply, config.apply_head))
            if config.state:
                requests.append(partial(study.tell_states, config.state))
            requests += [partial(study.predict, column) for column in config.predict]
    elif not config.contrast and config.scaling != "cohort":
        store = FeatureStore(work / FILE_NAME, inventory.output_dir)
        request = partial(map_cohort, inventory, store, n_workers=n_workers, **random)
        requests.append(partial(request, model_dir=config.model_dir, features=config.features))
    is_described = False
    for request in requests:
        with _collected(failures):
            said = request()
            if not is_described:  # what comes to nothing leaves the dataset as it is
                _describe(config)
                is_described = True
            _tell(said)
    for error in failures[:-1]:
        LOGGER.error("%s%s", error, f"\n  hint: {error.hint}" if error.hint else "")
    if failures:
        raise failures[-1]


@contextmanager
def _collected(failures: list[BsymError]) -> Iterator[None]:
    """Keep an error for later: what one request cannot do does not stop the others."""
    try:
        yield
    except BsymError as error:
        failures.append(error)


def _tell(lines: Sequence[str | Path]) -> None:
    for line in lines:
        say(line)
