"""Worker processes in which a result does not depend on how many of them there are.

Each worker computes with one thread, so that sums are always taken in the same order. Workers are
started afresh instead of forked: libraries that hold threads do not survive a fork.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from bsym_bids.errors import BsymError

_PR_SET_PDEATHSIG = 1  # of prctl(2)
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Workers:
    """A pool of single-threaded processes; see `workers`."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def map(self, function: Callable[..., Any], *arguments: Iterable[Any]) -> Iterator[Any]:
        """Yield the results in order, as the built-in ``map``.

        Raises
        ------
        BsymError
            A worker was killed.
        """
        try:
            yield from self._pool.map(function, *arguments)
        except BrokenProcessPool as error:
            raise BsymError(
                f"a worker process was killed (often: not enough memory): {error}",
                hint="see that more memory is free, or lower the number of processes",
            ) from error

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in one of the processes and return what it returns."""
        return next(self.map(function, *[[argument] for argument in arguments]))


@contextmanager
def workers(count: int) -> Iterator[Workers]:
    """Start up to ``count`` processes, which end with the block or with this process."""
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))  # read when libraries are loaded
    pool = ProcessPoolExecutor(
        max(count, 1),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(os.getpid(),),
    )
    try:
        yield Workers(pool)
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _start(parent: int) -> None:
    """Tie a worker to its parent, and keep it to one thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before
            os._exit(1)
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
