"""What every call of a level has: libraries that behave, a console, a log, its processes."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bsym_bids.config import RunConfig, write_toml
from bsym_bids.machine import memory_bytes
from bsym_bids.outputs.publish import explained, make_folder
from bsym_bids.untrusted import escaped

LOGGER = logging.getLogger("bsym_bids")


def processes_of(config: RunConfig) -> int:
    """Return how many processes there may be at a time: as asked, else the cores of the machine."""
    return config.nprocs or len(os.sched_getaffinity(0))


def memory_of(config: RunConfig) -> float:
    """Memory in GB that may be used: as asked, else 90 % of what there is for this process."""
    return config.mem_gb or 0.9 * memory_bytes() / 1e9


def set_up_libraries(work_dir: Path, threads: int = 1) -> None:
    """Keep Nipype from calling home and writing to HOME, and threads from spinning.

    Parameters
    ----------
    work_dir : Path
        Where configuration goes that would else go to HOME.
    threads : int
        Of numerical libraries, unless the environment says otherwise.
    """
    try:
        Path.home()
    except RuntimeError:
        # A user id without a name and HOME: PyBIDS and others don't import without a home.
        os.environ["HOME"] = str(work_dir.resolve())
    _find_temporary_folder(work_dir)
    # Nipype's plugins of schedulers name jobs by it; a call that is no login has none.
    os.environ.setdefault("LOGNAME", str(os.getuid()))
    os.environ["NO_ET"] = "1"
    os.environ["NIPYPE_NO_ET"] = "1"
    os.environ.setdefault("NIPYPE_CONFIG_DIR", str(work_dir.resolve() / "nipype"))
    # Threads that spin while they wait cost seven times the time when the cores are busy.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, str(threads))


def _find_temporary_folder(work_dir: Path) -> None:
    """Let temporary files go to the work folder where there is no other place for them.

    Containers with a read-only root have no writable ``/tmp``, and Python then takes the folder
    that it was started in, which may be anybody's.
    """
    chosen = filter(None, map(os.environ.get, ("TMPDIR", "TEMP", "TMP")))
    usual = {os.path.abspath(place) for place in (*chosen, "/tmp", "/var/tmp", "/usr/tmp")}
    try:
        found = tempfile.gettempdir()
        usable = found in usual or found != os.getcwd()
    except FileNotFoundError:  # not even the present folder
        usable = False
    if not usable:
        os.environ["TMPDIR"] = str(work_dir.resolve())
        tempfile.tempdir = None  # found anew when first used, when the folder is there


def set_up_console(verbose: int) -> None:
    """Send our own messages to standard error."""
    LOGGER.setLevel(logging.DEBUG)
    LOGGER.propagate = False
    LOGGER.handlers.clear()
    console = logging.StreamHandler(sys.stderr)
    console.setLevel({0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG))
    console.setFormatter(_Formatter("bsym-bids: %(levelname)s: %(message)s"))
    LOGGER.addHandler(console)


class _Formatter(logging.Formatter):
    """Lets nothing through that a terminal takes for a command: names of files may hold it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        return escaped(super().format(record))


class _LogFile(logging.FileHandler):
    """A log that is let go when its disk is full: the summary on the console tells of that."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing; the default prints a traceback for every line."""

    def close(self) -> None:
        """Close the file, whatever could not be written to it."""
        with suppress(OSError):
            super().close()


@contextmanager
def run_log(config: RunConfig) -> Iterator[str]:
    """Keep the settings and the log of this invocation under ``logs/`` of the output."""
    logs = config.output_dir / "logs"
    run_id = f"{time.strftime('%Y%m%dT%H%M%S')}_{uuid.uuid4().hex[:8]}"
    with explained(logs):
        make_folder(logs)
        write_toml(config, logs / f"{run_id}_config.toml")
        handler = _LogFile(logs / f"{run_id}.log", encoding="utf-8")
    handler.setFormatter(_Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    import nipype  # noqa: F401  (sets up its own loggers, which are taken over here)

    nipype_logger = logging.getLogger("nipype")
    before = nipype_logger.handlers[:]
    if config.verbose < 2:
        nipype_logger.handlers[:] = [handler]
    else:
        nipype_logger.addHandler(handler)
    LOGGER.addHandler(handler)
    try:
        yield run_id
    finally:
        LOGGER.removeHandler(handler)
        nipype_logger.handlers[:] = before
        handler.close()
