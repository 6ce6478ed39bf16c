"""Alignment and uniformity as MCSE reports them: means over encoding batches of 128 pairs.

Wang and Isola (2020) define both over a whole set; MCSE's evaluation code takes them batch by
batch, and its numbers depend on that: uniformity over a whole set is clearly lower.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int

MCSE_BATCH = 128
_ALIKE = 4.0
"""Gold score from which on a pair counts as positive, also on SICK's scale of 1 to 5."""

Unit = Float64[np.ndarray, "pairs dim"]
Batches = Sequence[Int[np.ndarray, " _"]]
"""Rows of the pairs that were encoded together."""


def alignment(
    first: Unit, second: Unit, gold: Float64[np.ndarray, " pairs"], batches: Batches
) -> float:
    """Mean squared distance of the pairs of L2-normalised vectors with gold >= 4.

    The plain mean over batches; a batch without such a pair counts as 0.
    """
    squared = ((first - second) ** 2).sum(axis=1)
    positive = [squared[rows][gold[rows] >= _ALIKE] for rows in batches]
    return float(np.mean([values.mean() if len(values) else 0.0 for values in positive]))


def uniformity(first: Unit, second: Unit, batches: Batches) -> float:
    """Log of the mean of exp(-2 d^2) over all pairs of rows of a batch; mean over batches.

    A batch's rows are both sentences of its pairs, L2-normalised, duplicates kept.
    """
    logs = []
    for batch in batches:
        rows = np.concatenate([first[batch], second[batch]])
        squared = 2 - 2 * (rows @ rows.T)[np.triu_indices(len(rows), k=1)]
        logs.append(np.log(np.exp(-2 * squared).mean()))
    return float(np.mean(logs))


def mcse_batches(sets: Sequence[Int[np.ndarray, " _"]]) -> Batches:
    """Cut every set into batches of 128 pairs; the last of a set may be shorter."""
    return [rows[start:][:MCSE_BATCH] for rows in sets for start in range(0, len(rows), MCSE_BATCH)]
