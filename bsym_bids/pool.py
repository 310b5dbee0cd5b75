"""Worker processes in which a result does not depend on how many of them there are.

Each worker computes with one thread, so that sums are always taken in the same order. Workers are
started afresh instead of forked: a fork of a process in which OpenMP has run may wait for ever.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, TypeVar

from bsym_bids.errors import MEMORY_HINT, BsymError

Item = TypeVar("Item")
Result = TypeVar("Result")
_PR_SET_PDEATHSIG = 1  # of prctl(2)
#: What keeps libraries to one thread; read as they are loaded.
_ONE_THREAD = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)


class Workers:
    """A pool of single-threaded processes; see `workers`.

    Attributes
    ----------
    count : int
        Processes at a time.
    """

    def __init__(self, pool: ProcessPoolExecutor, count: int) -> None:
        self._pool = pool
        self.count = count

    def map(self, function: Callable[..., Any], *arguments: Iterable[Any]) -> Iterator[Any]:
        """Yield the results in order, as the built-in ``map``.

        Raises
        ------
        BsymError
            A worker was killed.
        """
        with _killed_explained():
            yield from self._pool.map(function, *arguments)

    def stream(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield the results in order; only few items are taken ahead: they may be large.

        Raises
        ------
        BsymError
            A worker was killed.
        """
        running: deque[Future[Result]] = deque()
        with _killed_explained():
            for item in items:
                running.append(self._pool.submit(function, item))
                if len(running) > 2 * self.count:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in one of the processes and return what it returns."""
        return next(self.map(_call, [function], [arguments]))


@contextmanager
def _killed_explained() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise BsymError(
            f"a worker process was killed (often: not enough memory): {error}", hint=MEMORY_HINT
        ) from error


@contextmanager
def workers(count: int) -> Iterator[Workers]:
    """Start up to ``count`` processes, which end with the block or with this process."""
    pool = start_processes(count)
    try:
        yield Workers(pool, max(count, 1))
    except BaseException:
        stop_processes(pool)
        raise
    pool.shutdown(cancel_futures=True)


def start_processes(
    count: int, prepare: Callable[..., None] | None = None, *arguments: Any
) -> ProcessPoolExecutor:
    """Return a pool of single-threaded processes, each started when there is work for it.

    They leave Ctrl-C, which reaches every process of a terminal, to this process, and die with it
    however it dies (on Linux).

    Parameters
    ----------
    count : int
        How many at most; one at least.
    prepare : callable, optional
        Called in each process with the arguments, before anything else.
    *arguments
        Pickled once for each process.
    """
    return ProcessPoolExecutor(
        max(count, 1),
        mp_context=_OneThreadContext(),
        initializer=_start,
        initargs=(os.getpid(), prepare, arguments),
    )


def stop_processes(pool: ProcessPoolExecutor) -> None:
    """End processes at once; what they were at is given up."""
    running = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in running:
        process.terminate()
    for process in running:
        process.join()


def tie(parent: int, number: signal.Signals) -> Callable[[], None]:
    """Return what, called in a child, sends it a signal when its parent dies (on Linux).

    Little is safe between fork and exec, so that all that can be looked up is looked up here.

    Parameters
    ----------
    parent : int
        Process that the child belongs to.
    number : signal.Signals
        What the child gets.
    """
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def tie_now() -> None:
        if prctl is None:
            return
        prctl(_PR_SET_PDEATHSIG, int(number))
        if os.getppid() != parent:  # it died before
            os._exit(1)

    return tie_now


class _OneThreadProcess(SpawnProcess):
    """A process that is born with the environment that keeps libraries to one thread.

    Its first line of code is too late for that: the program's main module, and with it most
    libraries, is loaded before.
    """

    def start(self) -> None:
        before = {name: os.environ.get(name) for name in _ONE_THREAD}
        os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
        try:
            super().start()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


class _OneThreadContext(SpawnContext):
    Process = _OneThreadProcess


def _call(function: Callable[..., Any], arguments: Iterable[Any]) -> Any:
    return function(*arguments)


def _start(parent: int, prepare: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    """Tie a worker to its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    tie(parent, signal.SIGKILL)()
    if prepare is not None:
        prepare(*arguments)
