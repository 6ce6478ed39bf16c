"""The output of a run on stderr: its log, and progress with rate and time left."""

import logging
import weakref
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm


log = logging.getLogger("kdmcse")

T = TypeVar("T")


def progress(
    items: Iterable[T], *, what: str, unit: str, total: int | None = None, show: bool = True
) -> Iterator[T]:
    """Yield `items` under a progress bar on stderr, with rate and time left; see log_bars.py."""
    bar = _bar(items, total=total, desc=what, unit=unit, disable=not show)
    yield from bar


def counter(what: str, unit: str, total: int, *, done: int = 0, show: bool = True) -> "tqdm[Any]":
    """A progress bar on stderr, with rate and time left, to be moved by `update`."""
    return _bar(total=total, initial=done, desc=what, unit=unit, disable=not show)


def bytes_counter(what: str, total: int | None, done: int) -> "tqdm[Any]":
    """A progress bar of bytes, as `counter`."""
    return _bar(total=total, initial=done, desc=what, unit="B", unit_scale=True)


def _bar(*items: Iterable[Any], **settings: Any) -> "tqdm[Any]":
    from pipeline.core.log_bars import make_bar

    bar = make_bar(*items, **settings)
    _bars.add(bar)
    return bar


_bars: "weakref.WeakSet[tqdm[Any]]" = weakref.WeakSet()


def end_bars() -> None:
    """End the lines of progress bars that an error left open."""
    for bar in list(_bars):
        bar.close()
