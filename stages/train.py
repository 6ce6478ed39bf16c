"""Distil the cached teacher into a sentence encoder."""

import functools
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from pipeline.core.files import atomic_folder, write_csv, write_json
from pipeline.download.records import Pairs, read_pairs, read_sentences, read_sts
from pipeline.evaluate.selection import DevScorer, dev_pairs
from pipeline.features.store import read_features
from pipeline.features.teacher_rows import SplitPairs, pairs_of_split
from pipeline.params.loss import LossParams
from pipeline.student.encoder import save_student
from pipeline.train.batches import TrainingData
from pipeline.train.checkpoint import Checkpoint, run_fingerprint
from pipeline.train.diagnostics import (
    angles_and_margins,
    draw_sample,
    filter_effects,
    masked_pairs,
    similarity_histograms,
    warn_of_useless_filter,
)
from pipeline.train.loop import TrainingRun
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
    checkpoint_every: Annotated[
        float, typer.Option(help="Seconds between two checkpoints.", min=0)
    ] = 120,
) -> None:
    """Distil the cached teacher into a sentence encoder; a stopped run resumes."""
    params = read_params()
    seed = params.train.seeds[0] if seed is None else seed
    out, reports = out or paths.model(seed), reports or paths.TRAIN_REPORTS / str(seed)
    settings = RunParams(params.student, params.loss, params.train)
    corpus = read_pairs(pairs)
    sentences = read_sentences(text)
    cached = read_features(features, params.teacher, corpus.fingerprint(), sentences)
    data = TrainingData(sentences, pairs_of_split(corpus, cached, "train"))
    dev = dev_pairs(read_sts(evaluation))
    score_dev = DevScorer(dev, settings.train.batch_size)
    run = TrainingRun(data, settings, seed)
    fingerprint = run_fingerprint(data, settings, seed, dev, run.model.encoder)
    kept = Checkpoint(checkpoints, fingerprint, checkpoint_every)
    tables, effect = _look_at_teacher(data.pairs, settings.loss, seed, corpus)
    look = functools.partial(
        angles_and_margins, run.model, data.pairs, max_length=settings.student.max_length, seed=seed
    )
    before = look(when="before")
    with open_trackers(settings.train.report_to, paths.TRACKING / str(seed)) as report:
        training = run.train(score_dev, kept, tokens, report)
    if not run.is_main:
        return
    tables["curves"] = pd.DataFrame(training.curves, columns=["step", "curve", "value"])
    for name, *states in zip(("angles", "margins"), before, look(when="after"), strict=True):
        tables[name] = pd.concat(states, ignore_index=True)
    with atomic_folder(out) as folder:
        card = model_card(settings, params.teacher, seed, training.metrics)
        save_student(folder, training.student, card)
    for name, table in tables.items():
        write_csv(reports / f"{name}.csv", table)
    write_json(reports / "metrics.json", {**training.metrics, **effect})
    note_times(reports / "metrics.json", **training.times)
    kept.remove()


def _look_at_teacher(
    pairs: SplitPairs, loss: LossParams, seed: int, corpus: Pairs
) -> tuple[dict[str, pd.DataFrame], dict[str, float]]:
    """Tables of the teacher's similarities, and the effect of the filter on them."""
    sample = draw_sample(pairs, seed)
    effects = filter_effects(sample, loss)
    warn_of_useless_filter(effects, loss.filter)
    names = dict(zip(corpus.images["image_id"], corpus.images["member"], strict=True))
    tables = {
        "similarity": similarity_histograms(sample),
        "masked_pairs": masked_pairs(sample, effects, loss.filter, names),
    }
    metrics = [effect.metrics(term) for term, effect in effects.items()]
    return tables, {name: value for one in metrics for name, value in one.items()}


app = run_stage(main)

if __name__ == "__main__":
    app()
