"""SIGTERM and SIGINT: work ends early with nothing half-written."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

from pipeline.core.errors import InterruptedRunError

_Handler = Callable[[int, FrameType | None], None]
_stops: list[InterruptedRunError] = []
"""The signals received."""


@contextlib.contextmanager
def ends_on_signal(command: str) -> Iterator[None]:
    """Turn SIGTERM and SIGINT into an InterruptedRunError, so that clean-up code runs."""

    def stop(number: int, _frame: FrameType | None) -> None:
        # Workers that the same signal ended are not reported as errors.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        name = signal.Signals(number).name
        what = f"{command} was stopped by {name}; nothing half-written was left."
        _stops.append(InterruptedRunError(what, "run the same command again."))
        raise _stops[-1]

    _stops.clear()
    try:
        with _handles(stop), _hides_swallowed_stops():
            yield
            require_running()
    finally:
        _stops.clear()


@contextlib.contextmanager
def _hides_swallowed_stops() -> Iterator[None]:
    """Print no traceback where the signal comes in a `__del__`, which swallows the error."""
    before = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if unraisable.exc_value not in _stops:
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


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
        restore()

    with _handles(note) as restore:
        yield lambda: came[0] if came else None


@contextlib.contextmanager
def _handles(handler: _Handler) -> Iterator[Callable[[], None]]:
    """Handle both signals meanwhile; yields a function that ends that early."""
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, before in previous.items():
            signal.signal(number, before)

    try:
        for number in previous:
            signal.signal(number, handler)
        yield restore
    finally:
        restore()
