"""What all commands share: checked params, logs on stderr, one red line and exit 1."""

import functools
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

import typer
from rich.console import Console
from rich.text import Text

from pipeline.config import load_params
from pipeline.errors import InterruptedRunError, PipelineError
from pipeline.params.schema import Params
from pipeline.runtime import ends_on_signal, keep_freed_memory

PARAMS_FILE = Path("params.yaml")
DEBUG_VARIABLE = "KDMCSE_DEBUG"

_OUT_OF_MEMORY = re.compile("out of memory|allocate memory")
"""How torch words it, on GPU and CPU, in an error that is no MemoryError."""

P = ParamSpec("P")


def read_params() -> Params:
    """Read and check the whole of params.yaml in the working folder."""
    return load_params(PARAMS_FILE, Params)


def run_stage(main: Callable[P, None]) -> typer.Typer:
    """Make a command of `main`: its errors become one line with the remedy and exit code 1."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(_reporting_errors(main))
    return app


def _reporting_errors(main: Callable[P, None]) -> Callable[P, None]:
    @functools.wraps(main)
    def command(*args: P.args, **kwargs: P.kwargs) -> None:
        _log_to_stderr()
        keep_freed_memory()
        try:
            with ends_on_signal(Path(sys.argv[0]).stem):
                main(*args, **kwargs)
        except (PipelineError, InterruptedRunError) as error:
            _fail(error.what, error.fix)
        except BrokenPipeError:
            os._exit(1)  # the reader of our output went away; there is nobody to tell
        except Exception as error:  # noqa: BLE001  # the last resort: never a bare traceback
            _fail_unexpectedly(error)

    return command


def _fail_unexpectedly(error: Exception) -> None:
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exc()
    reason = " ".join(str(error).split())[:300]
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(reason):
        _fail("memory ran out.", "lower the batch size, or use a machine with more memory.")
    _fail(
        f"unexpected {type(error).__name__}: {reason}",
        f"this is a bug; run again with {DEBUG_VARIABLE}=1 and report the traceback.",
    )


def _fail(what: str, fix: str) -> None:
    console = Console(stderr=True, soft_wrap=True)
    console.print(Text.assemble(("error: ", "bold red"), (what, "red")))
    console.print(Text(f"  fix: {fix}"))
    raise typer.Exit(1)


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("kdmcse").setLevel(logging.INFO)
