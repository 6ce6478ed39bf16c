"""One score of an evaluation, as every part of it gives them."""

from dataclasses import dataclass

from pipeline.params.evaluate import Part

AVERAGE = "avg"
"""The task name of a mean over tasks."""


@dataclass(frozen=True)
class Score:
    """A number, what it measures, and over what."""

    part: Part
    task: str
    split: str
    """test | dev | train | all, of the task's own splits."""
    measure: str
    """spearman, accuracy, recall@1, ...; see docs/evaluation.md."""
    value: float | None
    """Correlations, accuracies, F1 and recalls x100; None where it is undefined."""
    count: int
    """Pairs, samples or queries behind it."""
    aggregation: str = ""
    """How the sub-sets of an STS task are put together: all | mean | wmean."""
    subset: str = ""
    """The sub-set of an STS task; empty: the whole task."""
    unseen: bool = False
    """Only over pairs none of whose sentences occurs in the training text."""
    low: float | None = None
    high: float | None = None
    """A 95 % bootstrap interval."""
    dimensions: int | None = None
    """Of the embedding, from its first on; None: all of them."""
