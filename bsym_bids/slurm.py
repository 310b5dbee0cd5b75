"""A script that submits one participant a task to SLURM, and the group level after them."""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from bsym_bids import __version__
from bsym_bids.config import RunConfig
from bsym_bids.errors import UsageError

#: Settings that tasks get from the scheduler, and those of the call that writes the script. A
#: task that emptied the work folder would throw away what the one before it had finished.
_NOT_PASSED_ON = (
    "bids_dir",
    "output_dir",
    "analysis_level",
    "participant_label",
    "nprocs",
    "mem_gb",
    "write_slurm",
    "slurm_throttle",
    "clean_workdir",
)
#: What the group level takes of the settings of the participant level.
_OF_BOTH_LEVELS = (
    "session_label",
    "task_id",
    "run_id",
    "bids_filter_file",
    "modalities",
    "model",
    "model_dir",
    "model_tr",
    "window_step",
    "work_dir",
    "seed",
    "verbose",
)
#: Variables that tell where models and FSL are, which have to be the same in jobs.
_VARIABLES = ("BSYM_MODEL_HOME", "BSYM_OFFLINE", "XDG_CACHE_HOME", "FSLDIR")
_CONTAINERS = ("apptainer", "singularity")
_OWN_SHARE = 0.9  # of a job's memory, that steps may use: the rest is for what starts them


@dataclass(frozen=True)
class ParticipantWork:
    """What there is to do for one participant.

    Attributes
    ----------
    label : str
        Without ``sub-``.
    n_runs, n_scans : int
        BOLD runs and diffusion scans.
    """

    label: str
    n_runs: int
    n_scans: int


@dataclass(frozen=True)
class JobResources:
    """What one job asks for.

    Attributes
    ----------
    cpus : int
        Cores.
    memory_gb : int
        Memory in GiB.
    minutes : int
        Time.
    """

    cpus: int
    memory_gb: int
    minutes: int


def submission_script(config: RunConfig, work: Sequence[ParticipantWork]) -> str:
    """Return a Bash script that submits array jobs and, after them, the group level.

    Participants with diffusion scans have an array of their own, since they need many times as
    much. With more people than an array has indices, a task has several, one after the other. Time
    is asked for by the task that has the most to do, since it is the same for all of an array.

    Parameters
    ----------
    config : RunConfig
        Settings with absolute paths, and with the model and the engine that tasks shall use, so
        that none chooses anew; ``nprocs`` and ``mem_gb`` are what jobs ask for instead of the
        defaults.
    work : sequence of ParticipantWork
        Who is to be processed.

    Returns
    -------
    str
        The script. Its arguments are handed on to ``sbatch``.

    Raises
    ------
    UsageError
        In a container in which folders have other names than outside, where jobs start.
    """
    policy = _policy()
    bold = [one for one in work if not one.n_scans]
    dwi = [one for one in work if one.n_scans]
    submissions, lists = [], []
    for name, people in (("bold", bold), ("dwi", dwi)):
        if not people:
            continue
        per_task = math.ceil(len(people) / int(policy["tasks"]))
        minutes = _longest([_minutes(one, policy) for one in people], per_task)
        asked = _resources(policy[name], config, minutes)
        labels = " ".join(shlex.quote(one.label) for one in people)
        lists.append(f"{name}=({labels})")
        submissions.append(f"submit {name} {per_task} {_words(asked)}")
    group = policy["group"]
    minutes = group["minutes"] + len(work) * group["minutes_per_participant"]
    text = files("bsym_bids").joinpath("data/schedulers/slurm.sh").read_text("utf-8")
    blanks = {
        "version": __version__,
        "participants": f"{len(work)} participant(s), {len(dwi)} of them with diffusion scans",
        "command": _quoted(bsym_command()),
        "bids_dir": shlex.quote(str(config.bids_dir)),
        "output_dir": shlex.quote(str(config.output_dir)),
        "variables": "\n".join(_exports()),
        "options": _quoted(arguments_of(config, leave_out=_NOT_PASSED_ON)),
        "group_options": _quoted(arguments_of(config, only=_OF_BOTH_LEVELS)),
        "throttle": str(config.slurm_throttle),
        "lists": "\n".join(lists),
        "submissions": "\n".join(submissions),
        "group": _words(_resources(group, config, minutes)),
    }
    return re.sub("@([a-z_]+)@", lambda blank: blanks[blank[1]], text)


