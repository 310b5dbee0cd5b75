"""Which runs a process works on, and how, so that no other one interferes at the same time."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from bsym_bids.errors import CannotCreateOutputError
from bsym_bids.outputs.publish import explained

LOGGER = logging.getLogger("bsym_bids")
#: What different settings may decide at a time: outputs of BOLD runs, of scans, of the group level.
KINDS = ("BOLD runs", "diffusion scans", "the group level")
_FILE = ".runs.lock"
_SETTINGS_FILE = ".settings.lock"
_REGION = 1 << 40  # bytes of the file that stand for the settings of one kind
_TAKEN = {errno.EACCES, errno.EAGAIN}
_WARNED: set[str] = set()  # files whose file systems have no locks


class Claims:
    """Claims of one process on runs, gone with it however it ends.

    One byte of a file in each folder stands for a run, locked as POSIX has it (``fcntl``): that
    holds over network file systems, and one open file serves thousands of runs. Where a file
    system has no locks, every claim is granted, and a warning says so.

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
                if _is_taken(error, file):
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


@contextmanager
def same_settings(folder: Path, settings: Mapping[str, str | None]) -> Iterator[None]:
    """Hold that outputs are being made with some settings: calls with other ones are refused.

    Any number of calls with the same settings may work at once. As with `Claims`, that ends with
    the process, and file systems without locks are warned of.

    Parameters
    ----------
    folder : Path
        Folder of the output dataset in which that is held.
    settings : mapping of str to str or None
        By kind (`KINDS`), something that differs where settings do; None to be the only one.

    Raises
    ------
    CannotCreateOutputError
        Another call is making outputs of a kind with other settings.
    """
    with explained(folder / _SETTINGS_FILE):
        file = (folder / _SETTINGS_FILE).open("a+b")
    with file:
        _lock(file, fcntl.LOCK_EX, 0, 1)  # one call at a time looks and decides
        for kind, value in settings.items():
            if not _hold(file, kind, value):
                raise CannotCreateOutputError(
                    f"{folder.parent}: another call is working on {kind} there"
                    + ("" if value is None else ", with other settings"),
                    hint="wait for it to end, or name another output folder; the settings of "
                    f"calls are in {folder}/*_config.toml",
                )
        _lock(file, fcntl.LOCK_UN, 0, 1)
        yield


def _hold(file: BinaryIO, kind: str, value: str | None) -> bool:
    """Lock the byte of some settings unless another one of their kind is locked."""
    start = _REGION * (1 + KINDS.index(kind))
    own = start if value is None else start + 1 + _byte(value) % (_REGION - 1)
    others = ((start, own - start), (own + 1, start + _REGION - own - 1))
    if not all(_is_free(file, *part) for part in others):
        return False
    return _lock(file, fcntl.LOCK_EX if value is None else fcntl.LOCK_SH, own, 1)


def _is_free(file: BinaryIO, start: int, length: int) -> bool:
    """Tell whether no other process has a lock in a part of a file."""
    if length == 0:  # which would stand for everything to the end
        return True
    return _lock(file, fcntl.LOCK_EX, start, length) and _lock(file, fcntl.LOCK_UN, start, length)


def _lock(file: BinaryIO, how: int, start: int, length: int) -> bool:
    """Lock or unlock a part of a file; False when another process has it.

    The first byte is waited for: it is held for moments.
    """
    waits = 0 if start == 0 or how == fcntl.LOCK_UN else fcntl.LOCK_NB
    try:
        fcntl.lockf(file, how | waits, length, start)
    except OSError as error:
        return not _is_taken(error, file)
    return True


def _is_taken(error: OSError, file: BinaryIO) -> bool:
    """Tell whether another process has a lock; warn once of a file that can have none."""
    if error.errno in _TAKEN:
        return True
    name = str(file.name)
    if name not in _WARNED:
        _WARNED.add(name)
        LOGGER.warning(
            "%s: cannot be locked (%s), so that other calls on the same participants at the same "
            "time are not noticed: do not start any",
            name,
            error.strerror,
        )
    return False


def _byte(run: str) -> int:
    return int.from_bytes(hashlib.sha256(run.encode()).digest()[:6])
