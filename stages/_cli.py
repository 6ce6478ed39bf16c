"""What all commands share: checked params, logs on stderr, one red line and exit code 1."""

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
from tqdm import tqdm

from pipeline.core.device import keep_freed_memory, ran_out_of_memory
from pipeline.core.errors import InterruptedRunError, PipelineError
from pipeline.core.progress import end_bars
from pipeline.core.redact import one_line, redact
from pipeline.core.signals import ends_on_signal
from pipeline.core.times import write_times
from pipeline.params.block import load_params
from pipeline.params.places import expanded
from pipeline.params.schema import Params
from stages import STARTED, paths

PARAMS_FILE = Path("params.yaml")

_DEBUG_VARIABLE = "KDMCSE_DEBUG"
_MORE_MEMORY = "lower the batch size, or use a machine with more memory."
_OF_STREAMS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""Errors on writing to a full disk or to a terminal that is gone."""

P = ParamSpec("P")
_Failure = tuple[str, str]
"""What is wrong, and what to do."""


def read_params() -> Params:
    """Read and check the whole of params.yaml in the working folder."""
    return load_params(PARAMS_FILE, Params)


def note_times(report: Path, *, seconds_before: float = 0.0, **measured: Any) -> None:
    """Write beside a finished report how long the command took, and what else it measured.

    Earlier processes of the same run took `seconds_before`.
    """
    seconds = time.monotonic() - STARTED + seconds_before
    write_times(paths.REPORTS, report, seconds, measured)


def wide_console(*, stderr: bool = False) -> Console:
    """A console for tables, which shows nothing as markup; wide where it is not a terminal."""
    console = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    console.width = console.width if console.is_terminal else 160
    return console


def run_stage(main: Callable[P, None]) -> typer.Typer:
    """Make a command of `main`: its errors become one line with the fix, and exit code 1."""
    stage = Path(inspect.getfile(main)).stem

    @functools.wraps(main)
    def command(*args: P.args, **kwargs: P.kwargs) -> None:
        _prepare_streams(stage)
        keep_freed_memory()
        given = {name: _expanded(value) for name, value in kwargs.items()}
        failure = _run(stage, functools.partial(main, *args, **given))  # type: ignore[arg-type]
        if failure is not None:  # the error is gone, and the memory that its traceback held
            end_bars()
            what, fix = (one_line(redact(text)) for text in failure)
            typer.secho(
                f"error: {what}", fg=None if os.environ.get("NO_COLOR") else "red", err=True
            )
            typer.echo(f"  fix: {fix}", err=True)
            raise typer.Exit(1)

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    return app


def _expanded(value: object) -> object:
    """Paths with `~` and `$VARIABLES` that no shell has replaced, as in `--out=~/scores.json`."""
    if isinstance(value, Path):
        return Path(expanded(str(value)))
    return [_expanded(one) for one in value] if isinstance(value, list) else value


def _run(stage: str, main: Callable[[], None]) -> _Failure | None:
    try:
        with ends_on_signal(stage):
            main()
        sys.stdout.flush()
    except BrokenPipeError:
        os._exit(1)  # nobody reads our output any more
    except (InterruptedRunError, PipelineError) as error:
        if ran_out_of_memory(error) and "memory" not in error.fix:
            return f"memory ran out: {error.what}", _MORE_MEMORY
        return error.what, error.fix
    except Exception as error:  # noqa: BLE001  # the last resort: never a bare traceback
        return _describe_unexpected(error)
    return None


def _describe_unexpected(error: Exception) -> _Failure:
    if os.environ.get(_DEBUG_VARIABLE):
        sys.stderr.write(redact(traceback.format_exc()))
    if ran_out_of_memory(error):
        return "memory ran out.", _MORE_MEMORY
    if isinstance(error, OSError) and error.filename is None and error.errno in _OF_STREAMS:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python must not try again at its end
        what = f"the output could not be written: {os.strerror(error.errno).lower()}."
        return what, "send it to a place that can be written."
    return (
        f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:300]}",
        f"this is a bug; run again with {_DEBUG_VARIABLE}=1 and report the traceback.",
    )


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """Each message on one line of stderr, without secrets, above a progress bar."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(redact(super().format(record)))

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(sys.stderr):
            super().emit(record)


def _prepare_streams(stage: str) -> None:
    """Log to stderr, and escape characters that a terminal's encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    handler = _Handler()
    handler.setFormatter(logging.Formatter(f"%(asctime)s {stage}: %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("kdmcse").setLevel(logging.INFO)
