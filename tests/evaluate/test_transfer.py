"""Transfer scores against the plain evaluator, in all three protocols."""

import functools

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import plain_evaluation
from benchmarks.plain_evaluation import PENALTIES, PlainTransfer
from pipeline.core.errors import InputError
from pipeline.evaluate import classifier, transfer
from pipeline.evaluate.classifier import Fitted
from pipeline.evaluate.embeddings import Embeddings
from pipeline.evaluate.transfer import score_transfer

SEED = 1111


def sentences(count, prefix, rng):
    """Distinct ones of 1 to 4 tokens."""
    return [f"{prefix}{number}" + " on" * rng.integers(4) for number in range(count)]


def make_task(name, sizes, *, classes=2, paired=False, seed=0):
    """Rows of one task: `sizes` samples a split, in random order."""
    rng = np.random.default_rng(seed)
    count = sum(sizes.values())
    table = pd.DataFrame(
        {
            "task": name,
            "split": np.repeat(list(sizes), list(sizes.values())),
            "sentence1": sentences(count, f"{name}a", rng),
            "sentence2": sentences(count, f"{name}b", rng) if paired else None,
            "label": rng.permutation(np.arange(count) % classes),
        }
    )
    return table.sample(frac=1, random_state=seed)


def make_embeddings(*tables, dim=64, seed=0):
    """Random vectors with some signal; a sentence pair's class shows in its distance."""
    rng = np.random.default_rng(seed)
    vectors = {}
    for row in pd.concat(tables).itertuples():
        centre = np.random.default_rng(row.label).standard_normal(dim)
        vectors[row.sentence1] = 0.2 * centre + rng.standard_normal(dim)
        if isinstance(row.sentence2, str):
            noise = (1 + 0.3 * row.label) * rng.standard_normal(dim)
            vectors[row.sentence2] = vectors[row.sentence1] + noise
    return Embeddings(list(vectors), np.array(list(vectors.values()), dtype=np.float32))


def measures(embeddings, table, *, seed=SEED):
    scores = score_transfer(embeddings, table, seed=seed)
    return {(score.task, score.measure): score.value for score in scores}


def assert_equals_plain(table, embeddings, *, seed=SEED):
    name = table["task"].iloc[0]
    found = measures(embeddings, table, seed=seed)
    dev_accuracy, accuracy = PlainTransfer(embeddings.of, table, seed).run()
    assert found[name, "accuracy"] == pytest.approx(accuracy, abs=0.005)
    assert found[name, "dev_accuracy"] == pytest.approx(dev_accuracy, abs=0.005)
    chance = 100 / table["label"].nunique()
    assert chance < accuracy < 100


@pytest.mark.parametrize("seed", [SEED, 7])
def test_a_task_with_a_dev_split_equals_the_plain_evaluator(seed):
    table = make_task("SST2", {"train": 100, "dev": 60, "test": 70}, seed=seed)
    assert_equals_plain(table, make_embeddings(table), seed=seed)


@pytest.fixture
def few_rounds(monkeypatch):
    """Three rounds of larger steps, over two penalties: what takes 51 takes a moment."""
    for module in (transfer, plain_evaluation):
        monkeypatch.setattr(module, "PENALTIES", (1.0, 1e-3))
    for module in (classifier, plain_evaluation):
        monkeypatch.setattr(module, "MOST_ROUNDS", 3)
    monkeypatch.setattr(classifier, "_LEARNING_RATE", 0.02)
    monkeypatch.setattr(torch.optim, "Adam", functools.partial(torch.optim.Adam, lr=0.02))


@pytest.mark.parametrize(
    ("sizes", "classes"),
    [
        ({"train": 100, "dev": 61, "test": 70}, 2),
        ({"train": 90, "test": 71}, 3),
        ({"train": 20, "test": 40}, 2),  # as few of a class as there are folds
        ({"all": 59}, 2),  # both means have a third decimal
    ],
)
def test_few_rounds_of_every_protocol_equal_the_plain_evaluator(few_rounds, sizes, classes):
    table = make_task("X", sizes, classes=classes)
    table["label"] = (table.groupby("split").cumcount() % classes).astype(np.int32)
    embeddings = make_embeddings(table, dim=16)
    accuracy, dev_accuracy, average = score_transfer(embeddings, table, seed=3)
    expected = PlainTransfer(embeddings.of, table, 3).run()
    assert (dev_accuracy.value, accuracy.value) == expected
    assert accuracy.value == average.value
    split = "all" if "all" in sizes else "test"
    assert [one.split for one in (accuracy, dev_accuracy, average)] == [split, split, "test"]
    assert {one.count for one in (accuracy, dev_accuracy, average)} == {sizes[split]}
    named = [one.measure for one in (accuracy, dev_accuracy, average)]
    assert named == ["accuracy", "dev_accuracy", "accuracy"]


