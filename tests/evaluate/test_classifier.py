"""The batched classifier against the plain one, fit by fit."""

import numpy as np
import pytest
import torch

from benchmarks.plain_evaluation import EPOCHS, MOST_ROUNDS, PATIENCE, PlainClassifier
from pipeline.evaluate import classifier
from pipeline.evaluate.classifier import Fit, Samples, fit_all

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2)
SEED = 1111
TOLERANCE = 1e-5
"""Rounding moves the weights by about 1e-7."""


def problem(count, classes, *, seed=0, dim=6, signal=0.4):
    """Features with some signal, and their classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    centres = signal * rng.standard_normal((classes, dim))
    features = centres[labels] + rng.standard_normal((count, dim))
    return features.astype(np.float32), labels


def split(count, train, *, seed):
    """Training and held-out rows, in random order."""
    order = np.random.default_rng(seed).permutation(count)
    return order[:train], order[train:]


def fit(features, labels, sets, *, penalties=PENALTIES, seed=SEED):
    samples = Samples(features, labels, int(labels.max()) + 1)
    fits = [Fit(*rows, penalties, np.random.RandomState(seed)) for rows in sets]
    return fit_all(samples, fits, seed)


def fit_plainly(features, labels, rows, penalty, *, seed=SEED):
    """Accuracy and weights, the bias last."""
    train, held_out = rows
    plain = PlainClassifier(features.shape[1], int(labels.max()) + 1, penalty, seed)
    accuracy = plain.fit(features[train], labels[train], (features[held_out], labels[held_out]))
    weight, bias = (one.detach().numpy() for one in plain.model.parameters())
    return accuracy, np.hstack([weight, bias[:, None]])


@pytest.mark.parametrize(("classes", "seed"), [(2, 1111), (3, 5)])
def test_fits_of_unequal_sizes_equal_the_plain_classifier(classes, seed):
    features, labels = problem(150, classes, seed=classes)
    sets = [split(150, train, seed=train) for train in (120, 64, 65)]
    fitted = fit(features, labels, sets, seed=seed)
    for rows, found in zip(sets, fitted, strict=True):
        for place, penalty in enumerate(PENALTIES):
            accuracy, weights = fit_plainly(features, labels, rows, penalty, seed=seed)
            assert found.accuracy[place] == accuracy
            np.testing.assert_allclose(found.weights[place], weights, rtol=0, atol=TOLERANCE)


def test_many_cohorts_equal_one(monkeypatch):
    features, labels = problem(150, 3)
    sets = [split(150, train, seed=train) for train in (120, 60, 119, 61)]
    together = fit(features, labels, sets)
    monkeypatch.setattr(classifier, "_COHORT_BYTES", 1)
    apart = fit(features, labels, sets)
    for one, other in zip(together, apart, strict=True):
        np.testing.assert_array_equal(one.accuracy, other.accuracy)
        np.testing.assert_allclose(one.weights, other.weights, rtol=0, atol=TOLERANCE)


def global_states():
    """Of torch and of numpy, where in it the next number lies included."""
    name, keys, *place = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), name, keys.tolist(), place


def test_the_global_random_states_stay_untouched():
    features, labels = problem(90, 2)
    before = global_states()
    fit(features, labels, [split(90, 70, seed=0)], seed=12345)  # a seed of no other test
    assert global_states() == before


class CountingState(np.random.RandomState):
    """Counts the epochs: one permutation each."""

    epochs = 0

    def permutation(self, count):
        self.epochs += 1
        return super().permutation(count)


def epochs_of(features, labels, rows, penalty):
    rng = CountingState(SEED)
    fit_all(Samples(features, labels, 2), [Fit(*rows, (penalty,), rng)], SEED)
    return rng.epochs


def plain_epochs_of(features, labels, rows, penalty, monkeypatch):
    """The same stream and weights, drawn through a counter."""
    rng = CountingState(SEED)
    with monkeypatch.context() as patch:
        patch.setattr(np.random, "permutation", rng.permutation)
        fit_plainly(features, labels, rows, penalty)
    return rng.epochs


@pytest.mark.parametrize("signal", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("penalty", [1e-5, 1e-2])
def test_training_stops_in_the_same_round_as_the_plain_classifier(signal, penalty, monkeypatch):
    features, labels = problem(150, 2, signal=signal)
    rows = split(150, 100, seed=3)
    epochs = epochs_of(features, labels, rows, penalty)
    assert epochs == plain_epochs_of(features, labels, rows, penalty, monkeypatch)
    assert EPOCHS * (PATIENCE + 2) <= epochs <= EPOCHS * MOST_ROUNDS


def test_training_stops_at_the_sixth_miss():
    """Two held-out samples with one vector and two classes: one is right in every round."""
    features, labels = problem(80, 2)
    features[79], labels[78:] = features[78], (0, 1)
    first_and_six_misses = 1 + 6
    assert epochs_of(features, labels, (np.arange(78), np.array([78, 79])), 1e-5) == (
        4 * first_and_six_misses
    )


def test_training_ends_after_51_rounds_though_it_still_improves(monkeypatch):
    features, labels = problem(150, 2)
    monkeypatch.setattr(classifier, "PATIENCE", 10**6)
    assert epochs_of(features, labels, split(150, 100, seed=3), 1e-5) == 4 * 51
