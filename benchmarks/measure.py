"""Running a piece of Python in a process of its own, and what it cost there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


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
