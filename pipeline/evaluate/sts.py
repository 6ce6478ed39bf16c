"""Semantic textual similarity: Spearman of cosines against graded pairs.

Protocol: SimCSE's `all` aggregation. All pairs of a task (a year of STS12-16) are ranked together
in one Spearman correlation with average ranks; STS-B and SICK-R use their test split. Cosines are
computed in float64, where a zero vector has cosine 0. All scores are x100.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float32, Float64
from numpy.typing import NDArray
from scipy.stats import spearmanr

from pipeline.errors import InputError, ModelError

SELECTION_TASKS = ("STS-B", "SCENES")
"""Tasks whose dev split selects the student."""

_FEWEST_PAIRS = 10
"""Below this many pairs a correlation says nothing."""


@runtime_checkable
class Encoder(Protocol):
    """Anything that embeds sentences."""

    def encode(
        self, sentences: Sequence[str], *, batch_size: int, show_progress: bool = False
    ) -> Float32[np.ndarray, "sentences dim"]:
        """One row a sentence."""
        ...


@dataclass(frozen=True)
class TaskScore:
    """The score of one task."""

    task: str
    spearman: float
    pairs: int
    spearman_unseen: float | None
    """Over pairs without a sentence of the training text; None below 10, or with equal gold."""
    pairs_unseen: int


def score_sts(
    encoder: Encoder,
    table: pd.DataFrame,
    *,
    batch_size: int,
    seen: frozenset[str] = frozenset(),
    show_progress: bool = False,
) -> list[TaskScore]:
    """Score an encoder on the test split of every task, each distinct sentence encoded once.

    Args:
        encoder: what to score.
        table: rows of sts.parquet.
        batch_size: sentences a forward pass.
        seen: normalised sentences of the training text (`normalise`).
        show_progress: whether to draw a progress bar.

    Raises:
        InputError: there is no test pair.
        ModelError: the cosines of a task are all equal, so that it has no correlation.
    """
    test = table[table["split"] == "test"]
    if test.empty:
        raise InputError("the STS table has no test pairs.", "run `dvc repro -f download`.")
    cosines = pair_cosines(encoder, test, batch_size=batch_size, show_progress=show_progress)
    unseen = _is_unseen(test, seen)
    return [
        _score_task(str(task), cosines[rows], test["score"].to_numpy()[rows], unseen[rows])
        for task, rows in test.groupby("task", sort=False).indices.items()
    ]


def average(scores: Iterable[TaskScore]) -> float:
    """The mean over tasks."""
    return float(np.mean([score.spearman for score in scores]))


def average_unseen(scores: Iterable[TaskScore]) -> float | None:
    """The mean over tasks of the unseen pairs; None where one task has too few."""
    values = [score.spearman_unseen for score in scores]
    return None if None in values else float(np.mean([v for v in values if v is not None]))


def dev_pairs(table: pd.DataFrame) -> pd.DataFrame:
    """The pairs that select the student during training.

    Raises:
        InputError: there are none.
    """
    dev = table[(table["split"] == "dev") & table["task"].isin(SELECTION_TASKS)]
    if dev.empty:
        raise InputError(
            f"the STS table has no dev pairs of {' or '.join(SELECTION_TASKS)}.",
            "run `dvc repro -f download`.",
        )
    return dev


def score_pairs(encoder: Encoder, pairs: pd.DataFrame, *, batch_size: int) -> float:
    """Spearman x100 over all given pairs together; errors as `score_sts`."""
    cosines = pair_cosines(encoder, pairs, batch_size=batch_size)
    return spearman(cosines, pairs["score"].to_numpy(), "dev")


def pair_cosines(
    encoder: Encoder, pairs: pd.DataFrame, *, batch_size: int, show_progress: bool = False
) -> Float64[np.ndarray, " pairs"]:
    """The cosine of each pair in float64; each distinct sentence is encoded once."""
    both = pd.concat([pairs["sentence1"], pairs["sentence2"]], ignore_index=True)
    codes, sentences = pd.factorize(both)
    embeddings = encoder.encode(list(sentences), batch_size=batch_size, show_progress=show_progress)
    unit = _normalise_rows(embeddings.astype(np.float64))
    first, second = np.split(codes, 2)
    cosines: NDArray[np.float64] = np.einsum("ij,ij->i", unit[first], unit[second])
    return cosines


def spearman(
    cosines: Float[np.ndarray, " pairs"], gold: Float[np.ndarray, " pairs"], task: str
) -> float:
    """Spearman x100 with average ranks.

    Raises:
        InputError: all gold scores are equal.
        ModelError: all cosines are equal, as those of a collapsed encoder.
    """
    if np.ptp(gold) == 0:
        raise InputError(f"{task}: all gold scores are equal.", "check the task's file.")
    if np.ptp(cosines) == 0:
        raise ModelError(
            f"{task}: all pairs have the same cosine, so there is no correlation.",
            "the encoder has collapsed; check its weights and pooling, or train again.",
        )
    return float(spearmanr(cosines, gold).statistic) * 100


def normalise(sentence: str) -> str:
    """Lower-case words without punctuation, to compare sentences across tokenisations."""
    return " ".join(re.findall(r"\w+", sentence.lower()))


def _normalise_rows(rows: Float64[np.ndarray, "rows dim"]) -> Float64[np.ndarray, "rows dim"]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1.0)


def _is_unseen(pairs: pd.DataFrame, seen: frozenset[str]) -> Bool[np.ndarray, " pairs"]:
    known = [
        normalise(first) in seen or normalise(second) in seen
        for first, second in zip(pairs["sentence1"], pairs["sentence2"], strict=True)
    ]
    return ~np.array(known, dtype=bool)


def _score_task(
    task: str,
    cosines: Float64[np.ndarray, " pairs"],
    gold: Float64[np.ndarray, " pairs"],
    unseen: Bool[np.ndarray, " pairs"],
) -> TaskScore:
    left = int(unseen.sum())
    says_something = left >= _FEWEST_PAIRS and bool(np.ptp(gold[unseen]) > 0)
    return TaskScore(
        task=task,
        spearman=spearman(cosines, gold, task),
        pairs=len(gold),
        spearman_unseen=spearman(cosines[unseen], gold[unseen], task) if says_something else None,
        pairs_unseen=left,
    )
