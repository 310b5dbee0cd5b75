"""How a graph is run: local processes that may die, plugins of schedulers, failures collected."""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from traceback import format_exception
from typing import Any

from nipype.pipeline.engine import Node, Workflow
from nipype.pipeline.plugins.base import PluginBase
from nipype.pipeline.plugins.multiproc import MultiProcPlugin, run_node

from bsym_bids.errors import (
    DEVICE_ERRORS,
    MEMORY_HINT,
    PERMISSION_ERRORS,
    CannotCreateOutputError,
    InputMissingError,
    OutputIOError,
    ParticipantsFailedError,
    UsageError,
)
from bsym_bids.interfaces.base import FAILURE_RECORD
from bsym_bids.pool import stop_processes, tie
from bsym_bids.untrusted import read_json, read_yaml

StatusCallback = Callable[[Node, str], None]
WORKER_DIED = "a worker process was killed (often: not enough memory)"


@dataclass(frozen=True)
class Failure:
    """Why a run could not be completed.

    Attributes
    ----------
    message, hint : str
        What went wrong and what to do.
    exit_code : int
        Exit code that the failure asks for.
    worker_died : bool
        The process that ran it, or one beside it, was killed: trying again alone may help.
    """

    message: str
    hint: str = ""
    exit_code: int = 1
    worker_died: bool = False


