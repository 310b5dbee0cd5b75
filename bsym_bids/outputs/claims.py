"""Which runs a process works on, so that no other one works on them at the same time."""

from __future__ import annotations

import errno
import fcntl
import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from bsym_bids.outputs.publish import explained

_FILE = ".runs.lock"
_TAKEN = {errno.EACCES, errno.EAGAIN}


class Claims:
    """Claims of one process on runs, gone with it however it ends.

    One byte of a file in each folder stands for a run, locked as POSIX has it (``fcntl``): that
    holds over network file systems, and one open file serves thousands of runs. Where a file
    system has no locks, every claim is granted.

    Parameters
    ----------
    folders : sequence of Path
        Folders in which a run must have one process only: of the outputs and of the work files.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._files: list[BinaryIO] = []
        with ExitStack() as opened:
            for folder in folders:
                with explained(folder / _FILE):
                    self._files.append(opened.enter_context((folder / _FILE).open("ab")))
            self._opened = opened.pop_all()

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def claim(self, run: str) -> bool:
        """Claim a run; False when another process has it."""
        for file in self._files:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _byte(run))
            except OSError as error:
                if error.errno in _TAKEN:
                    self.release(run)
                    return False
        return True

    def release(self, run: str) -> None:
        """Give a claim back."""
        for file in self._files:
            try:
                fcntl.lockf(file, fcntl.LOCK_UN, 1, _byte(run))
            except OSError:
                continue  # a file system without locks


def _byte(run: str) -> int:
    return int.from_bytes(hashlib.sha256(run.encode()).digest()[:6])
