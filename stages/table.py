"""Turn finished experiments into a table and a plot."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.core.errors import ParamsError
from pipeline.core.files import atomic_file
from pipeline.params.places import expanded
from pipeline.results.chart import write_chart
from pipeline.results.compare import Configuration
from pipeline.results.experiments import (
    HEAD,
    finished_experiments,
    label_experiments,
    read_experiment,
    require_same_changes,
)
from pipeline.results.grid import Grid, read_grid
from pipeline.results.table import (
    ResultTable,
    describe,
    in_order,
    make_table,
    markdown,
    numbers,
    read_folder,
)
from stages import paths
from stages._cli import PARAMS_FILE, run_stage

SUMMARY = paths.REPORTS / "summary.json"


def main(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[GRID]", help="A grid file; without: all experiments of HEAD."),
    ] = None,
    reports: Annotated[
        Path | None, typer.Option(help="Folder with CONFIGURATION/SEED.json, in place of DVC.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Write OUT.md, OUT.csv and OUT.svg too.")] = None,
    score: Annotated[
        list[str] | None, typer.Option(help="A score or pattern; the first is tested.")
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Leave out what is missing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """A table over configurations, each tested against the baseline, as Markdown."""
    grid = None if file is None else read_grid(file)
    others: list[Configuration] = []
    if grid is None:
        tested, baseline = _all_experiments(reports), HEAD
    else:
        tested, others = _of_grid(grid, reports, partial=partial)
        baseline = grid.baseline
    table = make_table(tested, baseline, patterns=score or (), others=others, partial=partial)
    if out is not None:
        _write(expanded(out), table, grid)
    typer.echo(json.dumps(describe(table), indent=2) if as_json else markdown(table), nl=as_json)


def _of_grid(
    grid: Grid, reports: Path | None, *, partial: bool
) -> tuple[list[Configuration], list[Configuration]]:
    """The configurations of the grid, and those of the folder that are outside it."""
    names = list(grid.configurations)
    found = _experiments(grid) if reports is None else read_folder(reports)
    others = [side for name, side in found.items() if name not in names]
    return in_order(found, names, grid.baseline, partial=partial), others


def _experiments(grid: Grid) -> dict[str, Configuration]:
    commits = finished_experiments()
    require_same_changes(grid, commits, PARAMS_FILE)
    names = [name for name in grid.configurations if name in commits]
    return {name: read_experiment(name, commits[name], SUMMARY) for name in names}


def _all_experiments(reports: Path | None) -> list[Configuration]:
    """HEAD, and every experiment on top of it by the params it changes."""
    if reports is not None:
        raise ParamsError(
            "--reports needs a grid, which names the baseline.", "name the grid file too."
        )
    commits = finished_experiments()
    labels = label_experiments(commits, PARAMS_FILE)
    found = [read_experiment(labels[name], commit, SUMMARY) for name, commit in commits.items()]
    return [read_experiment(HEAD, HEAD, SUMMARY), *found]


def _write(out: str, table: ResultTable, grid: Grid | None) -> None:
    with atomic_file(Path(f"{out}.md")) as temporary:
        temporary.write_text(markdown(table), encoding="utf-8")
    with atomic_file(Path(f"{out}.csv")) as temporary:
        numbers(table).to_csv(temporary, index=False, float_format="%.6g")
    swept = grid.swept() if grid else {}
    write_chart(Path(f"{out}.svg"), table, grid.sweep if grid else None, swept)


app = run_stage(main)

if __name__ == "__main__":
    app()
