"""A script that submits one participant a task to SLURM, and the group level after them."""

from __future__ import annotations

import math
import os
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

#: Settings that tasks get from the scheduler, and those of the call that writes the script.
_NOT_PASSED_ON = (
    "bids_dir",
    "output_dir",
    "analysis_level",
    "participant_label",
    "nprocs",
    "mem_gb",
    "write_slurm",
    "slurm_throttle",
    "dry_run",
)
#: What the group level takes of the settings of the participant level.
_OF_BOTH_LEVELS = ("model", "model_dir", "work_dir", "seed", "verbose")
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
    much. With more people than an array has indices, a task has several, one after the other.

    Parameters
    ----------
    config : RunConfig
        Settings with absolute paths and with the model that tasks shall use; ``nprocs`` and
        ``mem_gb`` are what tasks ask for instead of the defaults.
    work : sequence of ParticipantWork
        Who is to be processed.

    Returns
    -------
    str
        The script. Its arguments are handed on to ``sbatch``.
    """
    policy = _policy()
    bold = [one for one in work if not one.n_scans]
    dwi = [one for one in work if one.n_scans]
    submissions, lists = [], []
    for name, people in (("bold", bold), ("dwi", dwi)):
        if not people:
            continue
        per_task = math.ceil(len(people) / int(policy["tasks"]))
        minutes = per_task * max(_minutes(one, policy) for one in people)
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
        "options": _quoted(arguments_of(config, leave_out=_NOT_PASSED_ON)),
        "group_options": _quoted(arguments_of(config, only=_OF_BOTH_LEVELS)),
        "throttle": str(config.slurm_throttle),
        "lists": "\n".join(lists),
        "submissions": "\n".join(submissions),
        "group": _words(_resources(group, config, minutes)),
    }
    for name, value in blanks.items():
        text = text.replace(f"@{name}@", value)
    return text


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
    """Return the words that start bsym-bids as it was started here, in its container as well."""
    for program in ("apptainer", "singularity"):
        image = os.environ.get(f"{program.upper()}_CONTAINER")
        if image:
            binds = os.environ.get(f"{program.upper()}_BIND")
            return [program, "run", "--cleanenv", *(["--bind", binds] if binds else []), image]
    started = Path(sys.argv[0])
    found = shutil.which("bsym-bids")
    if started.name == "bsym-bids" and started.exists():
        return [str(started.absolute())]
    return [found] if found else [sys.executable, "-m", "bsym_bids.cli"]


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
