"""One typer command a step of the pipeline.

The modules of a command take seconds to import. If `python -m stages.X` is stopped meanwhile, the
lines below end it with one line. They also open standard streams that were closed, so that no other
file takes their place and gets the output of libraries.
"""

import contextlib
import os
import signal
import sys
import time
from types import FrameType

STARTED = time.monotonic()
"""When this process began, by time.monotonic."""


def _end_quietly(number: int, _frame: FrameType | None) -> None:
    command = sys.orig_argv[sys.orig_argv.index("-m") + 1].removeprefix("stages.")
    name = signal.Signals(number).name
    what = f"error: {command} was stopped by {name}; nothing half-written was left."
    with contextlib.suppress(OSError):
        os.write(2, f"{what}\n  fix: run the same command again.\n".encode())
    os._exit(1)


def _open_standard_streams() -> None:
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: this one
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115


if sys.argv[0] == "-m":  # only while Python looks for the module of a command
    _open_standard_streams()
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "10")  # of bars that libraries show
    signal.signal(signal.SIGINT, _end_quietly)
    signal.signal(signal.SIGTERM, _end_quietly)
