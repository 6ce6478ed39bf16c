"""Distil the cached teacher into a sentence encoder."""

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from pipeline.core.files import atomic_folder, write_csv, write_json
from pipeline.download.records import Pairs, read_pairs, read_sentences, read_sts
from pipeline.evaluate.selection import DevScorer, dev_pairs
from pipeline.features.store import read_features
from pipeline.student.encoder import Student, save_student
from pipeline.train.batches import TrainingData, training_pairs
from pipeline.train.checkpoint import Checkpoint, run_fingerprint
from pipeline.train.diagnostics import (
    angles_and_margins,
    draw_sample,
    filter_effect,
    masked_pairs,
    similarity_histograms,
    warn_of_useless_filter,
)
from pipeline.train.loop import train_student
from pipeline.train.objective import loss_of
from pipeline.train.run_params import RunParams
from pipeline.train.student_card import model_card
from pipeline.train.trackers import open_trackers
from stages import paths
from stages._cli import note_times, read_params, run_stage


def main(
    seed: Annotated[
        int | None, typer.Option(help="Default: the first of train.seeds.", min=0, max=2**32 - 1)
    ] = None,
    pairs: Path = paths.PAIRS,
    text: Path = paths.TEXT,
    evaluation: Path = paths.EVALUATION,
    features: Path = paths.FEATURES,
    out: Annotated[Path | None, typer.Option(help="Default: data/models/SEED.")] = None,
    reports: Annotated[Path | None, typer.Option(help="Default: reports/train/SEED.")] = None,
    checkpoints: Annotated[
        Path,
        typer.Option(envvar=paths.CHECKPOINTS_VARIABLE, help="Where an unfinished run is kept."),
    ] = paths.CHECKPOINTS,
    tokens: Annotated[
        Path,
        typer.Option(envvar=paths.TOKENS_VARIABLE, help="Where tokenised text is kept."),
    ] = paths.TOKENS,
    checkpoint_every: Annotated[float, typer.Option(help="Seconds between two.", min=0)] = 120,
) -> None:
    """Distil the cached teacher into a sentence encoder; a stopped run goes on where it was."""
    params = read_params()
    seed = params.train.seeds[0] if seed is None else seed
    out, reports = out or paths.model(seed), reports or paths.TRAIN_REPORTS / str(seed)
    run = RunParams(params.student, params.loss, params.train)
    corpus = read_pairs(pairs)
    cached = read_features(features, params.teacher, corpus.fingerprint())
    data = TrainingData(read_sentences(text), training_pairs(corpus, cached))
    dev = dev_pairs(read_sts(evaluation))
    score_dev = DevScorer(dev, params.train.batch_size)
    kept = Checkpoint(checkpoints, run_fingerprint(data, run, seed, dev), checkpoint_every)
    tables, effect = _look_at_teacher(data, run, seed, corpus)
    with open_trackers(run.train.track, paths.TRACKING / str(seed)) as trackers:
        training = train_student(data, run, seed, score_dev, kept, tokens, trackers)
    if not training.is_main:
        return
    tables["curves"] = pd.DataFrame(training.curves, columns=["step", "curve", "value"])
    tables |= _look_at_student(data, run, seed, training.student)
    with atomic_folder(out) as folder:
        card = model_card(run, params.teacher, seed, training.metrics)
        save_student(folder, training.student, card)
    for name, table in tables.items():
        write_csv(reports / f"{name}.csv", table)
    write_json(reports / "metrics.json", {**training.metrics, **effect})
    note_times(reports / "metrics.json", **training.times)
    kept.remove()


def _look_at_teacher(
    data: TrainingData, run: RunParams, seed: int, corpus: Pairs
) -> tuple[dict[str, pd.DataFrame], dict[str, float]]:
    """Tables of the teacher's similarities, and what the filter makes of them."""
    noise = loss_of(run.train.objective, run.loss).filter
    sample = draw_sample(data.pairs, seed)
    effect = filter_effect(sample, noise)
    warn_of_useless_filter(effect, noise)
    names = dict(zip(corpus.images["image_id"], corpus.images["member"], strict=True))
    tables = {
        "similarity": similarity_histograms(sample),
        "masked_pairs": masked_pairs(sample, effect, noise, names),
    }
    return tables, effect.metrics() if effect else {}


def _look_at_student(
    data: TrainingData, run: RunParams, seed: int, student: Student
) -> dict[str, pd.DataFrame]:
    angles, margins = angles_and_margins(data.pairs, run, seed, student)
    return {"angles": angles, "margins": margins}


app = run_stage(main)

if __name__ == "__main__":
    app()