def test_a_class_of_the_test_split_alone_is_always_missed(few_rounds):
    table = make_task("X", {"train": 60, "dev": 40, "test": 50})
    rare = table.index[table["split"] == "test"][:20]
    table.loc[rare, "label"] = 3
    embeddings = make_embeddings(table, dim=16)
    (accuracy, *_) = score_transfer(embeddings, table, seed=3)
    assert accuracy.value == PlainTransfer(embeddings.of, table, 3).run()[1] <= 60


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "classes", "seed"), [({"train": 150, "test": 60}, 3, 7), ({"all": 50}, 2, 3)]
)
def test_the_other_protocols_equal_the_plain_evaluator_in_full(sizes, classes, seed):
    table = make_task("X", sizes, classes=classes)
    assert_equals_plain(table, make_embeddings(table), seed=seed)


def run_pairs_plainly(plain):
    """Dev accuracy, and the classes and predictions of the test pairs."""
    penalty, dev_accuracy = plain.grid(*plain.data["train"], SEED)
    classifier = plain.classifier(penalty)
    classifier.fit(*plain.data["train"], None)
    features, labels = plain.data["test"]
    weight, bias = (one.detach().numpy() for one in classifier.model.parameters())
    return dev_accuracy, labels, (features @ weight.T + bias).argmax(axis=1)


def test_a_pair_task_equals_the_plain_evaluator_and_has_the_f1_of_class_1():
    table = make_task("MRPC", {"train": 60, "test": 80}, paired=True)
    embeddings = make_embeddings(table)
    dev_accuracy, labels, predicted = run_pairs_plainly(PlainTransfer(embeddings.of, table, SEED))
    hits, wrong = sum((labels == 1) & (predicted == 1)), sum(labels != predicted)
    expected = {
        ("MRPC", "accuracy"): 100 - 100 * wrong / 80,
        ("MRPC", "dev_accuracy"): dev_accuracy,
        ("MRPC", "f1"): 100 * 2 * hits / (2 * hits + wrong),
    }
    found = measures(embeddings, table)
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=0.0051)
    assert 0 < hits < hits + wrong < 80


def two_tasks():
    """A pair task and a task of sentences, with unequal numbers of test samples."""
    first = make_task("B", {"train": 60, "dev": 30, "test": 40})
    second = make_task("A", {"train": 60, "dev": 30, "test": 90}, seed=1)
    return pd.concat([first, second], ignore_index=True)


def test_the_average_is_over_the_tasks_which_do_not_depend_on_each_other():
    table = two_tasks()
    embeddings = make_embeddings(table)
    *scores, average = score_transfer(embeddings, table, seed=SEED)
    assert score_transfer(embeddings, table[table["task"] == "A"], seed=SEED)[:2] == scores[2:]
    accuracies = [score.value for score in scores if score.measure == "accuracy"]
    assert [score.task for score in scores] == ["B", "B", "A", "A"]
    assert [score.count for score in scores] == [40, 40, 90, 90]
    assert (average.task, average.measure, average.count) == ("avg", "accuracy", 130)
    assert average.value == pytest.approx(sum(accuracies) / 2)
    others = (score_transfer(embeddings, table, seed=seed) for seed in (1, 2, 3))
    assert any(other[:4] != scores for other in others)


@pytest.mark.parametrize(
    ("folds", "best", "dev_accuracy"),
    [([(0.9, 0.5, 0.7, 0.0), (0.1, 0.6, 0.7, 1.0)] * 5, 2, 70.0),
     ([(0.2, 0.90001, 0.90004, 0.1)] * 10, 1, 90.0)],
)  # fmt: skip
def test_the_smallest_penalty_of_the_best_rounded_mean_is_chosen(
    monkeypatch, folds, best, dev_accuracy
):
    """The fits of the folds are made up; their mean accuracies choose the penalty of the last."""
    asked = []

    def fit_all(samples, fits, seed):
        asked.append([fit.penalties for fit in fits])
        shape = (len(fits[0].penalties), 2, samples.width)
        accuracies = folds if len(fits) == 10 else [(0.5,)]
        return [Fitted(np.array(one), np.zeros(shape, dtype=np.float32)) for one in accuracies]

    monkeypatch.setattr(transfer, "fit_all", fit_all)
    table = make_task("TREC", {"train": 60, "test": 20})
    found = measures(make_embeddings(table), table)
    assert found["TREC", "dev_accuracy"] == dev_accuracy
    assert asked[1] == [(PENALTIES[best],)]


@pytest.mark.parametrize(
    ("sizes", "classes", "words"),
    [
        ({"train": 40}, 2, "CR has the splits train"),
        ({"train": 40, "dev": 40}, 2, "CR has the splits dev, train"),
        ({"all": 40, "test": 9}, 2, "CR has the splits all, test"),
        ({"all": 60}, 1, "CR has the labels 0 to train on"),
        ({"all": 18}, 2, "CR: .* smallest class has 9"),
        ({"train": 18, "test": 20}, 2, "CR: .* smallest class has 9"),
    ],
)
def test_what_fits_no_protocol_is_refused_by_name(sizes, classes, words):
    table = make_task("CR", sizes, classes=classes)
    table["label"] = table.groupby("split").cumcount() % classes
    with pytest.raises(InputError, match=words):
        score_transfer(make_embeddings(table), table, seed=SEED)
