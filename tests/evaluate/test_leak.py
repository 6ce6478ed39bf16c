"""The leak counts, by hand, what of the tests the training text holds."""

from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluate.leak import find_leak
from pipeline.evaluate.sts import StsTask, normalise
from pipeline.evaluate.suite import HeldOutPairs, Suite

SEEN = frozenset(map(normalise, ["A dog runs.", "two cats", "good film"]))
STS = pd.DataFrame(
    [
        ("images", "a dog runs", "A cat sleeps"),
        ("images", "a dog runs", "Two cats!"),
        ("images", "a dog", "a dog"),
        ("news", "the dog runs", "no"),
    ],
    columns=["subset", "sentence1", "sentence2"],
)
TRANSFER = pd.DataFrame(
    [
        ("MR", "all", "Good film", None),
        ("MR", "all", "bad film", None),
        ("MRPC", "train", "two cats", "two cats"),
        ("MRPC", "test", "x", "two cats"),
    ],
    columns=["task", "split", "sentence1", "sentence2"],
)


@pytest.fixture
def suite(default_params) -> Suite:
    sts = [StsTask("STS15", "test", STS), StsTask("STS-B", "dev", STS)]
    rows = np.zeros((3, 2), np.float16)
    pairs = HeldOutPairs(["two cats", "two cats", "x"], rows, rows[:1], np.array([0, 0, 0]))
    return Suite(sts, TRANSFER, pairs, SEEN, {}, default_params.evaluate)


def test_samples_and_distinct_sentences_are_counted_by_task_and_sub_set(suite):
    found = [tuple(asdict(one).values()) for one in find_leak(suite)]
    assert found == [
        ("sts", "STS15", "images", 3, 2, 4, 2),
        ("sts", "STS15", "news", 1, 0, 2, 0),
        ("transfer", "MR", "", 2, 1, 2, 1),
        ("transfer", "MRPC", "", 1, 1, 2, 1),
        ("retrieval", "captions", "", 3, 2, 2, 1),
    ]


def test_an_unknown_training_text_is_not_an_empty_one(suite):
    assert find_leak(replace(suite, seen=None)) is None
    assert {one.seen for one in find_leak(replace(suite, seen=frozenset()))} == {0}
