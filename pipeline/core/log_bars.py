"""Progress bars; without a terminal, a line every few seconds instead of a bar that moves."""

import sys
import time
from typing import Any, cast

from tqdm import tqdm

INTERVAL = 10.0
"""Seconds between two lines of a log."""

_RUNNING = "{desc}: {n_fmt}/{total_fmt} {unit}, {rate_fmt}, {remaining} left{postfix}"
_ENDED = "{desc}: {n_fmt}/{total_fmt} {unit} in {elapsed}, {rate_fmt}{postfix}"


class Lines(tqdm):  # type: ignore[type-arg]
    """A tqdm bar that writes whole lines: at most one per INTERVAL, and one at the end."""

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
        """Write the last line."""
        self.bar_format = _ENDED
        super().close()


def make_bar(*items: Any, **settings: Any) -> "tqdm[Any]":
    """A bar on stderr that moves, or lines where stderr is not a terminal."""
    if sys.stderr.isatty():
        return cast(Any, tqdm)(*items, mininterval=0.5, **settings)  # type: ignore[no-any-return]
    return Lines(*items, **settings)
