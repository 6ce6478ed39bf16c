"""Semantic textual similarity: cosines against graded pairs.

Protocol: SentEval as SimCSE extends it. The headline is the aggregation `all`: all pairs of a task
(a year of STS12 to STS16) are ranked together in one Spearman correlation with average ranks;
STS-B and SICK-R use their test split. `mean` and `wmean` are the plain and the pair-weighted mean
over the sub-sets of a year. Cosines are computed in float64; with a zero vector they are 0.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool
from numpy.typing import NDArray

from pipeline.core.errors import InputError
from pipeline.evaluate.correlation import (
    Bootstrap,
    Correlation,
    correlate,
    interval,
    require_correlation,
)
from pipeline.evaluate.embeddings import Embeddings, protocol_order, row_cosines, unit_rows
from pipeline.evaluate.geometry import alignment, mcse_batches, uniformity
from pipeline.evaluate.score import AVERAGE, Score
from pipeline.evaluate.selection import SELECTION_TASKS
from pipeline.params.evaluate import Convention

_CASED = "STS-B-cased"
_YEARS = ("STS12", "STS13", "STS14", "STS15", "STS16")
"""Tasks of several sets, which SentEval reads and sorts one by one and averages."""
_FEWEST_UNSEEN = 10
"""Below this many unseen pairs a correlation means nothing."""


@dataclass(frozen=True)
class StsTask:
    """The pairs of one task that are scored together."""

    name: str
    split: str
    """test, dev, or all of them."""
    pairs: pd.DataFrame


def sts_tasks(table: pd.DataFrame, convention: Convention) -> list[StsTask]:
    """The tasks of a convention in the table's order, dev splits last.

    Args:
        table: rows of sts.parquet.
        convention: `senteval`: the test split of every task, tokenised and lower-cased as
            SentEval has them; `mteb`: SICK-R over the pairs of all its splits, STS-B on its cased
            original, which is left out where the table lacks it.

    Raises:
        InputError: nothing is left to score.
    """
    left_out = _CASED if convention == "senteval" else "STS-B"
    tested = []
    for name in dict.fromkeys(table["task"]):
        split = "all" if (convention, name) == ("mteb", "SICK-R") else "test"
        pairs = _rows(table, name, split)
        if name != left_out and len(pairs):
            tested.append(StsTask(_shown(name), split, pairs))
    if not tested:
        raise InputError("the STS table has no test pairs.", "run `dvc repro -f download`.")
    dev = [StsTask(_shown(name), "dev", _rows(table, name, "dev")) for name in SELECTION_TASKS]
    return [*tested, *[task for task in dev if len(task.pairs)][:1]]


def score_sts(
    embeddings: Embeddings,
    tasks: Sequence[StsTask],
    bootstrap: Bootstrap,
    *,
    seen: frozenset[str] | None = frozenset(),
) -> list[Score]:
    """Score every task, and the average over them.

    Args:
        embeddings: of all sentences of the tasks.
        tasks: what to score.
        bootstrap: how the intervals are drawn.
        seen: normalised sentences of the training text (`normalise`); None: it is not known, and no
            unseen pairs are scored.

    Returns:
        For every task Spearman and Pearson in each aggregation and sub-set, Spearman over the
        unseen pairs, alignment and uniformity; last the averages over all but the dev splits.

    Raises:
        InputError: a task has fewer than two pairs, or all its gold scores are equal.
        ModelError: the cosines of a task are all equal, so that it has no correlation.
    """
    measured = [_Measured.of(task, embeddings, bootstrap, seen) for task in tasks]
    tested = [result for result in measured if result.task.split != "dev"]
    unseen = [result.unseen for result in tested if result.unseen is not None]
    return [
        *(score for result in measured for score in result.scores()),
        _average([result.whole for result in tested], unseen=False),
        *([_average(unseen, unseen=True)] if unseen else []),
    ]


def normalise(sentence: str) -> str:
    """Lower-case words without punctuation, to compare sentences across tokenisations."""
    return " ".join(re.findall(r"\w+", sentence.lower()))


def _shown(task: str) -> str:
    return "STS-B" if task == _CASED else task


def _rows(table: pd.DataFrame, task: str, split: str) -> pd.DataFrame:
    return pd.DataFrame(
        table[(table["task"] == task) & (table["split"].eq(split) | (split == "all"))]
    )


@dataclass(frozen=True)
class _Measured:
    """What was measured on one task."""

    task: StsTask
    whole: Correlation
    unseen: Correlation | None
    """None where the training text is not known."""
    subsets: dict[str, Correlation]
    geometry: dict[str, float]

    @classmethod
    def of(
        cls,
        task: StsTask,
        embeddings: Embeddings,
        bootstrap: Bootstrap,
        seen: frozenset[str] | None,
    ) -> "_Measured":
        pairs = task.pairs
        first, second = (unit_rows(embeddings.of(pairs[f"sentence{side}"])) for side in (1, 2))
        cosines, gold = row_cosines(first, second), pairs["score"].to_numpy(np.float64)
        require_correlation(cosines, gold, task.name)
        unseen = None
        if seen is not None:
            rows = _is_unseen(pairs, seen)
            unseen = correlate(cosines[rows], gold[rows], bootstrap, fewest=_FEWEST_UNSEEN)
        subsets = {
            str(name): correlate(cosines[rows], gold[rows], bootstrap)
            for name, rows in pairs.groupby("subset", sort=False).indices.items()
        }
        batches = mcse_batches(_encoded_sets(task))
        geometry = {
            "alignment": alignment(first, second, gold, batches),
            "uniformity": uniformity(first, second, batches),
        }
        return cls(task, correlate(cosines, gold, bootstrap), unseen, subsets, geometry)

    def scores(self) -> Iterator[Score]:
        yield from self._correlations(self.whole, aggregation="all")
        if self.task.name in _YEARS:
            yield from self._means("mean", weights=None)
            yield from self._means("wmean", [part.count for part in self.subsets.values()])
        for name, part in self.subsets.items():
            yield from self._correlations(part, subset=name)
        if self.unseen is not None:
            yield next(self._correlations(self.unseen, aggregation="all", unseen=True))
        for measure, value in self.geometry.items():
            yield self._score(measure, value, self.whole.count)

    def _correlations(self, part: Correlation, **about: Any) -> Iterator[Score]:
        low, high = interval(part.samples)
        yield self._score("spearman", part.spearman, part.count, low=low, high=high, **about)
        yield self._score("pearson", part.pearson, part.count, **about)

    def _means(self, aggregation: str, weights: list[int] | None) -> Iterator[Score]:
        for measure in ("spearman", "pearson"):
            values = [getattr(part, measure) for part in self.subsets.values()]
            value = None if None in values else float(np.average(values, weights=weights))
            yield self._score(measure, value, self.whole.count, aggregation=aggregation)

    def _score(self, measure: str, value: float | None, count: int, **about: Any) -> Score:
        return Score("sts", self.task.name, self.task.split, measure, value, count, **about)


def _encoded_sets(task: StsTask) -> list[NDArray[np.intp]]:
    """The rows as the reference encodes them: a year set by set and sorted, else in file order."""
    if task.name not in _YEARS:
        return [np.arange(len(task.pairs))]
    first, second = task.pairs["sentence1"].to_numpy(str), task.pairs["sentence2"].to_numpy(str)
    gold = task.pairs["score"].to_numpy(np.float64)
    sets = map(np.asarray, task.pairs.groupby("subset", sort=False).indices.values())
    return [rows[protocol_order(first[rows], second[rows], gold[rows])] for rows in sets]


def _is_unseen(pairs: pd.DataFrame, seen: frozenset[str]) -> Bool[np.ndarray, " pairs"]:
    known = [
        normalise(first) in seen or normalise(second) in seen
        for first, second in zip(pairs["sentence1"], pairs["sentence2"], strict=True)
    ]
    return ~np.array(known, dtype=bool)


def _average(parts: Sequence[Correlation], *, unseen: bool) -> Score:
    """The mean over tasks; undefined where one of them is."""
    values = [part.spearman for part in parts if part.spearman is not None]
    samples = [part.samples for part in parts if part.samples is not None]
    is_complete = len(values) == len(parts)
    low, high = interval(np.mean(samples, axis=0) if is_complete else None)
    value = float(np.mean(values)) if is_complete else None
    count = sum(part.count for part in parts)
    about = Score("sts", AVERAGE, "test", "spearman", value, count, aggregation="all")
    return replace(about, unseen=unseen, low=low, high=high)
