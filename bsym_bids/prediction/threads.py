"""Many small matrix products side by side, where one after the other would leave cores idle."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import TracebackType
from typing import TypeVar

from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")


class Threads:
    """As many threads as the linear algebra library has, each with a single one of its own.

    Outside of `each` the library keeps its threads. Results do not depend on their number.
    """

    def __enter__(self) -> Threads:
        """Start the threads."""
        info = _blas().info()
        count = max((library["num_threads"] for library in info), default=1)
        self._pool = ThreadPoolExecutor(count) if count > 1 else None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop them; what has not begun will not."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def each(self, work: Callable[[Item], None], items: Iterable[Item]) -> None:
        """Do something for each item."""
        if self._pool is None:
            for item in items:
                work(item)
            return
        with _blas().limit(limits=1):
            for _ in self._pool.map(work, items):
                pass


@cache
def _blas() -> ThreadpoolController:
    import scipy.linalg  # noqa: F401  # it may bring a library of its own

    return ThreadpoolController().select(user_api="blas")