class LocalPlugin(MultiProcPlugin):
    """Nipype's MultiProc plugin that survives the death of a worker, and leaves none behind.

    When the kernel kills a worker, the whole pool is lost and the stock plugin waits for ever.
    Here what was running is reported as failed and the pool is made anew. When the graph ends
    early (interrupted, or stopped at the first crash) its workers end with it.
    """

    def __init__(self, plugin_args: dict[str, Any] | None = None) -> None:
        super().__init__(plugin_args=plugin_args)
        self._renew_pool()

    def run(self, graph: Any, config: dict[str, Any], updatehash: bool = False) -> None:
        """Run the graph to its end, or until something stops it."""
        # While it waits the stock plugin collects garbage at every poll, which takes a fifth of
        # all time unless what libraries have loaded is left out.
        gc.freeze()
        try:
            super().run(graph, config, updatehash)
        except BaseException:
            stop_processes(self.pool)
            raise
        finally:
            gc.unfreeze()

    def _submit_job(self, node: Node, updatehash: bool = False) -> int:
        self._taskid += 1
        try:
            future = self.pool.submit(run_node, node, updatehash, self._taskid)
        except BrokenProcessPool:
            self._renew_pool()
            future = self.pool.submit(run_node, node, updatehash, self._taskid)
        future.add_done_callback(partial(self._collect, self._taskid))
        self._task_obj[self._taskid] = future
        return self._taskid

    def _sort_jobs(self, jobids: Iterable[int], scheduler: str | None = None) -> list[int]:
        """Finish one participant after the other instead of doing the first step of all first."""
        return sorted(jobids, key=lambda jobid: self.procs[jobid].fullname)

    def _collect(self, taskid: int, future: Future[dict[str, Any]]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            self._taskresult[taskid] = future.result()
            return
        # Any other error is one of Nipype's own bookkeeping, for example when its disk is full.
        died = isinstance(error, BrokenProcessPool)
        text = [f"{WORKER_DIED}: {error}"] if died else format_exception(error)
        self._taskresult[taskid] = {"taskid": taskid, "result": None, "traceback": text}

    def _renew_pool(self) -> None:
        self.pool.shutdown(wait=False)
        self.pool = _new_pool(self.processors, self._cwd)


def _new_pool(processes: int, folder: str) -> ProcessPoolExecutor:
    """Return a pool of workers that belong to this process.

    On Linux they are forked, which Python does by itself before 3.14 only: otherwise they have
    another parent than this process.
    """
    return ProcessPoolExecutor(
        processes,
        mp_context=get_context("fork" if sys.platform == "linux" else None),
        initializer=_start_worker,
        initargs=(folder, os.getpid()),
    )


def _start_worker(folder: str, parent: int) -> None:
    """Prepare a worker: the process that started it ends it, and takes it along when it dies.

    Ctrl-C reaches every process of a terminal; a worker that it met at rest would print a
    traceback.
    """
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    tie(parent, signal.SIGKILL)()


def call_apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own and return what it returns, or raise what it raises.

    Raises
    ------
    ParticipantsFailedError
        The process was killed.
    """
    with _new_pool(1, os.getcwd()) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise ParticipantsFailedError(
                f"{WORKER_DIED}: {error}", hint="see that more memory is free"
            ) from error


#: Plugins whose steps are processes of this machine.
_HERE = {"local", "Linear", "Debug", "LegacyMultiProc", "MultiProc"}


@dataclass(frozen=True)
class PluginChoice:
    """Which Nipype plugin runs the graphs.

    Attributes
    ----------
    name : str
        Plugin name; ``local`` is `LocalPlugin`.
    arguments : dict
        Its ``plugin_args``.
    """

    name: str
    arguments: dict[str, Any]

    @property
    def is_here(self) -> bool:
        """Whether steps run on this machine, and not wherever a scheduler sends them."""
        return self.name in _HERE

    def build(self, callback: StatusCallback) -> PluginBase:
        """Return the plugin, reporting every change of a node's status to ``callback``."""
        from nipype.pipeline import plugins

        kind = LocalPlugin if self.name == "local" else getattr(plugins, f"{self.name}Plugin")
        try:
            return kind(plugin_args={**self.arguments, "status_callback": callback})
        except Exception as error:  # each plugin has its own ways not to like its arguments
            raise UsageError(
                f"the plugin {self.name} cannot be started: {error}",
                hint="check the plugin_args in the file that --use-plugin names",
            ) from error


def choose_plugin(file: Path | None, n_procs: int, memory_gb: float) -> PluginChoice:
    """Return the plugin that a YAML file asks for, or local processes.

    Raises
    ------
    InputMissingError, UsageError
        The file is absent, or names no Nipype plugin.
    """
    if file is None:
        arguments = {"n_procs": n_procs, "memory_gb": memory_gb, "raise_insufficient": False}
        return PluginChoice("local", arguments)
    from nipype.pipeline import plugins

    try:
        document = read_yaml(file)
    except FileNotFoundError:
        raise InputMissingError(f"{file}: no such plugin file") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: cannot be read as YAML: {error}") from error
    hint = "for example: {plugin: SLURM, plugin_args: {sbatch_args: '--mem=4G'}}"
    if not isinstance(document, dict) or not isinstance(document.get("plugin"), str):
        raise UsageError(f"{file}: does not name a plugin", hint=hint)
    name, arguments = document["plugin"], document.get("plugin_args") or {}
    if not isinstance(arguments, dict):
        raise UsageError(f"{file}: plugin_args is not a mapping", hint=hint)
    if name == "MultiProc":
        defaults = {"n_procs": n_procs, "memory_gb": memory_gb, "raise_insufficient": False}
        return PluginChoice("local", {**defaults, **arguments})
    if not hasattr(plugins, f"{name}Plugin"):
        known = sorted(n.removesuffix("Plugin") for n in dir(plugins) if n.endswith("Plugin"))
        raise UsageError(
            f"{file}: Nipype has no plugin {name!r}", hint=f"plugins: {', '.join(known)}"
        )
    return PluginChoice(name, arguments)


def run_graph(workflow: Workflow, plugin: PluginBase) -> Exception | None:
    """Run a graph to its end and return the first failure that Nipype reports, if any.

    When everything that can run has run, Nipype raises the first of all node failures. The reasons
    of all of them are in the node folders (see `failure_of`); what is returned here serves where
    nothing is on record.
    """
    try:
        workflow.run(plugin=plugin)
    except Exception as error:  # one bad participant must not end the others' run
        return error
    return None


def clear_failures(folder: Path) -> None:
    """Forget failures that an earlier run left in the work directory of one BOLD run."""
    for record in folder.glob(f"*/{FAILURE_RECORD}"):
        record.unlink()


def crash_files(crash_dir: Path) -> frozenset[Path]:
    """Return the crash files that Nipype has left of a participant."""
    return frozenset(crash_dir.glob("crash-*.txt"))


def failure_of(
    folder: Path, crash_dir: Path, earlier: Collection[Path] = frozenset()
) -> Failure | None:
    """Return why a BOLD run failed.

    Parameters
    ----------
    folder : Path
        Its folder in the work directory, with one folder per node.
    crash_dir : Path
        Where Nipype puts crash files of this participant.
    earlier : collection of Path
        Crash files that were there before, which don't count. Their times would tell them from new
        ones only where no clock was ever wrong.

    Returns
    -------
    Failure or None
        None when nothing is on record.
    """
    for path in sorted(folder.glob(f"*/{FAILURE_RECORD}")):
        try:
            record = read_json(path)
            return Failure(record["message"], record["hint"], int(record["exit_code"]))
        except (OSError, ValueError, LookupError, TypeError):
            continue  # cut short by a full disk: the crash file says so
    for path in sorted(crash_files(crash_dir) - set(earlier)):
        text = path.read_text("utf-8", errors="replace")
        if f".{folder.name}." not in text:
            continue
        if WORKER_DIED in text:
            hint = "lower --nprocs or --omp-nthreads, or set --mem-gb"
            return Failure(WORKER_DIED, hint, worker_died=True)
        details = f"{_last_line(text)} (details: {path})"
        return _machine_failure(text) or Failure(details, "please report this crash file")
    return None


def _machine_failure(text: str) -> Failure | None:
    """Return the failure when a text tells of the disk, permissions or memory.

    What Nipype writes for itself (inputs and results of each step) fails with a traceback only.
    """
    for reason in map(os.strerror, sorted(DEVICE_ERRORS)):
        if reason in text:
            return Failure(
                f"work or output folder: {reason}",
                "make space there, then run the same command again",
                OutputIOError.exit_code,
            )
    last = _last_line(text)
    if any(reason in last for reason in map(os.strerror, sorted(PERMISSION_ERRORS))):
        hint = "check the permissions of the work and output folders"
        return Failure(last, hint, CannotCreateOutputError.exit_code)
    if "MemoryError" in last or os.strerror(errno.ENOMEM) in last:
        return Failure(last, MEMORY_HINT)
    return None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "unknown error"


def unrecorded(error: Exception | None) -> Failure:
    """Return the failure of a run that left no record of its own."""
    if error is None:
        return Failure("outputs are missing, and no reason is on record", "run it again with -v")
    failure = Failure(_last_line(str(error)), "run it again with -v, and see the log")
    return _machine_failure(str(error)) or failure
