"""What of this machine a process may use."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import psutil

_GROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def memory_bytes() -> int:
    """Return the memory that this process may use at most.

    The least of what the machine has, what control groups of Linux (of containers and of
    schedulers' jobs, version 1 or 2) allow, and what ``ulimit -v`` leaves it to address.
    """
    limits = [psutil.virtual_memory().total, *_group_limits()]
    addressable, _ = resource.getrlimit(resource.RLIMIT_AS)
    if addressable != resource.RLIM_INFINITY:
        limits.append(addressable)
    return min(limits)


def _group_limits() -> Iterator[int]:
    """Yield the limits of the control groups that this process is in, and of those around them."""
    for file in _limit_files():
        try:
            text = file.read_text().strip()
        except OSError:  # of another version, or of a part that a container does not see
            continue
        if text.isdigit():  # else "max"
            yield int(text)


def _limit_files() -> Iterator[Path]:
    try:
        lines = _MEMBERSHIP.read_text(errors="surrogateescape").splitlines()
    except OSError:
        lines = []
    yield _GROUPS / "memory.max"  # of a container, which sees its own as the root
    yield _GROUPS / "memory" / "memory.limit_in_bytes"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, name = _GROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = _GROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        inner = Path(path.lstrip("/"))
        for folder in (inner, *inner.parents):
            yield root / folder / name
