"""Turn finished experiments into a table and a plot."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.core.errors import ParamsError
from pipeline.core.extras import require_extra
from pipeline.core.files import atomic_file, write_csv
from pipeline.params.places import expanded
from pipeline.results.experiments import (
    HEAD,
    label_experiments,
    list_experiments,
    read_experiment,
    require_same_changes,
)
from pipeline.results.grid import Grid, read_grid
from pipeline.results.scores import Configuration
from pipeline.results.table import describe, make_table, markdown, numbers, read_folder
from stages import paths
from stages._cli import run_stage


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
    if out is not None:
        require_extra("repro", "--out", "matplotlib")
    grid = None if file is None else read_grid(file)
    found = _find(grid, reports)
    names, baseline = (list(grid.configurations), grid.baseline) if grid else (list(found), HEAD)
    table = make_table(found, names, baseline, patterns=score or (), partial=partial)
    if out is not None:
        from pipeline.results.chart import write_chart

        base = expanded(out)
        with atomic_file(Path(f"{base}.md")) as temporary:
            temporary.write_text(markdown(table), encoding="utf-8")
        write_csv(Path(f"{base}.csv"), numbers(table), float_format="%.6g")
        sweep, swept = (grid.sweep, grid.swept()) if grid else (None, {})
        write_chart(Path(f"{base}.svg"), table, sweep, swept)
    typer.echo(json.dumps(describe(table), indent=2) if as_json else markdown(table), nl=as_json)


def _find(grid: Grid | None, reports: Path | None) -> dict[str, Configuration]:
    """The configurations of a folder, else of DVC: those of the grid, or HEAD and all on it."""
    if reports is not None:
        if grid is None:
            raise ParamsError(
                "--reports needs a grid, which names the baseline.", "name the grid file too."
            )
        return read_folder(reports)
    finished, _ = list_experiments()
    if grid is None:
        labels = label_experiments(finished)
        commits = {HEAD: HEAD} | {labels[name]: commit for name, commit in finished.items()}
    else:
        require_same_changes(grid, finished)
        commits = {name: finished[name] for name in grid.configurations if name in finished}
    return {name: read_experiment(name, commit, paths.SUMMARY) for name, commit in commits.items()}


app = run_stage(main)

if __name__ == "__main__":
    app()
