"""The evaluator against SentEval's own way of working, side by side in one run.

    python benchmarks/evaluate_speed.py --json      {"sts": ratio, "transfer": ratio, ...}

A ratio is their time over ours, each from sentences to scores. Theirs is `plain_evaluation`; ours
does more in its time: every aggregation, Pearson, geometry and 1,000 bootstrap samples a task.
Their transfer would take most of an hour, so by default it is sampled: every fourth batch is
encoded and 8 + 1 of 41 fits of a cross-validation run, and the rest is taken to cost the same.
`--full` runs all of it, and compares the accuracies too.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pandas as pd
import torch
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.plain_evaluation import (
    PENALTIES,
    Array,
    Encode,
    PlainTransfer,
    folds_of,
    plain_encoder,
    plain_sts,
)
from pipeline.core.device import keep_freed_memory
from pipeline.download.senteval import read_senteval
from pipeline.evaluate.correlation import Bootstrap
from pipeline.evaluate.embeddings import Embeddings, embed
from pipeline.evaluate.score import Score
from pipeline.evaluate.sts import score_sts, sts_tasks
from pipeline.evaluate.transfer import score_transfer
from pipeline.student.encoder import SentenceEncoder

SHARED = Path(__file__).resolve().parents[2] / "shared"
SEED = 1111
BATCH = 128
ENCODED_SHARE = 4
"""The sampled reference encodes one batch of so many."""
SAMPLED_FOLDS = (0, 5)
SAMPLED_PENALTIES = (PENALTIES[0], PENALTIES[-1])

T = TypeVar("T")


def main(
    as_json: Annotated[bool, typer.Option("--json", help="Print on one line.")] = False,
    model: str = str(SHARED / "models" / "minilm-l3"),
    pooling: Literal["cls", "mean"] = "mean",
    senteval: Path = SHARED / "mirror" / "senteval.tar",
    repeats: Annotated[int, typer.Option(help="Rounds of STS; transfer runs once.")] = 1,
    full: Annotated[bool, typer.Option(help="Run the whole of the reference's transfer.")] = False,
) -> None:
    """Time both evaluators on the same model and files."""
    keep_freed_memory()
    sts, transfer = read_senteval(senteval)
    ours, theirs = SentenceEncoder.load(model, pooling), plain_encoder(model, pooling)
    for encode in (theirs, lambda sentences: ours.encode(sentences, batch_size=BATCH)):
        encode(list(sts["sentence1"][:BATCH]))  # warm-up
    rounds = [compare_sts(ours, theirs, sts) for _ in range(repeats)]
    ratios = [one["theirs_s"] / one["ours_s"] for one in rounds]
    transferred = compare_transfer(ours, theirs, transfer, full=full)
    result = {
        "sts": round(statistics.median(ratios), 2),
        "transfer": round(transferred["theirs_s"] / transferred["ours_s"], 2),
        "details": {"sts": rounds, "transfer": transferred, "threads": torch.get_num_threads()},
    }
    typer.echo(json.dumps(result, indent=None if as_json else 2))


def compare_sts(ours: SentenceEncoder, theirs: Encode, table: pd.DataFrame) -> dict[str, float]:
    """Seconds of both from sentences to scores, and their largest difference x100."""
    theirs_s, plain = timed(lambda: plain_sts(theirs, table))
    ours_s, scores = timed(lambda: our_sts(ours, table))
    found = {s.task: s.value for s in scores if _is_headline(s)}
    difference = max(abs(found[task] - value) for task, value in plain.items())
    return {"theirs_s": theirs_s, "ours_s": ours_s, "largest_difference": round(difference, 4)}


def our_sts(encoder: SentenceEncoder, table: pd.DataFrame) -> list[Score]:
    """The whole of the evaluator's STS on the test splits."""
    tasks = [task for task in sts_tasks(table, "senteval") if task.split == "test"]
    texts = [task.pairs[f"sentence{side}"] for task in tasks for side in (1, 2)]
    embeddings = embed(encoder, texts, batch_size=BATCH)
    return score_sts(embeddings, tasks, Bootstrap(resamples=1000, seed=SEED))


