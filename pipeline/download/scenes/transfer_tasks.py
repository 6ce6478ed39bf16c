"""The transfer tasks of the embedded world, in the three forms that SentEval's have.

SCENES-ONE-COLOUR   all          1 where the two things of the scene have the same colour, else 0
SCENES-FIRST-SHAPE  train, test  the shape of the only, upper or left thing, its place in SHAPES
SCENES-PARAPHRASE   train, test  1 where both sentences tell the same, else 0; a pair of sentences

As every colour and shape has several names and a sentence names two things, none is solved by which
words occur. All classes of a task are equally frequent. Train samples tell of train scenes; test
samples, and those of the task without splits, of test scenes: no combination is in two splits.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline.download import records
from pipeline.download.scenes.graded_pairs import SUBSETS, draw_pair
from pipeline.download.scenes.similarity import HIGHEST
from pipeline.download.scenes.wording import describe
from pipeline.download.scenes.words import Told
from pipeline.download.scenes.world import SHAPES, Scene, Stream, draw_scene, generator, pick
from pipeline.params.download import ScenesParams

_Texts = tuple[str, str | None]
"""The sentence, or the two sentences, of a sample."""

_Draw = Callable[[str, int, Told, np.random.Generator], _Texts]
"""Draws a sample of a class about scenes of a split; `Told` is how much its sentences tell."""


@dataclass(frozen=True)
class _Task:
    name: str
    stream: Stream
    splits: tuple[str, ...]
    """The split of each of a few samples in a row."""
    classes: int
    tenths: int
    """Samples for every ten STS pairs."""
    draw: _Draw


def make_transfer(params: ScenesParams) -> pd.DataFrame:
    """The samples of the transfer tasks; their number follows `sts_pairs`.

    Returns:
        Rows with the columns of `records.TRANSFER`.
    """
    rows = [
        _draw_row(task, index, params)
        for task in _TASKS
        for index in range(params.sts_pairs * task.tenths // 10)
    ]
    return pd.DataFrame(rows, columns=records.TRANSFER.names)


def _draw_row(
    task: _Task, index: int, params: ScenesParams
) -> tuple[str, str, str, str | None, int]:
    """Sample number `index` of a task; it depends on no other sample."""
    rng = generator(params.seed, task.stream, index)
    turn, place = divmod(index, len(task.splits))
    split, label = task.splits[place], turn % task.classes
    scene_split = "test" if split == "all" else split
    texts = task.draw(scene_split, label, SUBSETS[pick(list(SUBSETS), rng)], rng)
    return task.name, split, *texts, label


def _ask(question: Callable[[Scene], int | None]) -> _Draw:
    """Samples of one sentence, whose class is the answer to a question about its scene."""

    def draw(split: str, label: int, told: Told, rng: np.random.Generator) -> _Texts:
        scene = draw_scene(split, rng)
        while question(scene) != label:
            scene = draw_scene(split, rng)
        return describe(scene, told, rng), None

    return draw


def _has_one_colour(scene: Scene) -> int | None:
    if len(scene.groups) == 1:  # a sentence about one thing would give itself away
        return None
    return int(scene.groups[0].colour == scene.groups[1].colour)


def _first_shape(scene: Scene) -> int:
    return SHAPES.index(scene.groups[0].shape)


def _draw_paraphrase(split: str, label: int, told: Told, rng: np.random.Generator) -> _Texts:
    pair = draw_pair(split, told, rng)
    while (pair.score == HIGHEST) != label:
        pair = draw_pair(split, told, rng)
    return pair.sentences


_TRAIN_AND_TEST = ("train", "train", "test")
_TASKS = (
    _Task("SCENES-ONE-COLOUR", Stream.ONE_COLOUR, ("all",), 2, 2, _ask(_has_one_colour)),
    _Task("SCENES-FIRST-SHAPE", Stream.FIRST_SHAPE, _TRAIN_AND_TEST, 8, 4, _ask(_first_shape)),
    _Task("SCENES-PARAPHRASE", Stream.PARAPHRASE, _TRAIN_AND_TEST, 2, 3, _draw_paraphrase),
)
