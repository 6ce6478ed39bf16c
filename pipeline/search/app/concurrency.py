"""Expensive work: in a few threads, behind a queue of limited length."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

from pipeline.search.app.problems import BusyError

T = TypeVar("T")


class ConcurrencyLimiter:
    """Serves requests in threads; for one event loop.

    Args:
        threads: requests served at a time.
        places: requests waiting or served at a time; more are refused.
    """

    def __init__(self, threads: int, places: int) -> None:
        self._limiter = CapacityLimiter(threads)
        self._places = places
        self._taken = 0

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Hold one of the places.

        Raises:
            BusyError: all are taken.
        """
        if self._taken >= self._places:
            raise BusyError(f"{self._taken} requests are waiting.", "ask again in a moment.")
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

    async def run(self, work: Callable[[], T]) -> T:
        """Run it in a thread as soon as one is free; the caller holds a place."""
        return await to_thread.run_sync(work, limiter=self._limiter)
