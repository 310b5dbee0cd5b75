"""Threads that do not wait for each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(
    work: Callable[[Item], Result], items: Sequence[Item], threads: int | None = None
) -> list[Result]:
    """Do something for each item, on threads that have nothing to wait for.

    torch's own threads share each operation and wait for the slowest at its end. With many small
    operations that is much of the time, and on a busy machine nearly all of it: whenever one thread
    is not running, the others wait for it (measured: 100 times as long as on an idle machine). Here
    each item has a thread to itself, on which torch uses no others. What is computed for an item
    does therefore not depend on the number of threads, as long as there are several items.

    Parameters
    ----------
    work : callable
        What to do, on tensors in the processor's memory. It sees the caller's settings of
        gradients.
    items : sequence
        For what. A single one is done on the caller's thread, with torch's own.
    threads : int, optional
        How many; None for as many as torch may use.

    Returns
    -------
    list
        What ``work`` returned, in the order of the items.
    """
    import torch  # here, so that reading and writing embeddings goes without it

    before = torch.get_num_threads()
    threads = threads or before
    if threads == 1 or len(items) <= 1:
        return list(map(work, items))
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def alone(item: Item) -> Result:
        torch.set_num_threads(1)  # for this thread
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            return work(item)

    try:
        with ThreadPoolExecutor(min(threads, len(items))) as pool:
            return list(pool.map(alone, items))
    finally:
        torch.set_num_threads(before)  # what was set last is what new threads start with


@contextmanager
def one_thread() -> Iterator[int]:
    """Keep torch to the caller's thread, and put its setting back.

    Yields
    ------
    int
        Threads that torch might have used.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield before
    finally:
        torch.set_num_threads(before)
