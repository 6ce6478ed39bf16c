"""Run a grid of configurations as DVC experiments."""

import math
import time
from pathlib import Path
from typing import Annotated

import typer

from pipeline.core.errors import TrainingError
from pipeline.core.progress import log
from pipeline.results.experiments import (
    list_experiments,
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
    names, failed, started = _missing(grid, force=force), [], time.monotonic()
    for done, name in enumerate(names):
        minutes = (time.monotonic() - started) / max(1, done) * (len(names) - done) / 60
        left = f", about {math.ceil(minutes)} min left" if done else ""
        log.info("%d of %d: %s%s", done + 1, len(names), name, left)
        changes = overrides(grid.changes(name))
        if run_experiment(name, changes, target, queue=queue, kept=paths.KEPT):
            failed.append(name)
            log.warning("%s failed", name)
    word = "queued" if queue else "done"
    log.info("%d experiments %s, %d failed", len(names) - len(failed), word, len(failed))
    if failed:
        raise TrainingError(
            f"{len(failed)} experiments failed: {', '.join(failed)}.",
            "see the messages of DVC above; run the same command again, which leaves out those "
            "that are finished.",
        )
    if queue:
        log.info("start the queue with `dvc queue start`, watch it with `dvc queue status`")


def _missing(grid: Grid, *, force: bool) -> list[str]:
    """The configurations to run; with `force`, after the finished ones were removed."""
    finished, queued = list_experiments()
    if force:
        remove_experiments([name for name in grid.configurations if name in finished])
        finished = {}
    else:
        require_same_changes(grid, finished)
    for name in sorted((queued | finished.keys()) & grid.configurations.keys()):
        log.info("%s is left out: %s", name, "it is queued" if name in queued else "it exists")
    return [name for name in grid.configurations if name not in queued | finished.keys()]


app = run_stage(main)

if __name__ == "__main__":
    app()