def _longest(minutes: Sequence[float], per_task: int) -> float:
    """Return the time of the task that takes longest."""
    return max(sum(minutes[n : n + per_task]) for n in range(0, len(minutes), per_task))


def arguments_of(
    config: RunConfig, *, leave_out: Collection[str] = (), only: Collection[str] | None = None
) -> list[str]:
    """Return the command-line options that give settings which differ from the defaults.

    Parameters
    ----------
    config : RunConfig
        The settings.
    leave_out : collection of str
        Fields that are not wanted.
    only : collection of str, optional
        The fields that are wanted; all if None.

    Returns
    -------
    list of str
        Words, each option before its values.
    """
    from bsym_bids.cli import build_parser

    flags = {
        action.dest: max(action.option_strings, key=len)
        for action in build_parser()._actions
        if action.option_strings
    }
    defaults = {item.name: item.default for item in fields(RunConfig)}
    words: list[str] = []
    for name, flag in flags.items():
        value = getattr(config, name, None)
        if name in leave_out or (only is not None and name not in only):
            continue
        if value is None or value == defaults.get(name) or value == {}:
            continue
        words += _option(name, flag, value)
    return words


def bsym_command() -> list[str]:
    """Return the words that start bsym-bids as it was started here, in its container as well.

    Raises
    ------
    UsageError
        A folder has another name in the container: jobs start outside of it.
    """
    for program in _CONTAINERS:
        image = os.environ.get(f"{program.upper()}_CONTAINER")
        if image:
            binds = os.environ.get(f"{program.upper()}_BIND", "")
            _check_binds(binds)
            return [program, "run", "--cleanenv", *(["--bind", binds] if binds else []), image]
    started = Path(sys.argv[0])
    if started.name == "bsym-bids" and started.exists():
        return [str(started.absolute())]
    beside = Path(sys.executable).with_name("bsym-bids")
    found = str(beside) if beside.exists() else shutil.which("bsym-bids")
    return [found] if found else [sys.executable, "-m", "bsym_bids.cli"]


def _check_binds(binds: str) -> None:
    for bind in filter(None, binds.split(",")):
        source, _, rest = bind.partition(":")
        target = rest.partition(":")[0]
        if not source.startswith("/") or target not in ("", source):
            raise UsageError(
                f"the script's jobs start outside of this container, where {target or source} is "
                f"{source}",
                hint=f"bind folders under their own names, as in --bind {Path(source).absolute()}",
            )


def _exports() -> list[str]:
    """Return the lines that give jobs the variables of this call; a container has its own."""
    if any(f"{program.upper()}_CONTAINER" in os.environ for program in _CONTAINERS):
        return []
    given = {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}
    return [f"export {name}={shlex.quote(value)}" for name, value in given.items()]


def _policy() -> Mapping[str, Any]:
    text = files("bsym_bids").joinpath("data/schedulers/slurm.yaml").read_text("utf-8")
    return yaml.safe_load(text)


def _option(name: str, flag: str, value: Any) -> list[str]:
    if name == "verbose":
        return [flag] * value
    if value is True:
        return [flag]
    if isinstance(value, Mapping):
        return [flag, *(f"{key}={entry}" for key, entry in value.items())]
    if isinstance(value, tuple):
        return [flag, *map(str, value)]
    return [flag, str(value)]


def _minutes(person: ParticipantWork, policy: Mapping[str, Any]) -> float:
    kind = policy["dwi" if person.n_scans else "bold"]
    return (
        kind["minutes"]
        + person.n_runs * policy["bold"]["minutes_per_series"]
        + person.n_scans * policy["dwi"]["minutes_per_series"]
    )


def _resources(kind: Mapping[str, Any], config: RunConfig, minutes: float) -> JobResources:
    return JobResources(
        cpus=config.nprocs or kind["cpus"],
        memory_gb=math.ceil(config.mem_gb or kind["memory_gb"]),
        minutes=math.ceil(minutes),
    )


def _words(asked: JobResources) -> str:
    """Return cores, memory, the part of it for steps, and minutes, as the script has them."""
    share = f"{_OWN_SHARE * asked.memory_gb:.3g}"
    return f"{asked.cpus} {asked.memory_gb} {share} {asked.minutes}"


def _quoted(words: Sequence[str]) -> str:
    return " ".join(map(shlex.quote, words))