def compare_transfer(
    ours: SentenceEncoder, theirs: Encode, table: pd.DataFrame, *, full: bool
) -> dict[str, Any]:
    """Seconds of both from sentences to accuracies, and of their parts."""
    texts = [table["sentence1"], table["sentence2"]]
    encode_s, embeddings = timed(lambda: embed(ours, texts, batch_size=BATCH))
    fit_s, scores = timed(lambda: score_transfer(embeddings, table, seed=SEED))
    plain = PlainRun(theirs, embeddings, full)
    tasks = {str(name): plain.task(rows) for name, rows in table.groupby("task", sort=False)}
    accuracies = {s.task: s.value for s in scores if s.measure == "accuracy"}
    their_fit_s = sum(task["fit_s"] for task in tasks.values())
    return {
        "theirs_s": round(plain.encode_s + their_fit_s, 1),
        "ours_s": round(encode_s + fit_s, 1),
        "sampled": not full,
        "ours": {"encode_s": encode_s, "fit_s": fit_s, "accuracy": accuracies},
        "theirs": {"encode_s": round(plain.encode_s, 1), "fit_s": round(their_fit_s, 1), **tasks},
        "classifiers_only": round(their_fit_s / fit_s, 1),
    }


class PlainRun:
    """The reference's transfer, whole or sampled.

    Args:
        encode: of one batch.
        embeddings: of all sentences, for the batches that the sampled run does not encode.
        full: whether everything is run.
    """

    def __init__(self, encode: Encode, embeddings: Embeddings, full: bool) -> None:
        self._encode = encode
        self._embeddings = embeddings
        self._full = full
        self._batches = 0
        self.encode_s = 0.0
        """Seconds to encode everything."""

    def task(self, table: pd.DataFrame) -> dict[str, float]:
        """Seconds of all fits of a task; its accuracies where all were run."""
        task = PlainTransfer(self.encode, table, SEED)
        if not self._full:
            return {"fit_s": round(_sampled_fits(task), 1)}
        fit_s, (dev, accuracy) = timed(task.run)
        return {"fit_s": fit_s, "dev_accuracy": dev, "accuracy": accuracy}

    def encode(self, sentences: Sequence[str]) -> Array:
        """One batch, timed; a batch that is not encoded costs as much as the one that is."""
        share = 1 if self._full else ENCODED_SHARE
        self._batches += 1
        if self._batches % share:
            return self._embeddings.of(sentences)
        seconds, vectors = timed(lambda: self._encode(sentences))
        self.encode_s += share * seconds
        return vectors


def _sampled_fits(task: PlainTransfer) -> float:
    """Seconds of all fits of a task, from some of them."""
    if "dev" in task.data:
        fits = [
            lambda p=p: task.classifier(p).fit(*task.data["train"], task.data["dev"])
            for p in SAMPLED_PENALTIES
        ]
        return 5 * statistics.mean(timed(fit)[0] for fit in fits)
    features, labels = task.data["all" if "all" in task.data else "train"]
    cross_validations = 1
    if "all" in task.data:
        rows = next(iter(folds_of(SEED).split(features, labels)))[0]
        features, labels, cross_validations = features[rows], labels[rows], 10
    folds = list(folds_of(SEED).split(features, labels))
    inner = [
        timed(lambda p=p, f=f: task.fit_fold(p, features, labels, folds[f]))[0]
        for p in PENALTIES
        for f in SAMPLED_FOLDS
    ]
    last = timed(lambda: task.classifier(PENALTIES[0]).fit(features, labels, None))[0]
    return cross_validations * (40 * statistics.mean(inner) + last)


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds, and what the work gave."""
    started = time.perf_counter()
    result = work()
    return round(time.perf_counter() - started, 3), result


def _is_headline(score: Score) -> bool:
    return (score.measure, score.aggregation, score.subset, score.unseen) == (
        "spearman",
        "all",
        "",
        False,
    )


if __name__ == "__main__":
    typer.run(main)
