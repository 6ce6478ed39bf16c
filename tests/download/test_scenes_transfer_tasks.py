"""The transfer tasks of the embedded world: every label is read back from the sentences."""

import functools
import re
from typing import NamedTuple

import pandas as pd
import pytest

from pipeline.download.scenes.transfer_tasks import make_transfer
from pipeline.download.scenes.world import COLOURS, SHAPES, split_of
from pipeline.params.download import ScenesParams
from tests.download.test_scenes import DEFAULT, NOUN, NUMBERS, SMALL, find, relation_told

COLOUR, SHAPE, PARAPHRASE = "SCENES-ONE-COLOUR", "SCENES-FIRST-SHAPE", "SCENES-PARAPHRASE"


MEDIUM = DEFAULT.model_copy(update={"sts_pairs": 1000})


class Thing(NamedTuple):
    colour: str
    shape: str
    size: str | None
    numbers: frozenset[int]


class Heard(NamedTuple):
    """What a sentence tells; of two things, the upper or left one comes first."""

    things: tuple[Thing, ...]
    direction: str | None
    background: str | None


def hear(text: str) -> Heard:
    things: list[Thing] = []

    def name(match: re.Match[str]) -> str:
        number, size, colour, shape = match.groups()
        size = size and find(size, ("small", "large"))
        numbers = frozenset(NUMBERS[number])
        things.append(Thing(find(colour, COLOURS), find(shape, SHAPES), size, numbers))
        return f"A{len(things) - 1}"

    marked = NOUN.sub(name, text.lower())
    ground = re.search("white|gr[ea]y|black", marked)
    background = ground and ground[0].replace("gray", "grey")
    if len(things) == 1:
        return Heard(tuple(things), None, background)
    who, step, whom = relation_told(marked)
    order = (who, whom) if sum(step) < 0 else (whom, who)
    direction = "left" if step[0] else "above"
    return Heard(tuple(things[int(mark[1])] for mark in order), direction, background)


@functools.cache
def drawn(params: ScenesParams) -> pd.DataFrame:
    return make_transfer(params)


def rows_of(task: str) -> pd.DataFrame:
    return drawn(MEDIUM)[drawn(MEDIUM)["task"] == task]


def test_hearing_a_sentence():
    first = Thing("red", "square", "small", frozenset({1}))
    second = Thing("cyan", "cross", None, frozenset({2}))
    heard = Heard((first, second), "left", None)
    assert hear("Two turquoise plus signs to the right of a tiny scarlet box.") == heard
    assert hear("there is a small red square with two cyan crosses right of it") == heard
    assert hear("one little red block, all on gray") == Heard((first,), None, "grey")


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


def test_only_the_paraphrases_are_pairs():
    paired = drawn(MEDIUM).groupby("task")["sentence2"].agg(lambda column: column.notna().mean())
    assert dict(paired) == {COLOUR: 0, SHAPE: 0, PARAPHRASE: 1}


def test_one_colour_is_told_of_two_things():
    for row in rows_of(COLOUR).itertuples():
        first, second = hear(row.sentence1).things
        assert row.label == (first.colour == second.colour), row


def test_the_first_shape_is_that_of_the_only_upper_or_left_thing():
    alone = 0
    for row in rows_of(SHAPE).itertuples():
        things = hear(row.sentence1).things
        assert SHAPES[row.label] == things[0].shape, row
        alone += len(things) == 1
    assert 0 < alone < 200


def test_paraphrases_tell_the_same_in_other_words():
    for row in rows_of(PARAPHRASE).itertuples():
        assert row.sentence1 != row.sentence2
        assert row.label == (hear(row.sentence1) == hear(row.sentence2)), row


def test_many_pairs_that_are_no_paraphrases_use_the_same_words():
    """Else counting shared words would do."""
    bags = rows_of(PARAPHRASE)[["sentence1", "sentence2"]].map(
        lambda text: frozenset(re.findall(r"\w+", text.lower()))
    )
    shared = [len(one & other) / len(one | other) for one, other in bags.to_numpy()]
    mean = pd.Series(shared).groupby(rows_of(PARAPHRASE)["label"].to_numpy()).mean()
    assert abs(mean[1] - mean[0]) < 0.15


def test_no_combination_is_in_two_splits():
    """Those of the task without splits are of the test split, unseen in training like it."""
    for row in drawn(MEDIUM).itertuples():
        texts = [row.sentence1] if pd.isna(row.sentence2) else [row.sentence1, row.sentence2]
        for text in texts:
            kinds = frozenset((thing.colour, thing.shape) for thing in hear(text).things)
            assert split_of(kinds) == {"all": "test"}.get(row.split, row.split)


def test_no_sample_comes_twice():
    assert not drawn(MEDIUM).duplicated(["task", "sentence1", "sentence2"]).any()
