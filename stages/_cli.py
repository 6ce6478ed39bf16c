"""What all commands share: checked params, logs on stderr, one red line and exit 1."""

import contextlib
import errno
import functools
import inspect
import io
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec

import typer
from rich.console import Console
from rich.text import Text

from pipeline.core.device import keep_freed_memory, ran_out_of_memory
from pipeline.core.errors import InterruptedRunError, PipelineError
from pipeline.core.progress import end_bars
from pipeline.core.redact import redact
from pipeline.core.signals import ends_on_signal
from pipeline.core.times import write_times
from pipeline.params.block import load_params
from pipeline.params.places import expanded
from pipeline.params.schema import Params
from stages import STARTED, paths

PARAMS_FILE = Path("params.yaml")
DEBUG_VARIABLE = "KDMCSE_DEBUG"

_MORE_MEMORY = "lower the batch size, or use a machine with more memory."
_LAST_WORDS = f"error: memory ran out.\n  fix: {_MORE_MEMORY}\n".encode()

P = ParamSpec("P")
Failure = tuple[str, str]
"""What is wrong, and what to do."""


def read_params() -> Params:
    """Read and check the whole of params.yaml in the working folder."""
    return load_params(PARAMS_FILE, Params)


def note_times(report: Path, *, seconds_before: float = 0.0, **measured: Any) -> None:
    """Write beside a report that is finished what the command took, and what else it measured.

    Args:
        report: the report.
        seconds_before: what earlier processes of the same run took.
        measured: rates, and counts of what was done this time.
    """
    seconds = time.monotonic() - STARTED + seconds_before
    write_times(paths.REPORTS, report, seconds, measured)


def run_stage(main: Callable[P, None]) -> typer.Typer:
    """Make a command of `main`: its errors become one line with the remedy and exit code 1."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(_reporting_errors(main))
    return app


def _reporting_errors(main: Callable[P, None]) -> Callable[P, None]:
    stage = Path(inspect.getfile(main)).stem

    @functools.wraps(main)
    def command(*args: P.args, **kwargs: P.kwargs) -> None:
        _print_any_character()
        _log_to_stderr(stage)
        keep_freed_memory()
        given = {name: _expanded(value) for name, value in kwargs.items()}
        failure = _failure_of(stage, functools.partial(main, *args, **given))  # type: ignore[arg-type]
        if failure is not None:
            _fail(*failure)

    return command


def _expanded(value: object) -> object:
    """Paths with `~` and `$VARIABLES` that no shell has replaced, as in `--out=~/scores.json`."""
    if isinstance(value, Path):
        return Path(expanded(str(value)))
    return [_expanded(one) for one in value] if isinstance(value, list) else value


def _failure_of(stage: str, run: Callable[[], None]) -> Failure | None:
    """Run; the error ends here, and lets go of its memory before anything is said."""
    try:
        with ends_on_signal(stage):
            run()
        sys.stdout.flush()
    except PipelineError as error:
        return _known(error)
    except InterruptedRunError as error:
        return error.what, error.fix
    except BrokenPipeError:
        os._exit(1)  # the reader of our output went away; there is nobody to tell
    except Exception as error:  # noqa: BLE001  # the last resort: never a bare traceback
        return _unexpected(error)
    return None


def _print_any_character() -> None:
    """Escape what a terminal's encoding has no letter for, such as file names of other systems."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _known(error: PipelineError) -> Failure:
    """Where memory ran out below, the file that the error names is not to blame."""
    if "memory" not in error.fix and ran_out_of_memory(error):
        return f"memory ran out: {error.what}", _MORE_MEMORY
    return error.what, error.fix


def _unexpected(error: Exception) -> Failure:
    if os.environ.get(DEBUG_VARIABLE):
        sys.stderr.write(redact(traceback.format_exc()))
    if ran_out_of_memory(error):
        return "memory ran out.", _MORE_MEMORY
    if isinstance(error, OSError) and error.filename is None and error.errno in _OF_STREAMS:
        _drop_output()
        return (
            f"the output could not be written: {os.strerror(error.errno).lower()}.",
            "send it to a place that can be written.",
        )
    reason = " ".join(str(error).split())[:300]
    return (
        f"unexpected {type(error).__name__}: {reason}",
        f"this is a bug; run again with {DEBUG_VARIABLE}=1 and report the traceback.",
    )


_OF_STREAMS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""What a full disk or a terminal that is gone answers to output."""


def _drop_output() -> None:
    """Let what is still to be written go nowhere, so that Python does not try again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _fail(what: str, fix: str) -> None:
    try:
        end_bars()
        console = Console(stderr=True, soft_wrap=True)
        console.print(Text.assemble(("error: ", "bold red"), (_shown(what), "red")))
        console.print(Text(f"  fix: {_shown(fix)}"))
    except Exception:  # noqa: BLE001  # without memory much of Python breaks
        with contextlib.suppress(OSError):
            os.write(2, _LAST_WORDS)
    raise typer.Exit(1)


def _shown(text: str) -> str:
    """One line without secrets, in characters that do nothing to a terminal."""
    line = " ".join(redact(text).split())
    return "".join(part if part.isprintable() else repr(part)[1:-1] for part in line)


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """Lines on stderr, each on its own also while a progress bar stands there."""

    def emit(self, record: logging.LogRecord) -> None:
        bars = sys.modules.get("tqdm")
        with bars.tqdm.external_write_mode(sys.stderr) if bars else contextlib.nullcontext():
            super().emit(record)


class _Format(logging.Formatter):
    """Time, stage and message on one line, without secrets."""

    def __init__(self, stage: str) -> None:
        super().__init__(f"%(asctime)s {stage}: %(message)s", datefmt="%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        return _shown(super().format(record))


def _log_to_stderr(stage: str) -> None:
    handler = _Handler()
    handler.setFormatter(_Format(stage))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("kdmcse").setLevel(logging.INFO)
