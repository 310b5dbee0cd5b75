"""Running a piece of Python in a process of its own, and what it cost there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Cost:
    """What one call cost.

    Attributes
    ----------
    seconds : float
        Wall time of the call itself, without imports.
    process_seconds : float
        Wall time of the whole process.
    megabytes : float
        Peak resident memory of the whole process, in 10^6 bytes.
    result : Any
        What the call returned, as far as JSON can carry it.
    """

    seconds: float
    process_seconds: float
    megabytes: float
    result: Any


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
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, script, "--task", task, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{task}: exit code {process.returncode}")
    seconds, result = json.loads(output.splitlines()[-1])
    # Linux gives the peak in KiB.
    return Cost(seconds, time.perf_counter() - started, usage.ru_maxrss * 1024 / 1e6, result)


def timed(call: Any) -> None:
    """Call a function without arguments and print its wall time and result for `measure`."""
    started = time.perf_counter()
    result = call()
    print(json.dumps([time.perf_counter() - started, result]))
