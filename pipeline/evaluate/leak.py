"""The leak: how much of the tests occurs in the training text, by task and sub-set.

Sentences are compared as `normalise` writes them. The sentences themselves are not reported: a
published list of test sentences would end up in training text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline.evaluate.sts import normalise
from pipeline.evaluate.suite import Suite
from pipeline.params.evaluate import Part


@dataclass(frozen=True)
class Leak:
    """The overlap of one sub-set of a task with the training text."""

    part: Part
    task: str
    subset: str
    """Empty where a task has none."""
    samples: int
    """Pairs, labelled samples or captions."""
    seen: int
    """Of these, with a sentence that occurs in the training text."""
    sentences: int
    """Distinct ones."""
    seen_sentences: int


def find_leak(suite: Suite) -> list[Leak] | None:
    """Compare all that is scored, but for dev splits, with the training text.

    None where the training text is not known.
    """
    if suite.seen is None:
        return None
    return [
        _overlap(part, task, subset, columns, suite.seen)
        for part, task, subset, columns in _sets(suite)
    ]


def _sets(suite: Suite) -> Iterator[tuple[Part, str, str, list[pd.Series]]]:
    """The columns of sentences of every sub-set."""
    for task in suite.sts or []:
        parts = task.pairs.groupby("subset", sort=False) if task.split != "dev" else ()
        for subset, rows in parts:
            yield "sts", task.name, str(subset), _sentences(rows)
    if suite.transfer is not None:
        tested = suite.transfer[suite.transfer["split"].isin(["test", "all"])]
        for name, rows in tested.groupby("task", sort=False):
            yield "transfer", str(name), "", _sentences(rows)
    if suite.retrieval is not None:
        yield "retrieval", "captions", "", [pd.Series(suite.retrieval.captions)]


def _sentences(rows: pd.DataFrame) -> list[pd.Series]:
    return [rows["sentence1"], rows["sentence2"]]


def _overlap(
    part: Part, task: str, subset: str, columns: Sequence[pd.Series], seen: frozenset[str]
) -> Leak:
    distinct = {text for column in columns for text in column.dropna()}
    leaked = {text for text in distinct if normalise(text) in seen}
    samples = np.any([column.isin(list(leaked)) for column in columns], axis=0)
    return Leak(part, task, subset, len(samples), int(samples.sum()), len(distinct), len(leaked))
