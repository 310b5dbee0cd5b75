"""Taking turns in a folder that several processes want to fill with the same files."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_TAKEN = {errno.EACCES, errno.EAGAIN}
_EVERY = 0.2  # s between two looks


@dataclass
class Turn:
    """The turn of a process.

    Attributes
    ----------
    alone : bool
        Whether no other process can have a turn now. False where the file system has no locks, and
        where the one that has its turn shows no sign of life: what is done then has to be right
        beside others too.
    news : str
        What the process that was waited for has left for those who wait; empty when it left
        nothing, and when nobody was waited for.
    """

    alone: bool
    news: str
    _file: BinaryIO

    def leave(self, news: str) -> None:
        """Leave something for those who wait."""
        self._file.seek(0)
        self._file.truncate()
        self._file.write(news.encode())
        self._file.flush()


def without_following(path: str, flags: int) -> int:
    """Open a file, but none elsewhere that a link leads to: a folder may be from someone else."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


@contextmanager
def turn(
    path: Path,
    on_wait: Callable[[], None],
    sign_of_life: Callable[[], object],
    dead_after: float,
) -> Iterator[Turn]:
    """Wait for a turn, and give it back at the end.

    The lock is one of the operating system (``flock``, which network file systems carry over to
    the server): it goes with its process however that ends, and threads of one process take turns
    too.

    Parameters
    ----------
    path : Path
        The file to lock; made if need be. It stays, and means nothing by itself.
    on_wait : callable
        Called once when there is somebody to wait for.
    sign_of_life : callable
        Returns something that changes as long as the one who has the turn gets on.
    dead_after : float
        Seconds without such a change after which it is waited for no longer.
    """
    with open(path, "a+b", opener=without_following) as file:
        before: str | None = None
        life, since = None, time.monotonic()
        while (alone := _lock(file)) is False:
            if before is None:
                before = _read(file)
                on_wait()
            if (now := sign_of_life()) != life:
                life, since = now, time.monotonic()
            elif time.monotonic() - since > dead_after:
                break
            time.sleep(_EVERY)
        left = _read(file)
        news = left if before is not None and alone and left != before else ""
        yield Turn(bool(alone), news, file)


def _lock(file: BinaryIO) -> bool | None:
    """Lock a file if nobody else has; None where files cannot be locked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in _TAKEN else None
    return True


def _read(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
