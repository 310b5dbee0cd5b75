"""Run external commands: errors that can be understood, and nothing left running."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from bsym_bids.errors import (
    DEVICE_ERRORS,
    MEMORY_HINT,
    BsymError,
    InputMissingError,
    OutputIOError,
)
from bsym_bids.pool import tie

_DISK_FULL = (*(os.strerror(number) for number in sorted(DEVICE_ERRORS)), "No space left")
#: Free bytes under which a command that failed is taken to have failed for want of space: MRtrix3
#: writes through memory maps, and a full disk is then a bus error that doesn't name the disk.
_LITTLE_SPACE = 1 << 20
_MEMORY_ERRORS = ("bad_alloc", "Cannot allocate memory", "MemoryError")
_LINES = 8  # scripts of MRtrix3 say after the reason where their files are
_PATIENCE = 5.0  # seconds between asking a command to end and killing it


def find_command(name: str) -> Path | None:
    """Return where a command is on the PATH, or None."""
    found = shutil.which(name)
    return None if found is None else Path(found)


def run(
    command: Sequence[str | Path], *, folder: Path, env: Mapping[str, str] | None = None
) -> str:
    """Run a command to its end.

    Ctrl-C or any other exception in this process ends the command with all that it started, and
    so does the death of this process (on Linux).

    Parameters
    ----------
    command : sequence of str or Path
        Program and arguments; no shell comes between.
    folder : Path
        Where it runs; it has to exist.
    env : mapping of str to str, optional
        Variables on top of those of this process.

    Returns
    -------
    str
        What it wrote to its standard output.

    Raises
    ------
    InputMissingError
        The program is not on the PATH.
    OutputIOError
        The disk is full.
    BsymError
        It failed, with the last lines it wrote to its standard error, or was killed.
    """
    words = [os.fspath(word) for word in command]
    process = _start(words, folder, env)
    try:
        output, errors = process.communicate()
    except BaseException:
        _end(process)
        raise
    text = errors.decode("utf-8", errors="replace")
    if process.returncode != 0:
        raise _failure(words, process.returncode, text, folder)
    return output.decode("utf-8", errors="replace")


def _start(
    words: Sequence[str], folder: Path, env: Mapping[str, str] | None
) -> subprocess.Popen[bytes]:
    if not folder.is_dir():
        raise InputMissingError(f"{folder}: no such folder to run {words[0]} in")
    try:
        return subprocess.Popen(
            words,
            cwd=folder,
            env=None if env is None else {**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A group of its own, so that a script can be ended together with what it runs.
            start_new_session=True,
            # Not SIGKILL: the scripts of MRtrix3 and FSL end their own children on this one.
            preexec_fn=tie(os.getpid(), signal.SIGTERM),
        )
    except FileNotFoundError as error:
        raise InputMissingError(
            f"{words[0]}: no such command", hint="install the software it is part of"
        ) from error
    except OSError as error:
        raise BsymError(
            f"{words[0]} could not be started: {error.strerror}",
            hint="see that more memory is free" if error.errno == errno.ENOMEM else "",
        ) from error


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command and everything in its group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _failure(words: Sequence[str], code: int, errors: str, folder: Path) -> BsymError:
    """Return the error that explains why a command failed."""
    name = Path(words[0]).name
    lines = [line.strip() for line in errors.replace("\r", "\n").splitlines() if line.strip()]
    said = "; ".join(lines[-_LINES:]) or "it gave no reason"
    if any(text in errors for text in _DISK_FULL) or _free_space(folder) < _LITTLE_SPACE:
        return OutputIOError(
            f"{name} could not write in {folder}: {said}",
            hint="make space on the disk of the work folder, then run the same command again",
        )
    if any(text in errors for text in _MEMORY_ERRORS) or -code == signal.SIGKILL:
        return BsymError(
            f"{name} was killed or got no memory ({_ending(code)}): {said}",
            hint=MEMORY_HINT,
        )
    return BsymError(
        f"{name} failed ({_ending(code)}): {said}", hint=f"the command was: {shlex.join(words)}"
    )


def _ending(code: int) -> str:
    """Say how a process ended."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _free_space(folder: Path) -> int:
    """Return the bytes that can still be written to a folder's disk."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return _LITTLE_SPACE
    return status.f_bavail * status.f_frsize
