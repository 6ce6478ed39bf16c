"""Summarise the evaluations of all training seeds."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from pipeline.results.summary import METRICS, read_run, write_summary
from stages import paths
from stages._cli import note_times, read_params, run_stage, wide_console


def main(
    train: Annotated[Path, typer.Option(help="With SEED/metrics.json.")] = paths.TRAIN_REPORTS,
    evaluations: Annotated[
        Path, typer.Option(help="With SEED.json and SEED.csv.")
    ] = paths.EVALUATE_REPORTS,
    out: Annotated[Path, typer.Option(help="scores.csv goes beside it.")] = paths.SUMMARY,
) -> None:
    """Mean, standard deviation and interval of every score over train.seeds."""
    params = read_params()
    runs = [read_run(train, evaluations, seed) for seed in params.train.seeds]
    scores = write_summary(out, runs)
    note_times(out)
    title = f"Mean over seeds {', '.join(map(str, params.train.seeds))}"
    table = Table("score", "mean", "sd", "95 %", title=title, title_justify="left", box=None)
    for score in scores:
        if score.score in METRICS:
            sd, interval = score.first.shown()
            table.add_row(score.score, f"{score.first.mean:.2f}", sd, interval)
    wide_console(stderr=True).print(table)


app = run_stage(main)

if __name__ == "__main__":
    app()
