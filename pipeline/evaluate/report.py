"""What evaluation writes: metrics as JSON, the same as a table for plots and people."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from pipeline.evaluate.sts import TaskScore, average, average_unseen

_DIGITS = 4


def sts_metrics(scores: Sequence[TaskScore]) -> dict[str, Any]:
    """The metrics: one Spearman x100 a task, their averages, and how many pairs were unseen.

    `avg_unseen` is left out where a task has too few unseen pairs for a correlation.
    """
    metrics: dict[str, Any] = {score.task: round(score.spearman, _DIGITS) for score in scores}
    metrics["avg"] = round(average(scores), _DIGITS)
    if (unseen := average_unseen(scores)) is not None:
        metrics["avg_unseen"] = round(unseen, _DIGITS)
    metrics["pairs"] = sum(score.pairs for score in scores)
    metrics["pairs_unseen"] = sum(score.pairs_unseen for score in scores)
    return metrics


def sts_table(scores: Sequence[TaskScore]) -> pd.DataFrame:
    """One row a task: task, spearman, spearman_unseen, pairs, pairs_unseen."""
    return pd.DataFrame(
        {
            "task": [score.task for score in scores],
            "spearman": [round(score.spearman, _DIGITS) for score in scores],
            "spearman_unseen": [
                None if score.spearman_unseen is None else round(score.spearman_unseen, _DIGITS)
                for score in scores
            ],
            "pairs": [score.pairs for score in scores],
            "pairs_unseen": [score.pairs_unseen for score in scores],
        }
    )
