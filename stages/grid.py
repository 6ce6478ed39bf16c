"""Run a grid of configurations as DVC experiments."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pipeline.core.errors import TrainingError
from pipeline.core.progress import log
from pipeline.results.experiments import (
    finished_experiments,
    queued_experiments,
    remove_experiments,
    require_same_changes,
    run_experiment,
)
from pipeline.results.grid import Grid, check_grid, overrides, read_grid
from stages import paths
from stages._cli import PARAMS_FILE, run_stage


def main(
    file: Annotated[Path, typer.Argument(metavar="GRID", help="A grid file, as in grids/.")],
    queue: Annotated[bool, typer.Option("--queue", help="Queue the experiments only.")] = False,
    target: Annotated[str, typer.Option(help="The stage to bring up to date.")] = "summary",
    force: Annotated[bool, typer.Option("--force", help="Replace experiments that exist.")] = False,
) -> None:
    """Run a grid as DVC experiments in a copy of the project, or queue it."""
    grid = read_grid(file)
    check_grid(grid, PARAMS_FILE)
    failed = _run(grid, _missing(grid, force=force), target, queue=queue)
    if failed:
        raise TrainingError(
            f"{len(failed)} experiments failed: {', '.join(failed)}.",
            "see the messages of DVC above; run the same command again, which leaves out those "
            "that are finished.",
        )
    if queue:
        log.info("start the queue with `dvc queue start`, watch it with `dvc queue status`")


def _missing(grid: Grid, *, force: bool) -> list[str]:
    """The configurations that are to be run; with `force`, after what is there was removed."""
    finished, queued = finished_experiments(), queued_experiments()
    if force:
        remove_experiments([name for name in grid.configurations if name in finished])
    else:
        require_same_changes(grid, finished, PARAMS_FILE)
    there = queued if force else queued | finished.keys()
    for name in sorted(there & grid.configurations.keys()):
        log.info("%s is left out: %s", name, "it is queued" if name in queued else "it exists")
    return [name for name in grid.configurations if name not in there]


def _run(grid: Grid, names: Sequence[str], target: str, *, queue: bool) -> list[str]:
    """Run one after another; returns the names of those that failed."""
    started, failed = time.monotonic(), []
    for done, name in enumerate(names):
        left = _time_left(time.monotonic() - started, done, len(names))
        log.info("%d of %d: %s%s", done + 1, len(names), name, left)
        if _run_one(grid, name, target, queue=queue):
            failed.append(name)
            log.warning("%s failed", name)
    word = "queued" if queue else "done"
    log.info("%d experiments %s, %d failed", len(names) - len(failed), word, len(failed))
    return failed


def _run_one(grid: Grid, name: str, target: str, *, queue: bool) -> int:
    changes = overrides(grid.changes(name))
    return run_experiment(name, changes, target, queue=queue, kept=paths.KEPT)


def _time_left(seconds: float, done: int, total: int) -> str:
    """From the mean of those that are done; unknown before the first."""
    if not done:
        return ""
    minutes = seconds / done * (total - done) / 60
    return f", about {minutes:.0f} min left" if minutes >= 1 else ", less than a minute left"


app = run_stage(main)

if __name__ == "__main__":
    app()
