"""Summarise the evaluations of all training seeds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from pipeline.results.compare import ComparedScore, Summary
from pipeline.results.summary import METRICS, read_run, write_summary
from stages import paths
from stages._cli import note_times, read_params, run_stage
from stages._tables import wide_console


def main(
    train: Annotated[Path, typer.Option(help="Folder with SEED/metrics.json.")] = (
        paths.TRAIN_REPORTS
    ),
    evaluations: Annotated[Path, typer.Option(help="Folder with SEED.json and SEED.csv.")] = (
        paths.EVALUATE_REPORTS
    ),
    out: Annotated[Path, typer.Option(help="JSON to write; a CSV goes beside it.")] = (
        paths.REPORTS / "summary.json"
    ),
) -> None:
    """Mean, standard deviation and interval of every score over train.seeds."""
    params = read_params()
    runs = [read_run(train, evaluations, seed) for seed in params.train.seeds]
    scores = write_summary(out, runs)
    note_times(out)
    _print(scores, params.train.seeds)


def _print(scores: Sequence[ComparedScore], seeds: Sequence[int]) -> None:
    title = f"Mean over seeds {', '.join(map(str, seeds))}"
    table = Table("score", "mean", "sd", "95 %", title=title, title_justify="left", box=None)
    for score in scores:
        if score.score in METRICS:
            table.add_row(score.score, *_cells(score.first))
    wide_console(stderr=True).print(table)


def _cells(values: Summary) -> list[str]:
    sd = "-" if values.sd is None else f"{values.sd:.2f}"
    interval = "-" if values.interval is None else "{:.2f}, {:.2f}".format(*values.interval)
    return [f"{values.mean:.2f}", sd, interval]


app = run_stage(main)

if __name__ == "__main__":
    app()
