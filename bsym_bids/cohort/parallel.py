"""Something to be done for each of many, in processes, where one that fails stops no other."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from bsym_bids.errors import MEMORY_HINT, BsymError, explain_machine
from bsym_bids.pool import start_processes, stop_processes

LOGGER = logging.getLogger("bsym_bids")
_WAITING = 2  # items handed out per process: no process waits, and few results wait for the caller

Item = TypeVar("Item")
Result = TypeVar("Result")


def each_apart(
    work: Callable[[Item], Result], items: Sequence[Item], n_workers: int
) -> Iterator[tuple[int, Result | BsymError]]:
    """Do something for each item, in single-threaded processes unless there are to be none.

    What loses its process (killed for memory, as a rule) is tried once more at the end, with no
    other beside it. Results come as they are ready, and few of them wait at a time.

    Parameters
    ----------
    work : callable
        Function of a module.
    items : sequence
        For what; pickled.
    n_workers : int
        Processes at a time; 0 does it in this one, one item after the other.

    Yields
    ------
    index : int
        Of the item.
    result
        What ``work`` returned, or the error that says why it did not.
    """
    if not n_workers:
        yield from _each_here(work, items)
        return
    waiting, lost = deque(range(len(items))), list[int]()
    while waiting:
        yield from _until_one_dies(work, items, min(n_workers, len(waiting)), waiting, lost)
    for index in lost:
        alone, again = deque([index]), list[int]()
        yield from _until_one_dies(work, items, 1, alone, again)
        if again:
            killed = "its process was killed (often: not enough memory)"
            yield index, BsymError(killed, MEMORY_HINT)


def _each_here(
    work: Callable[[Item], Result], items: Sequence[Item]
) -> Iterator[tuple[int, Result | BsymError]]:
    for index, item in enumerate(items):
        try:
            result: Result | BsymError = work(item)
        except Exception as error:
            result = _explained(error)
        yield index, result


def memory_allows(n_workers: int, memory_gb: float | None, each_gb: float) -> int:
    """Return how many processes of so many GB each there may be: one at least, if any."""
    if memory_gb is None or n_workers < 1:
        return max(0, n_workers)
    return max(1, min(n_workers, int(memory_gb / each_gb)))


def _until_one_dies(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    n_workers: int,
    waiting: deque[int],
    lost: list[int],
) -> Iterator[tuple[int, Result | BsymError]]:
    """Take items from ``waiting`` until there are none, or a process died: then others go on."""
    pool = start_processes(n_workers)
    running: dict[Future[Result], int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < _WAITING * n_workers:
                running[pool.submit(work, items[waiting[0]])] = waiting[0]
                waiting.popleft()
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    continue  # and so are all others that are running
                index = running.pop(future)
                yield index, future.result() if error is None else _explained(error)
            if any(future in running for future in done):
                raise BrokenProcessPool
    except BrokenProcessPool:
        lost += running.values()
    finally:
        stop_processes(pool)


def _explained(error: BaseException) -> BsymError:
    """Return an error that says what is wrong and can be handed on."""
    if isinstance(error, BsymError):
        return error
    if isinstance(error, Exception) and (machine := explain_machine(error, "bsym-bids")):
        return machine
    LOGGER.error("a fault of the program", exc_info=error)
    return BsymError(f"a fault of the program: {type(error).__name__}: {error}")
