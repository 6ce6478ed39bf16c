"""Correlations and their bootstrap against scipy, resample by resample."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from pipeline.core.errors import InputError, ModelError
from pipeline.evaluate import correlation
from pipeline.evaluate.correlation import (
    Bootstrap,
    bootstrap_spearman,
    correlate,
    interval,
    require_correlation,
)


def draw(pairs, bootstrap):
    """The rows of every resample, one resample after another."""
    rng = np.random.default_rng([bootstrap.seed, pairs])
    step = max(1, correlation._CHUNK // pairs)
    for start in range(0, bootstrap.resamples, step):
        yield from rng.integers(pairs, size=(min(step, bootstrap.resamples - start), pairs))


def spearman_of(cosines, gold):
    """Scipy's Spearman x100; NaN where a side is constant."""
    if np.ptp(cosines) == 0 or np.ptp(gold) == 0:
        return np.nan
    return 100 * spearmanr(cosines, gold).statistic


def resampled(cosines, gold, bootstrap):
    return [spearman_of(cosines[rows], gold[rows]) for rows in draw(len(gold), bootstrap)]


def tied_pairs(count, *, seed=0):
    """Correlated values, with ties in both sides."""
    rng = np.random.default_rng(seed)
    gold = rng.integers(11, size=count) / 2
    return (gold / 5 + rng.normal(size=count)).round(1), gold


@pytest.mark.parametrize(
    ("count", "chunk"),
    [(2, 200_000), (3, 200_000), (17, 200_000), (250, 200_000), (1500, 200_000), (40, 1)],
)
def test_the_bootstrap_equals_scipy_on_the_drawn_resamples(count, chunk, monkeypatch):
    """Also where one resample fills a chunk."""
    monkeypatch.setattr(correlation, "_CHUNK", chunk)
    cosines, gold = tied_pairs(count, seed=count)
    bootstrap = Bootstrap(resamples=60, seed=7)
    np.testing.assert_allclose(
        bootstrap_spearman(cosines, gold, bootstrap),
        resampled(cosines, gold, bootstrap),
        rtol=0,
        atol=1e-3,
    )


pairs_with_ties = st.lists(
    st.tuples(st.integers(-2, 2), st.integers(0, 3)), min_size=2, max_size=30
).filter(lambda pairs: all(len(set(side)) > 1 for side in zip(*pairs, strict=True)))


@given(pairs=pairs_with_ties, seed=st.integers(0, 1000))
def test_the_bootstrap_equals_scipy_whatever_the_ties(pairs, seed):
    cosines, gold = np.array(pairs, dtype=np.float64).T.copy()
    bootstrap = Bootstrap(resamples=15, seed=seed)
    np.testing.assert_allclose(
        bootstrap_spearman(cosines, gold, bootstrap),
        resampled(cosines, gold, bootstrap),
        rtol=0,
        atol=1e-3,
    )


def test_correlate_gives_both_correlations_and_the_samples():
    cosines, gold = tied_pairs(60)
    bootstrap = Bootstrap(resamples=20, seed=3)
    found = correlate(cosines, gold, bootstrap)
    ranks = np.corrcoef(rankdata(cosines), rankdata(gold))[0, 1]
    assert found.spearman == pytest.approx(100 * ranks, abs=1e-9)
    assert found.pearson == pytest.approx(100 * np.corrcoef(cosines, gold)[0, 1], abs=1e-9)
    assert found.samples == pytest.approx(resampled(cosines, gold, bootstrap), abs=1e-3)
    assert found.count == 60


@pytest.mark.parametrize(
    ("cosines", "gold", "fewest"),
    [
        ([0.5, 0.5, 0.5], [1.0, 2.0, 3.0], 2),
        ([0.1, 0.2, 0.3], [4.0, 4.0, 4.0], 2),
        ([0.1, 0.2, 0.3], [1.0, 2.0, 3.0], 4),
        ([0.1], [1.0], 2),
        ([], [], 2),
    ],
)
def test_correlate_gives_none_where_there_is_no_correlation(cosines, gold, fewest):
    bootstrap = Bootstrap(resamples=5, seed=0)
    found = correlate(np.array(cosines, float), np.array(gold, float), bootstrap, fewest=fewest)
    assert (found.spearman, found.pearson, found.samples) == (None, None, None)
    assert found.count == len(gold)


def test_as_many_pairs_as_the_fewest_are_enough_and_two_where_nothing_is_said():
    values, bootstrap = np.array([0.1, 0.2, 0.4]), Bootstrap(resamples=5, seed=0)
    assert correlate(values, values, bootstrap, fewest=3).spearman == pytest.approx(100)
    found = correlate(values[:2], -values[:2], bootstrap)
    assert (found.spearman, found.pearson) == pytest.approx((-100, -100))


def test_the_interval_is_the_middle_95_percent_of_what_is_defined():
    samples = np.random.default_rng(0).permutation(np.arange(201.0))
    assert interval(samples) == pytest.approx((5.0, 195.0))
    assert interval(np.array([np.nan, *np.arange(41.0), np.nan])) == pytest.approx((1.0, 39.0))
    for nothing in (None, np.full(4, np.nan)):
        assert interval(nothing) == (None, None)


@pytest.mark.parametrize(
    ("cosines", "gold", "error"),
    [
        ([], [], InputError),
        ([0.1, 0.2], [3.0, 3.0], InputError),
        ([0.5, 0.5], [1.0, 2.0], ModelError),
    ],
)
def test_what_has_no_correlation_is_refused_by_name(cosines, gold, error):
    with pytest.raises(error, match=r"^sickr: "):
        require_correlation(np.array(cosines, float), np.array(gold, float), "sickr")
    require_correlation(np.array([0.1, 0.2]), np.array([2.0, 1.0]), "sickr")


def test_the_seed_alone_decides_the_samples():
    cosines, gold = tied_pairs(50)
    first, again, other = (
        bootstrap_spearman(cosines, gold, Bootstrap(resamples=10, seed=seed)) for seed in (4, 4, 5)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def normal_pairs(rho, count, seed):
    rng = np.random.default_rng(seed)
    first, noise = rng.normal(size=(2, count))
    return first, rho * first + np.sqrt(1 - rho**2) * noise


def test_intervals_cover_the_true_correlation():
    rho, covered = 0.6, 0
    truth = 100 * 6 / np.pi * np.arcsin(rho / 2)  # Spearman of a bivariate normal
    for seed in range(60):
        samples = bootstrap_spearman(*normal_pairs(rho, 200, seed), Bootstrap(300, seed))
        low, high = interval(samples)
        covered += low <= truth <= high
        assert high - low < 40
    assert covered >= 0.8 * 60
