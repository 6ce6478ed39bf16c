"""SIGTERM and SIGINT: work ends early with nothing half-written."""

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

from pipeline.core.errors import InterruptedRunError


@contextlib.contextmanager
def ends_on_signal(command: str) -> Iterator[None]:
    """Turn SIGTERM and SIGINT into an InterruptedRunError, so that clean-up code runs."""

    def stop(number: int, _frame: FrameType | None) -> None:
        # Workers that the same signal ended are not reported as errors.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        name = signal.Signals(number).name
        _stops.append(
            InterruptedRunError(
                f"{command} was stopped by {name}; nothing half-written was left.",
                "run the same command again.",
            )
        )
        raise _stops[-1]

    _stops.clear()
    previous = _install({signal.SIGTERM: stop, signal.SIGINT: stop})
    try:
        yield
        require_running()
    finally:
        _install(previous)
        _stops.clear()


_stops: list[InterruptedRunError] = []
"""The signals received."""


def require_running() -> None:
    """End a run whose signal came while a native library ran, which may have swallowed the error.

    Files made since then may be incomplete, so none of them gets its final name.
    """
    if _stops:
        raise _stops[-1]


@contextlib.contextmanager
def defers_signals() -> Iterator[Callable[[], signal.Signals | None]]:
    """Defer SIGTERM and SIGINT until a step is finished; yields a function for the signal received.

    A second signal is not deferred.
    """
    came: list[signal.Signals] = []

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(signal.Signals(number))
        _install(previous)

    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    _install(dict.fromkeys(previous, note))
    try:
        yield lambda: came[0] if came else None
    finally:
        _install(previous)


_Handler = Callable[[int, FrameType | None], Any] | int | None


def _install(handlers: Mapping[signal.Signals, Any]) -> dict[signal.Signals, _Handler]:
    return {number: signal.signal(number, handler) for number, handler in handlers.items()}
