"""Work that takes a processor: in a few threads, behind a queue that ends."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

from pipeline.search.app.problems import BusyError

T = TypeVar("T")


class ConcurrencyLimiter:
    """Serves requests in threads; for one event loop.

    Args:
        threads: how many are served at a time.
        places: how many may be here at a time, waiting or served.
    """

    def __init__(self, threads: int, places: int) -> None:
        self._limiter = CapacityLimiter(threads)
        self._places = places
        self._here = 0

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Hold one of the places.

        Raises:
            BusyError: all are taken.
        """
        if self._here >= self._places:
            raise BusyError(f"{self._here} requests wait already.", "ask again in a moment.")
        self._here += 1
        try:
            yield
        finally:
            self._here -= 1

    async def run(self, work: Callable[[], T]) -> T:
        """Do it in a thread as soon as one is free; who asks should hold a place."""
        return await to_thread.run_sync(work, limiter=self._limiter)
