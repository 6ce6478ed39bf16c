"""Distil the cached teacher into a sentence encoder."""

import functools
from collections.abc import Mapping
from pathlib import Path

from dvclive.live import Live

from pipeline.download.records import read_pairs, read_sentences, read_sts
from pipeline.encoder import save_student
from pipeline.evaluate.selection import DevScorer
from pipeline.features.store import read_features
from pipeline.runtime import atomic_folder, write_json
from pipeline.train.batches import training_pairs
from pipeline.train.card import model_card
from pipeline.train.loop import RunParams, TrainingData, train_student
from stages import paths
from stages._cli import read_params, run_stage


def main(
    pairs: Path = paths.PAIRS,
    text: Path = paths.TEXT,
    evaluation: Path = paths.EVALUATION,
    features: Path = paths.FEATURES,
    out: Path = paths.MODEL,
    curves: Path = paths.REPORTS / "train",
    metrics: Path = paths.REPORTS / "train.json",
) -> None:
    """Distil the cached teacher into a sentence encoder."""
    params = read_params()
    run = RunParams(params.student, params.loss, params.train)
    corpus = read_pairs(pairs)
    cached = read_features(features, params.teacher, corpus.fingerprint())
    data = TrainingData(read_sentences(text), training_pairs(corpus, cached))
    score_dev = DevScorer(read_sts(evaluation), params.train.batch_size)
    with Live(str(curves), dvcyaml=None, report=None, save_dvc_exp=False) as live:
        training = train_student(data, run, score_dev, functools.partial(_record, live))
    card = model_card(run, params.teacher, training.metrics)
    with atomic_folder(out) as folder:
        save_student(folder, training.student, card)
    write_json(metrics, training.metrics)


def _record(live: Live, step: int, values: Mapping[str, float]) -> None:
    live.step = step
    for name, value in values.items():
        live.log_metric(name, value)


app = run_stage(main)

if __name__ == "__main__":
    app()
