"""Spearman and Pearson x100, and the bootstrap of Spearman."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64
from scipy.stats import pearsonr, spearmanr

from pipeline.core.errors import InputError, ModelError

Values = Float64[np.ndarray, " pairs"]
Samples = Float64[np.ndarray, " resamples"]
"""Spearman x100 of bootstrap samples."""
Counts = Float32[np.ndarray, "some pairs"]
"""How often each sample holds each pair."""
Ranks = Float32[np.ndarray, "some pairs"]

_CHUNK = 200_000
"""Elements of one (samples, pairs) block, so that its arrays stay in the cache."""


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are drawn: pairs with replacement (Efron and Tibshirani 1993)."""

    resamples: int
    seed: int


@dataclass(frozen=True)
class Correlation:
    """Both correlations x100 over `count` pairs; None where they do not exist."""

    spearman: float | None
    pearson: float | None
    samples: Samples | None
    count: int


def correlate(
    cosines: Values, gold: Values, bootstrap: Bootstrap, *, fewest: int = 2
) -> Correlation:
    """Correlate, where there are at least `fewest` pairs and neither side is constant."""
    count = len(gold)
    if count < fewest or np.ptp(gold) == 0 or np.ptp(cosines) == 0:
        return Correlation(None, None, None, count)
    return Correlation(
        spearman=spearman(cosines, gold),
        pearson=100 * float(pearsonr(cosines, gold).statistic),
        samples=bootstrap_spearman(cosines, gold, bootstrap),
        count=count,
    )


def require_correlation(cosines: Values, gold: Values, task: str) -> None:
    """Refuse what has no correlation, so that no number is invented for it.

    Raises:
        InputError: there are no pairs, or all gold scores are equal.
        ModelError: all cosines are equal, as those of a collapsed encoder.
    """
    if len(gold) == 0 or np.ptp(gold) == 0:
        raise InputError(
            f"{task}: {len(gold)} pairs, all gold scores are equal: there is no correlation.",
            "check the task's file.",
        )
    if np.ptp(cosines) == 0:
        raise ModelError(
            f"{task}: all pairs have the same cosine, so there is no correlation.",
            "the encoder has collapsed; check its weights and pooling, or train again.",
        )


def spearman(cosines: Values, gold: Values) -> float:
    """Spearman x100 with average ranks."""
    return 100 * float(spearmanr(cosines, gold).statistic)


def bootstrap_spearman(cosines: Values, gold: Values, bootstrap: Bootstrap) -> Samples:
    """Spearman x100 of bootstrap samples, to about 1e-4.

    A sample is a count for each pair. The pairs are sorted once; the ranks within any sample are
    then sums of counts, so that no sample is sorted again. A sample whose pairs are all alike has
    no correlation and gives NaN.
    """
    first, second = _Ranker(cosines), _Ranker(gold)
    parts = [
        _weighted_correlation(first.ranks(counts), second.ranks(counts), counts)
        for counts in _draw(len(gold), bootstrap)
    ]
    return 100 * np.concatenate(parts).astype(np.float64)


def interval(samples: Samples | None) -> tuple[float, float] | tuple[None, None]:
    """The 2.5 % and 97.5 % points of bootstrap samples; None where there are none."""
    if samples is None or np.isnan(samples).all():
        return None, None
    low, high = np.nanpercentile(samples, [2.5, 97.5])
    return float(low), float(high)


def _draw(pairs: int, bootstrap: Bootstrap) -> Iterator[Counts]:
    rng = np.random.default_rng([bootstrap.seed, pairs])
    step = max(1, _CHUNK // pairs)
    for start in range(0, bootstrap.resamples, step):
        rows = min(step, bootstrap.resamples - start)
        drawn = rng.integers(pairs, size=(rows, pairs))
        drawn += np.arange(0, rows * pairs, pairs)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * pairs)
        yield counts.reshape(rows, pairs).astype(np.float32)


class _Ranker:
    """Average ranks of one side of the pairs within any sample, centred on zero, times two."""

    def __init__(self, values: Values) -> None:
        self._order = np.argsort(values, kind="stable")
        _, self._tie, sizes = np.unique(values, return_inverse=True, return_counts=True)
        self._ends = np.cumsum(sizes) - 1

    def ranks(self, counts: Counts) -> Ranks:
        """Ranks of all pairs in each sample; those of pairs that it lacks are meaningless."""
        last = counts.take(self._order, axis=1).cumsum(axis=1).take(self._ends, axis=1)
        ranks: Ranks = last - np.float32(counts.shape[1])
        ranks[:, 1:] += last[:, :-1]
        by_pair: Ranks = ranks.take(self._tie, axis=1)
        return by_pair


def _weighted_correlation(
    first: Ranks, second: Ranks, counts: Counts
) -> Float32[np.ndarray, " some"]:
    """Pearson of centred values, each counted as often as its sample holds it."""
    weighted = first * counts
    products = np.einsum("ij,ij->i", weighted, second)
    first_norms = np.einsum("ij,ij->i", weighted, first)
    second_norms = np.einsum("ij,ij->i", second * counts, second)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlations: Float32[np.ndarray, " some"] = products / np.sqrt(first_norms * second_norms)
    return correlations
