"""Alignment and uniformity, recomputed pair by pair."""

import math

import numpy as np
import pytest

from pipeline.evaluate.embeddings import unit_rows
from pipeline.evaluate.geometry import alignment, mcse_batches, uniformity


def random_pairs(count, *, seed=0):
    """Unit vectors of both sides, and gold scores from 0 to 5, some of them exactly 4."""
    rng = np.random.default_rng(seed)
    first, second = rng.standard_normal((2, count, 5)).astype(np.float32)
    return unit_rows(first), unit_rows(second), rng.integers(11, size=count) / 2


def squared_distance(first, second):
    return math.fsum((a - b) ** 2 for a, b in zip(first.tolist(), second.tolist(), strict=True))


def slow_alignment(first, second, gold, batches):
    means = []
    for rows in batches:
        positive = [squared_distance(first[row], second[row]) for row in rows if gold[row] >= 4]
        means.append(math.fsum(positive) / len(positive) if positive else 0.0)
    return math.fsum(means) / len(means)


def slow_uniformity(first, second, batches):
    logs = []
    for rows in batches:
        vectors = [side[row] for row in rows for side in (first, second)]
        potentials = [
            math.exp(-2 * squared_distance(one, other))
            for place, one in enumerate(vectors)
            for other in vectors[place + 1 :]
        ]
        logs.append(math.log(math.fsum(potentials) / len(potentials)))
    return math.fsum(logs) / len(logs)


@pytest.mark.parametrize("sizes", [[30], [128], [150], [20, 140, 1]])
def test_both_are_means_over_batches_of_pair_by_pair_sums(sizes):
    first, second, gold = random_pairs(sum(sizes), seed=len(sizes))
    shuffled = np.random.default_rng(1).permutation(sum(sizes))
    batches = mcse_batches(np.split(shuffled, np.cumsum(sizes)[:-1]))
    assert alignment(first, second, gold, batches) == pytest.approx(
        slow_alignment(first, second, gold, batches), abs=1e-12
    )
    assert uniformity(first, second, batches) == pytest.approx(
        slow_uniformity(first, second, batches), abs=1e-10
    )


@pytest.mark.parametrize(
    ("sizes", "lengths"),
    [
        ([128], [128]),
        ([129], [128, 1]),
        ([100, 100], [100, 100]),
        ([300, 5, 128], [128, 128, 44, 5, 128]),
    ],
)
def test_no_batch_holds_more_than_128_pairs_or_pairs_of_two_sets(sizes, lengths):
    sets = np.split(np.random.default_rng(0).permutation(sum(sizes)), np.cumsum(sizes)[:-1])
    batches = mcse_batches(sets)
    assert [len(rows) for rows in batches] == lengths
    np.testing.assert_array_equal(np.concatenate(batches), np.concatenate(sets))
    for rows in batches:
        assert sum(bool(set(rows) & set(one)) for one in sets) == 1


def test_a_batch_without_positives_counts_as_zero():
    first, second, gold = random_pairs(128 + 10)
    gold[:128], gold[128:] = 4.0, 3.9
    positives = [squared_distance(first[row], second[row]) for row in range(128)]
    found = alignment(first, second, gold, mcse_batches([np.arange(138)]))
    assert found == pytest.approx(math.fsum(positives) / 128 / 2, abs=1e-12)
    assert alignment(first, second, np.full(138, 3.99), [np.arange(138)]) == 0


def test_duplicates_stay_in_the_uniformity():
    corners = np.eye(2)[[0, 1, 0]]  # three times the first corner, three times the second
    others = np.eye(2)[[0, 1, 1]]
    alike, apart = 6, 9  # of 15 pairs; squared distances 0 and 2
    expected = math.log((alike + apart * math.exp(-4)) / 15)
    assert uniformity(corners, others, [np.arange(3)]) == pytest.approx(expected, abs=1e-12)


def test_identical_sentences_align_perfectly_and_a_collapsed_space_is_not_uniform():
    same = np.tile([0.6, 0.8], (5, 1))
    assert alignment(same, same, np.full(5, 5.0), [np.arange(5)]) == 0
    assert uniformity(same, same, [np.arange(5)]) == pytest.approx(0, abs=1e-12)
