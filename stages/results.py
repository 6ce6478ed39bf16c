"""Show the outcome of a run: scores beside the baselines, times of the stages, what to do next."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pipeline.results.overview import SYSTEMS, Results, StageRuns, read_results
from stages import paths
from stages._cli import read_params, run_stage

_WIDTH = 80
_NEXT = """
Next{activation}:
  python -m stages.search "a green square above a yellow circle" --images
  dvc exp run -S loss.margin={margin:g}  # and then: dvc metrics diff
  dvc plots show                  # one page of charts, without a network:
    {page}"""


def main(
    reports: Annotated[Path, typer.Option(help="What the stages wrote.")] = paths.REPORTS,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Show the student beside untrained and teacher, what the stages took, and what to do next."""
    params = read_params()
    results = read_results(reports, params.train.seeds)
    if as_json:
        typer.echo(json.dumps(asdict(results), indent=2))
        return
    console = Console(width=_WIDTH, markup=False, emoji=False, highlight=False)
    console.print(_scores(results), "", _times(results))
    for sentence in results.missing:
        console.print(sentence)
    script = Path(sys.prefix, "bin", "activate")  # else the commands would be another Python's
    is_active = "VIRTUAL_ENV" in os.environ or not script.is_file()
    activation = "" if is_active else f", after `source {os.path.relpath(script)}`"
    page = Path("dvc_plots/index.html").resolve()
    typer.echo(_NEXT.format(activation=activation, margin=params.loss.margin + 0.05, page=page))


def _scores(results: Results) -> Table:
    seeds = ", ".join(map(str, results.seeds))
    title = f"Scores, means over seeds {seeds}" if len(results.seeds) > 1 else "Scores"
    table = _table(title, *SYSTEMS, "95 % of student")
    for name, found in results.scores.items():
        cells = [f"{found[one]:.2f}" if one in found else "-" for one in SYSTEMS]
        interval = results.intervals.get(name)
        table.add_row(name, *cells, "{:.2f} to {:.2f}".format(*interval) if interval else "-")
    return table


def _times(results: Results) -> Table:
    table = _table("Stages", "took", "")
    for name, stage in results.stages.items():
        table.add_row(name, _duration(stage.seconds) if stage.timed else "-", _state(stage))
    table.columns[2].justify = "left"
    return table


def _table(title: str, *numbers: str) -> Table:
    """Names on the left, numbers on the right."""
    table = Table("", title=title, title_justify="left", title_style="bold", box=None)
    table.pad_edge = False
    for number in numbers:
        table.add_column(number, justify="right")
    return table


def _state(stage: StageRuns) -> str:
    """What there is to say of a stage beside its time; nothing where it just ran."""
    if not stage.made:
        return "not run yet"
    counts = {
        "not run here: from a cache or from git": stage.made - stage.timed,
        "to run": stage.runs - stage.made,
    }
    said = [f"{count} of {stage.runs} {what}" for what, count in counts.items() if count]
    return ", ".join(said).removeprefix("1 of 1 ")


def _duration(seconds: float) -> str:
    """In the largest two units, such as `1 min 14 s`."""
    if seconds < 60:  # noqa: PLR2004  # of a minute
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


app = run_stage(main)

if __name__ == "__main__":
    app()
