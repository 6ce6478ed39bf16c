"""The transfer tasks of the embedded world: every label is read back from the sentences."""

import functools
import re

import pandas as pd
import pytest

from pipeline.download.scenes.transfer_tasks import make_transfer
from pipeline.download.scenes.world import SHAPES, split_of
from pipeline.params.download import ScenesParams
from tests.download.test_scenes import DEFAULT, SMALL, hear

COLOUR, SHAPE, PARAPHRASE = "SCENES-ONE-COLOUR", "SCENES-FIRST-SHAPE", "SCENES-PARAPHRASE"


MEDIUM = DEFAULT.model_copy(update={"sts_pairs": 400})


@functools.cache
def drawn(params: ScenesParams) -> pd.DataFrame:
    return make_transfer(params)


def rows_of(task: str) -> pd.DataFrame:
    return drawn(MEDIUM)[drawn(MEDIUM)["task"] == task]


@pytest.mark.parametrize(
    ("params", "sizes"),
    [
        pytest.param(DEFAULT, {COLOUR: {"all": 600}, SHAPE: {"train": 800, "test": 400},
                               PARAPHRASE: {"train": 600, "test": 300}},
                     marks=pytest.mark.slow),
        (SMALL, {COLOUR: {"all": 60}, SHAPE: {"train": 80, "test": 40},
                 PARAPHRASE: {"train": 60, "test": 30}}),
    ],
)  # fmt: skip
def test_sizes_and_classes_suit_ten_stratified_folds(params, sizes):
    """SMALL has the fewest `sts_pairs` that are allowed."""
    rows = drawn(params)
    found = {task: dict(of["split"].value_counts()) for task, of in rows.groupby("task")}
    assert found == sizes
    for (task, split), labels in rows.groupby(["task", "split"])["label"]:
        counts = labels.value_counts()
        assert sorted(counts.index) == list(range(8 if task == SHAPE else 2))
        assert counts.max() < 0.6 * counts.sum()
        assert split == "test" or counts.min() >= 10  # test is never cut into folds


def test_labels_are_what_the_sentences_tell():
    alone = 0
    for row in drawn(MEDIUM).itertuples():
        heard = hear(row.sentence1)
        match row.task:
            case "SCENES-ONE-COLOUR":
                first, second = heard.things
                assert row.label == (first.colour == second.colour), row
            case "SCENES-FIRST-SHAPE":  # of the only, upper or left thing
                assert SHAPES[row.label] == heard.things[0].shape, row
                alone += len(heard.things) == 1
            case _:
                assert row.sentence1 != row.sentence2
                assert row.label == (heard == hear(row.sentence2)), row
        assert pd.isna(row.sentence2) == (row.task != PARAPHRASE)
    assert 0 < alone < 80


def test_many_pairs_that_are_no_paraphrases_use_the_same_words():
    """Else counting shared words would do."""
    bags = rows_of(PARAPHRASE)[["sentence1", "sentence2"]].map(
        lambda text: frozenset(re.findall(r"\w+", text.lower()))
    )
    shared = [len(one & other) / len(one | other) for one, other in bags.to_numpy()]
    mean = pd.Series(shared).groupby(rows_of(PARAPHRASE)["label"].to_numpy()).mean()
    assert abs(mean[1] - mean[0]) < 0.15


def test_no_combination_is_in_two_splits_and_no_sample_comes_twice():
    """Those of the task without splits are of the test split, unseen in training like it."""
    for row in drawn(MEDIUM).itertuples():
        texts = [row.sentence1] if pd.isna(row.sentence2) else [row.sentence1, row.sentence2]
        for text in texts:
            kinds = frozenset(thing.kind for thing in hear(text).things)
            assert split_of(kinds) == {"all": "test"}.get(row.split, row.split)
    assert not drawn(MEDIUM).duplicated(["task", "sentence1", "sentence2"]).any()
