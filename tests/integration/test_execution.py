"""How graphs run: failures are explained, dead workers noticed, plugins chosen."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import time
from collections.abc import Collection
from pathlib import Path

import numpy as np
import psutil
import pytest
from nipype.interfaces.base import BaseInterfaceInputSpec, TraitedSpec, traits
from nipype.pipeline.engine import Node, Workflow

from bsym_bids.errors import BadDataError, InputMissingError, UsageError
from bsym_bids.interfaces.base import PlainInterface
from bsym_bids.pool import workers
from bsym_bids.workflows.execution import (
    WORKER_DIED,
    choose_plugin,
    clear_failures,
    crash_files,
    failure_of,
    run_graph,
    unrecorded,
)


def _pid(_: int) -> int:
    return os.getpid()


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
            case "terminated":
                os.kill(os.getpid(), signal.SIGTERM)
            case "full":
                raise OSError(errno.ENOSPC, "No space left on device")
            case "refused":
                raise PermissionError(errno.EACCES, "Permission denied", "/else/where.npz")
            case "read_only":
                raise OSError(errno.EROFS, "Read-only file system")
            case "other_system_error":
                raise OSError(errno.ENOTDIR, "Not a directory", "/else/where.npz")
            case "memory":
                np.empty((1 << 29, 1 << 30))
            case "memory_of_a_library":
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")
            case "memory_in_a_process":
                with workers(1) as pool:
                    pool.call(np.empty, (1 << 29, 1 << 30))
            case "killed_process":
                with workers(1) as pool:
                    pool.call(os.kill, next(pool.map(_pid, [0])), signal.SIGKILL)
            case "bookkeeping":
                # Nipype cannot keep the inputs and the result of a step whose folder is gone.
                folder.rename(folder.with_name("gone"))
                folder.touch()
            case "slower_explained":
                time.sleep(1)
                raise BadDataError("file.nii.gz: broken")
            case _ if self.inputs.behaviour.startswith("slow"):
                (folder.parents[2] / f"{self.inputs.behaviour}.pid").write_text(str(os.getpid()))
                time.sleep(0.5 if self.inputs.behaviour != "slowest" else 60)
        return {"done": True}


def graph(tmp_path: Path, *behaviours: str, stop: bool = False, **needs: float) -> Workflow:
    workflow = Workflow("bsym", base_dir=str(tmp_path))
    workflow.config["execution"] = {
        "crashdump_dir": str(tmp_path / "crash"),
        "crashfile_format": "txt",
        "poll_sleep_duration": "0.05",
        "create_report": "false",
        "stop_on_first_crash": str(stop).lower(),
    }
    for behaviour in behaviours:
        inner = Workflow(behaviour)
        inner.add_nodes([Node(Act(behaviour=behaviour), name="act", **needs)])
        workflow.add_nodes([inner])
    return workflow


def run(
    tmp_path: Path, *behaviours: str, limits: tuple[int, float] = (1, 4.0), **options: float
) -> tuple[list[tuple[str, str]], Exception | None]:
    workflow = graph(tmp_path, *behaviours, **options)
    seen: list[tuple[str, str]] = []
    plugin = choose_plugin(None, *limits)
    error = run_graph(
        workflow, plugin.build(lambda node, status: seen.append((node.fullname, status)))
    )
    return seen, error


def reason(tmp_path: Path, behaviour: str, earlier: Collection[Path] = ()):
    return failure_of(tmp_path / "bsym" / behaviour, tmp_path / "crash", earlier)


def test_explained_failure_is_recorded_and_the_others_run(tmp_path):
    seen, error = run(tmp_path, "explained", "good")
    assert error is not None
    failure = reason(tmp_path, "explained")
    assert (failure.message, failure.hint) == ("file.nii.gz: broken", "copy it again")
    assert failure.exit_code == 65
    assert ("bsym.good.act", "end") in seen and ("bsym.explained.act", "exception") in seen
    assert reason(tmp_path, "good") is None
    clear_failures(tmp_path / "bsym" / "explained")
    earlier = crash_files(tmp_path / "crash")
    for path in earlier:  # of a clock that was wrong
        os.utime(path, (2**32, 2**32))
    assert reason(tmp_path, "explained", earlier) is None


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


@pytest.mark.parametrize("behaviour", ["killed", "terminated"])
def test_worker_that_is_told_to_end_counts_as_killed(tmp_path, behaviour):
    # Some systems ask before they kill: both may go better alone.
    seen, _ = run(tmp_path, behaviour, "good")
    assert reason(tmp_path, behaviour).worker_died
    assert ("bsym.good.act", "end") in seen


@pytest.mark.parametrize(
    ("limits", "needs", "at_once"),
    [
        ((2, 4.0), {}, 2),
        ((1, 4.0), {}, 1),
        ((2, 4.0), {"n_procs": 2}, 1),
        ((2, 1.0), {"mem_gb": 0.6}, 1),
        ((2, 1.0), {"mem_gb": 0.4}, 2),
        # what needs more than there is runs all the same, alone
        ((2, 0.1), {"mem_gb": 1.5}, 1),
        ((1, 4.0), {"n_procs": 8}, 1),
    ],
)
def test_processes_and_memory_are_limits(tmp_path, limits, needs, at_once):
    seen, error = run(tmp_path, "slow_a", "slow_b", limits=limits, **needs)
    assert error is None
    running = [{"start": 1, "end": -1}[status] for _, status in seen]
    assert max(sum(running[:count]) for count in range(1, 5)) == at_once


def test_full_work_directory_is_explained(tmp_path):
    run(tmp_path, "full")
    failure = reason(tmp_path, "full")
    folder = tmp_path / "bsym" / "full" / "act"
    assert failure.message == f"{folder}: No space left on device"
    assert failure.exit_code == 74 and not failure.worker_died


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("memory", "{folder}: out of memory. Unable to allocate 4.00 EiB"),
        ("memory_of_a_library", "{folder}: out of memory. DefaultCPUAllocator"),
        ("memory_in_a_process", "{folder}: out of memory. Unable to allocate"),
        ("killed_process", "a worker process was killed (often: not enough memory)"),
    ],
)
def test_too_little_memory_is_explained(tmp_path, behaviour, message):
    seen, _ = run(tmp_path, behaviour, "good")
    failure = reason(tmp_path, behaviour)
    assert failure.message.startswith(message.format(folder=tmp_path / "bsym" / behaviour / "act"))
    assert "--nprocs" in failure.hint and "--mem-gb" in failure.hint and failure.exit_code == 1
    assert ("bsym.good.act", "end") in seen


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("refused", "/else/where.npz: Permission denied"),
        ("read_only", "{folder}: Read-only file system"),
    ],
)
def test_what_may_not_be_touched_is_named(tmp_path, behaviour, message):
    run(tmp_path, behaviour)
    failure = reason(tmp_path, behaviour)
    assert failure.message == message.format(folder=tmp_path / "bsym" / behaviour / "act")
    assert "permissions" in failure.hint and failure.exit_code == 73


def test_other_errors_of_the_system_stay_faults(tmp_path):
    run(tmp_path, "other_system_error")
    failure = reason(tmp_path, "other_system_error")
    assert "report this crash file" in failure.hint and "Not a directory" in failure.message


@pytest.mark.parametrize(
    ("last", "code", "word"),
    [
        ("PermissionError: [Errno 13] Permission denied: '/w/act/_inputs.pklz'", 73, "permissions"),
        ("OSError: [Errno 30] Read-only file system: '/w/act'", 73, "permissions"),
        ("MemoryError", 1, "memory"),
    ],
)
def test_failure_of_nipypes_own_bookkeeping_is_explained(tmp_path, last, code, word):
    (tmp_path / "run").mkdir()
    (tmp_path / "crash-1.txt").write_text(f"Node: bsym.sub_01.run.act\n{last}\n")
    failure = failure_of(tmp_path / "run", tmp_path)
    assert (failure.message, failure.exit_code) == (last, code) and word in failure.hint


def test_failure_of_nipypes_own_bookkeeping_is_no_dead_worker(tmp_path):
    seen, error = run(tmp_path, "bookkeeping", "good")
    assert error is not None and ("bsym.good.act", "end") in seen
    failure = reason(tmp_path, "bookkeeping")
    assert not failure.worker_died
    assert WORKER_DIED not in failure.message and "crash-" in failure.message


def test_record_that_was_cut_short_gives_way_to_the_crash_file(tmp_path):
    folder, crash = tmp_path / "run", tmp_path / "crash"
    (folder / "act").mkdir(parents=True)
    crash.mkdir()
    (folder / "act" / "failure.json").touch()
    assert failure_of(folder, crash) is None
    text = "Node: bsym.sub_01.run.act\nOSError: [Errno 28] No space left on device: 'x'\n"
    (crash / "crash-1.txt").write_text(text)
    failure = failure_of(folder, crash)
    assert failure.exit_code == 74 and "No space left" in failure.message
    (folder / "act" / "failure.json").write_text(
        json.dumps({"message": "m", "hint": "h", "exit_code": 65})
    )
    assert failure_of(folder, crash).message == "m"


def test_first_crash_stops_the_others_when_asked(tmp_path):
    seen, error = run(tmp_path, "explained", "good", "slow", stop=True)
    assert "broken" in str(error)
    assert [status for name, status in seen if name != "bsym.explained.act"] == []
    assert reason(tmp_path, "good") is None


@pytest.mark.parametrize("stopped_by", ["crash", "interrupt"])
def test_no_worker_goes_on_when_the_graph_ends_early(tmp_path, stopped_by):
    behaviours = ("slowest", "slower_explained")
    workflow = graph(tmp_path, *behaviours[: 1 if stopped_by == "interrupt" else 2], stop=True)

    written, ended = tmp_path / "slowest.pid", threading.Event()

    def interrupt():
        while not (written.exists() and written.read_text()):  # a busy machine starts it late
            time.sleep(0.05)
        # More than once: one that comes at a bad moment (in a finaliser, say) can be lost.
        while not ended.wait(2):
            os.kill(os.getpid(), signal.SIGINT)

    interrupter = threading.Thread(target=interrupt, daemon=True)

    def note(node, status):
        if stopped_by == "interrupt" and status == "start":
            interrupter.start()

    plugin = choose_plugin(None, 2, 4.0).build(note)
    started = time.monotonic()
    if stopped_by == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            try:
                run_graph(workflow, plugin)
            finally:
                ended.set()
    else:
        assert run_graph(workflow, plugin) is not None
    assert time.monotonic() - started < 20
    assert not psutil.pid_exists(int(written.read_text()))


def test_interrupt_of_a_worker_is_left_to_the_program(capfd):
    # Ctrl-C reaches the workers as well; one at rest would print a traceback.
    plugin = choose_plugin(None, 1, 4.0).build(lambda *_: None)
    worker = plugin.pool.submit(os.getpid).result(timeout=20)
    os.kill(worker, signal.SIGINT)
    assert plugin.pool.submit(os.getpid).result(timeout=20) == worker
    plugin.pool.shutdown()
    assert capfd.readouterr().err == ""


def test_failure_without_record():
    assert "no reason" in unrecorded(None).message
    assert unrecorded(RuntimeError("first\nlast\n")).message == "last"
    # Nipype could not even write its crash file.
    assert unrecorded(OSError(errno.ENOSPC, "No space left on device")).exit_code == 74


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


def test_plugin_that_does_not_take_its_arguments(tmp_path):
    file = tmp_path / "plugin.yml"
    file.write_text("{plugin: MultiProc, plugin_args: {n_procs: many}}")
    with pytest.raises(UsageError, match="local") as caught:
        choose_plugin(file, 1, 1.0).build(lambda *_: None)
    assert "plugin_args" in caught.value.hint
