"""How graphs run: failures are explained, dead workers noticed, plugins chosen."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from nipype.interfaces.base import BaseInterfaceInputSpec, TraitedSpec, traits
from nipype.pipeline.engine import Node, Workflow

from bsym_bids.errors import BadDataError, InputMissingError, UsageError
from bsym_bids.interfaces.base import PlainInterface
from bsym_bids.workflows.execution import (
    WORKER_DIED,
    choose_plugin,
    clear_failures,
    failure_of,
    run_graph,
    unrecorded,
)


class _In(BaseInterfaceInputSpec):
    behaviour = traits.Str()


class _Out(TraitedSpec):
    done = traits.Bool()


class Act(PlainInterface):
    """Succeeds, fails or dies as told."""

    input_spec = _In
    output_spec = _Out

    def _call(self, folder: Path) -> dict[str, bool]:
        match self.inputs.behaviour:
            case "explained":
                raise BadDataError("file.nii.gz: broken", hint="copy it again")
            case "fault":
                raise ZeroDivisionError("a fault of ours")
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
        return {"done": True}


def run(tmp_path: Path, *behaviours: str) -> tuple[list[tuple[str, str]], Exception | None]:
    workflow = Workflow("bsym", base_dir=str(tmp_path))
    workflow.config["execution"] = {
        "crashdump_dir": str(tmp_path / "crash"),
        "crashfile_format": "txt",
        "poll_sleep_duration": "0.05",
        "create_report": "false",
    }
    for behaviour in behaviours:
        inner = Workflow(behaviour)
        inner.add_nodes([Node(Act(behaviour=behaviour), name="act")])
        workflow.add_nodes([inner])
    seen: list[tuple[str, str]] = []
    plugin = choose_plugin(None, 1, 4.0)
    error = run_graph(
        workflow, plugin.build(lambda node, status: seen.append((node.fullname, status)))
    )
    return seen, error


def reason(tmp_path: Path, behaviour: str, since: float = 0.0):
    return failure_of(tmp_path / "bsym" / behaviour, tmp_path / "crash", since)


def test_explained_failure_is_recorded_and_the_others_run(tmp_path):
    seen, error = run(tmp_path, "explained", "good")
    assert error is not None
    failure = reason(tmp_path, "explained")
    assert (failure.message, failure.hint) == ("file.nii.gz: broken", "copy it again")
    assert failure.exit_code == 65
    assert ("bsym.good.act", "end") in seen and ("bsym.explained.act", "exception") in seen
    assert reason(tmp_path, "good") is None
    clear_failures(tmp_path / "bsym" / "explained")
    assert reason(tmp_path, "explained", since=time.time() + 1) is None


def test_fault_names_its_crash_file(tmp_path):
    run(tmp_path, "fault")
    failure = reason(tmp_path, "fault")
    assert "a fault of ours" in failure.message
    assert next((tmp_path / "crash").iterdir()).name in failure.message


def test_killed_worker_is_noticed_and_the_others_run(tmp_path):
    seen, _ = run(tmp_path, "killed", "good")
    failure = reason(tmp_path, "killed")
    assert failure.worker_died and WORKER_DIED in failure.message
    assert ("bsym.good.act", "end") in seen


def test_failure_without_record():
    assert "no reason" in unrecorded(None).message
    assert unrecorded(RuntimeError("first\nlast\n")).message == "last"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{plugin: NoSuch}", "NoSuch"),
        ("[1]", "name"),
        ("{plugin: SLURM, plugin_args: 3}", "args"),
        ("{plugin: ", "YAML"),
    ],
)
def test_bad_plugin_files(tmp_path, text, word):
    file = tmp_path / "plugin.yml"
    file.write_text(text)
    with pytest.raises(UsageError, match=word):
        choose_plugin(file, 1, 1.0)


def test_absent_plugin_file(tmp_path):
    with pytest.raises(InputMissingError):
        choose_plugin(tmp_path / "none.yml", 1, 1.0)


def test_plugin_arguments_arrive(tmp_path):
    file = tmp_path / "plugin.yml"
    file.write_text("{plugin: MultiProc, plugin_args: {n_procs: 3}}")
    choice = choose_plugin(file, 1, 1.5)
    assert (choice.name, choice.arguments["n_procs"]) == ("local", 3)
    assert choice.arguments["memory_gb"] == 1.5
    file.write_text("{plugin: SLURM, plugin_args: {sbatch_args: '--mem=4G'}}")
    choice = choose_plugin(file, 1, 1.0)
    assert (choice.name, choice.arguments) == ("SLURM", {"sbatch_args": "--mem=4G"})
