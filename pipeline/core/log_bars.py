"""Progress where no terminal shows it: a line every few seconds instead of a bar that moves."""

import sys
import time
from typing import Any, cast

from tqdm import tqdm

INTERVAL = 10.0
"""Seconds from one line of a log to the next."""

_GOING_ON = "{desc}: {n_fmt}/{total_fmt} {unit}, {rate_fmt}, {remaining} left{postfix}"
_ENDED = "{desc}: {n_fmt}/{total_fmt} {unit} in {elapsed}, {rate_fmt}{postfix}"


class Lines(tqdm):  # type: ignore[type-arg]
    """A tqdm bar that writes whole lines: at most one an INTERVAL, and one at its end."""

    def __init__(self, *items: Any, **settings: Any) -> None:
        self._shown = time.monotonic()
        cast(Any, super()).__init__(
            *items, **settings, mininterval=INTERVAL, miniters=1, bar_format=_GOING_ON
        )

    def display(self, *_: Any, **__: Any) -> None:
        """Write a line where one is due; tqdm asks more often, and closes before the last one."""
        now = time.monotonic()
        if self.disable:
            self.fp.write(str(self))  # tqdm ends the line itself
        elif now - self._shown >= INTERVAL:
            self.fp.write(f"{self}\n")
            self._shown = now
        self.fp.flush()

    def clear(self, *_: Any, **__: Any) -> None:
        """Nothing: other lines may stand below, none stands in the way."""

    def close(self) -> None:
        """Write the last line."""
        self.bar_format = _ENDED
        super().close()


def make_bar(*items: Any, **settings: Any) -> "tqdm[Any]":
    """A bar on stderr that moves, or lines where stderr is no terminal."""
    if sys.stderr.isatty():
        return cast(Any, tqdm)(*items, mininterval=0.5, **settings)  # type: ignore[no-any-return]
    return Lines(*items, **settings)
