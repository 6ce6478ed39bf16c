"""Summarise a configuration over its seeds, or test it against another."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Column, Table

from pipeline.params.places import expanded
from pipeline.results.compare import SeedStatistics, compare
from pipeline.results.scores import read_configuration
from stages._cli import run_stage, wide_console


def main(
    first: Annotated[str, typer.Argument(help="A folder of reports, a file or a quoted pattern.")],
    second: Annotated[str | None, typer.Argument(help="What to test it against.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Mean and spread over seeds; with two configurations, the paired t-test of first - second."""
    sides = [read_configuration(expanded(where)) for where in (first, second) if where is not None]
    scores = compare(*sides)
    if as_json:
        files = [[{"file": r.where, "seed": r.seed} for r in side.reports] for side in sides]
        named = zip(sides, files, strict=True)
        content = {
            "configurations": [{"name": side.name, "reports": read} for side, read in named],
            "scores": {score.score: asdict(score) for score in scores},
        }
        typer.echo(json.dumps(content, indent=2, allow_nan=False))
        return
    tests = ["difference", "p", "p, Holm"] if second is not None else []
    names = [side.name for side in sides]
    table = Table(Column("score", overflow="fold"), *names, *tests, "n", box=None)
    for score in scores:
        found = [_show(s) for s in (score.first, score.second, score.difference) if s is not None]
        p_values = ["-" if p is None else f"{p:.2g}" for p in (score.p, score.p_adjusted)]
        table.add_row(score.score, *found, *p_values[: len(tests)], str(score.first.n))
    console = wide_console()
    console.print(table)
    console.print("mean ± sd [95 % interval of the mean]; -: none, docs/statistics.md says why")


def _show(values: SeedStatistics) -> str:
    sd, interval = values.shown()
    return f"{values.mean:.2f} ± {sd} [{interval}]"


app = run_stage(main)

if __name__ == "__main__":
    app()
