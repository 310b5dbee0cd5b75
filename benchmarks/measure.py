"""Running a piece of Python, or a command, in processes of their own, and what it cost there."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

_POLL = 0.5  # seconds: looking takes time of the processors too


@dataclass(frozen=True)
class Cost:
    """What one call cost.

    Attributes
    ----------
    seconds : float
        Wall time of the call itself, without imports.
    megabytes : float
        Peak resident memory of the whole process, in 10^6 bytes.
    """

    seconds: float
    megabytes: float


def measure(script: Path, task: str, *arguments: str) -> Cost:
    """Run ``script --task TASK ARGUMENTS`` in a new process.

    Parameters
    ----------
    script : Path
        A benchmark that calls `timed` when it is given ``--task``.
    task, arguments : str
        What it is to do.

    Returns
    -------
    Cost
    """
    process = subprocess.Popen(
        [sys.executable, script, "--task", task, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{task}: exit code {process.returncode}")
    # Linux gives the peak in KiB.
    return Cost(float(output.splitlines()[-1]), usage.ru_maxrss * 1024 / 1e6)


def timed(call: Callable[[], object]) -> None:
    """Call a function and print its wall time for `measure`."""
    started = time.perf_counter()
    call()
    print(time.perf_counter() - started)


@dataclass(frozen=True)
class CommandCost:
    """What a command cost, with all processes that it started.

    Attributes
    ----------
    seconds : float
        Wall time.
    processor : float
        Seconds of processors.
    megabytes : float
        Largest sum of the memory of its processes at one time, shared pages shared out (PSS), or
        the largest resident memory of one of them if that is more; in 10^6 bytes.
    """

    seconds: float
    processor: float
    megabytes: float


def run_command(call: Sequence[object]) -> CommandCost:
    """Run a command, without what it prints on standard output; end with its code if it fails."""
    words = [str(word) for word in call]
    started = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    with _watched_memory(process.pid) as peaks:
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)}: exit code {process.returncode}")
    # Linux gives the peak in KiB, and counts a parent's memory towards it: this one has little.
    peak = max(*peaks, usage.ru_maxrss * 1024)
    return CommandCost(seconds, usage.ru_utime + usage.ru_stime, peak / 1e6)


@contextmanager
def _watched_memory(pid: int) -> Iterator[list[int]]:
    """Give a list that the memory of a process and those below it is written into, bytes."""
    done = threading.Event()
    found = [0]

    def watch() -> None:
        while not done.wait(_POLL):
            try:
                process = psutil.Process(pid)
                family = [process, *process.children(recursive=True)]
            except psutil.Error:
                continue
            found.append(sum(map(_shared_out, family)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()


def _shared_out(process: psutil.Process) -> int:
    """Return the memory of a process, bytes; 0 where it has ended."""
    try:
        return process.memory_full_info().pss
    except psutil.Error:
        return 0
