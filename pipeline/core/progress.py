"""The output of a run on stderr: its log, and progress with rate and time left."""

import logging
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar, cast

from tqdm import tqdm

log = logging.getLogger("kdmcse")

INTERVAL = 10.0
"""Seconds between two lines of a log."""

_RUNNING = "{desc}: {n_fmt}/{total_fmt} {unit}, {rate_fmt}, {remaining} left{postfix}"
_ENDED = "{desc}: {n_fmt}/{total_fmt} {unit} in {elapsed}, {rate_fmt}{postfix}"
tqdm.set_lock(threading.RLock())  # its own stays locked where a forked process is killed with it
_bars: "weakref.WeakSet[tqdm[Any]]" = weakref.WeakSet()

T = TypeVar("T")


def progress(
    items: Iterable[T], *, what: str, unit: str, total: int | None = None, show: bool = True
) -> Iterator[T]:
    """Yield `items` under a progress bar."""
    yield from _bar(items, total=total, desc=what, unit=unit, disable=not show)


def counter(
    what: str, unit: str, total: int | None, *, done: int = 0, show: bool = True
) -> "tqdm[Any]":
    """A progress bar to be moved by `update`; of bytes, in larger units too, where `unit` is B."""
    large = unit == "B"
    return _bar(total=total, initial=done, desc=what, unit=unit, unit_scale=large, disable=not show)


def _bar(*items: Iterable[Any], **settings: Any) -> "tqdm[Any]":
    """A bar that moves, or lines where stderr is not a terminal."""
    if sys.stderr.isatty():
        bar: tqdm[Any] = cast(Any, tqdm)(*items, mininterval=0.5, **settings)
    else:
        bar = _Lines(*items, **settings)
    _bars.add(bar)
    return bar


def end_bars() -> None:
    """End the lines of progress bars that an error left open."""
    for bar in list(_bars):
        bar.close()


class _Lines(tqdm):  # type: ignore[type-arg]
    """A tqdm bar for logs, in whole lines: at most one per INTERVAL, and one at the end."""

    def __init__(self, *items: Any, **settings: Any) -> None:
        self._shown = time.monotonic()
        cast(Any, super()).__init__(
            *items, **settings, mininterval=INTERVAL, miniters=1, bar_format=_RUNNING
        )

    def display(self, *_: Any, **__: Any) -> None:
        """Write a line if one is due; tqdm calls this more often, and once after it is closed."""
        now = time.monotonic()
        if self.disable:
            self.fp.write(str(self))  # tqdm ends the line itself
        elif now - self._shown >= INTERVAL:
            self.fp.write(f"{self}\n")
            self._shown = now
        self.fp.flush()

    def clear(self, *_: Any, **__: Any) -> None:
        """Do nothing: a line that was written stays."""

    def close(self) -> None:
        self.bar_format = _ENDED
        super().close()
