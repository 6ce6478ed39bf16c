"""Summarise a configuration over its seeds, or test it against another."""

import json
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.table import Column, Table

from pipeline.params.places import expanded
from pipeline.results.compare import ComparedScore, Summary, compare, describe, read_configuration
from stages._cli import run_stage
from stages._tables import wide_console


def main(
    first: Annotated[str, typer.Argument(help="A folder of reports, a file or a quoted pattern.")],
    second: Annotated[str | None, typer.Argument(help="What to test it against.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Mean and spread over seeds; with two configurations, the paired t-test of first - second."""
    sides = [read_configuration(expanded(where)) for where in (first, second) if where is not None]
    scores = compare(*sides)
    if as_json:
        typer.echo(json.dumps(describe(*sides, scores=scores), indent=2, allow_nan=False))
    else:
        _print([side.name for side in sides], scores)


def _print(names: Sequence[str], scores: Sequence[ComparedScore]) -> None:
    tests = ["difference", "p", "p, Holm"] if len(names) > 1 else []
    table = Table(Column("score", overflow="fold"), *names, *tests, "n", box=None)
    for score in scores:
        table.add_row(*_cells(score))
    console = wide_console()
    console.print(table)
    console.print("mean ± sd [95 % interval of the mean]; -: none, docs/statistics.md says why")


def _cells(score: ComparedScore) -> list[str]:
    summaries = [s for s in (score.first, score.second, score.difference) if s is not None]
    p_values = [_show_p(score.p), _show_p(score.p_adjusted)] if score.difference else []
    return [score.score, *map(_show, summaries), *p_values, str(score.first.n)]


def _show(summary: Summary) -> str:
    sd = "-" if summary.sd is None else f"{summary.sd:.2f}"
    interval = "-" if summary.interval is None else "{:.2f}, {:.2f}".format(*summary.interval)
    return f"{summary.mean:.2f} ± {sd} [{interval}]"


def _show_p(p: float | None) -> str:
    return "-" if p is None else f"{p:.2g}"


app = run_stage(main)

if __name__ == "__main__":
    app()
