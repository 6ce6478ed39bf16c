"""Score a sentence encoder on STS."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from pipeline.download.records import read_pairs, read_sentences, read_sts
from pipeline.encoder import SentenceEncoder
from pipeline.errors import ParamsError
from pipeline.evaluate.report import sts_metrics, sts_table
from pipeline.evaluate.sts import TaskScore, normalise, score_sts
from pipeline.runtime import atomic_file, choose_device, write_json
from stages import paths
from stages._cli import read_params, run_stage


def main(
    model: Annotated[str, typer.Option(help="A model directory or hub name.")] = str(paths.MODEL),
    out: Annotated[Path, typer.Option(help="JSON to write; a CSV goes beside it.")] = (
        paths.REPORTS / "evaluate.json"
    ),
    pooling: Annotated[
        Literal["cls", "mean"] | None, typer.Option(help="Needed where the model names none.")
    ] = None,
    evaluation: Path = paths.EVALUATION,
    pairs: Path = paths.PAIRS,
    text: Path = paths.TEXT,
) -> None:
    """Score a sentence encoder on STS: Spearman x100, over all pairs and over unseen pairs."""
    params = read_params().evaluate
    if out.suffix == ".csv":
        raise ParamsError(f"--out {out} would be overwritten by its own CSV.", "end it in .json.")
    table = read_sts(evaluation)
    encoder = SentenceEncoder.load(paths.MODEL if model == str(paths.MODEL) else model, pooling).to(
        choose_device()
    )
    training_text = [*read_pairs(pairs).captions_of("train")["caption"], *read_sentences(text)]
    scores = score_sts(
        encoder,
        table,
        batch_size=params.batch_size,
        seen=frozenset(normalise(sentence) for sentence in training_text),
        show_progress=True,
    )
    with atomic_file(out.with_suffix(".csv")) as temporary:
        sts_table(scores).to_csv(temporary, index=False)
    write_json(out, {"sts": sts_metrics(scores)})
    _print(scores)


def _print(scores: list[TaskScore]) -> None:
    table = Table("task", "Spearman x100", "pairs", "unseen pairs only", "pairs", box=None)
    for row in sts_table(scores).itertuples(index=False):
        table.add_row(*(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row))
    Console(stderr=True).print(table)


app = run_stage(main)

if __name__ == "__main__":
    app()
