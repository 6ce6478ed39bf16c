"""The transfer tasks of the embedded world, in the three forms that SentEval's have.

SCENES-ONE-COLOUR   all          1 where the two things of the scene have the same colour, else 0
SCENES-FIRST-SHAPE  train, test  the shape of the only, upper or left thing, its place in SHAPES
SCENES-PARAPHRASE   train, test  1 where both sentences tell the same, else 0; two sentences

As every colour and shape has several names and a sentence names two things, none is solved by which
words occur. All classes of a task are equally frequent. Train samples tell of train scenes; test
samples, and those of the task without splits, of test scenes: no combination is in two splits.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline.download import records
from pipeline.download.scenes.sentence_pairs import HIGHEST, SUBSETS, draw_sentence_pair
from pipeline.download.scenes.wording import Told, describe
from pipeline.download.scenes.world import SHAPES, Scene, Stream, draw_scene, generator, pick
from pipeline.params.download import ScenesParams

_Texts = tuple[str, str | None]
"""The sentence, or the two sentences, of a sample."""


@dataclass(frozen=True)
class _Task:
    name: str
    stream: Stream
    splits: tuple[str, ...]
    """The split of each of a few samples in a row."""
    classes: int
    tenths: int
    """Samples for every ten STS pairs."""
    draw: Callable[[str, int, Told, np.random.Generator], _Texts]
    """Draws a sample of a class about scenes of a split; `Told` is how much its sentences tell."""


def make_transfer(params: ScenesParams) -> pd.DataFrame:
    """The samples of the transfer tasks, no one of which depends on another.

    They are a table of `records.TRANSFER`; their number follows `sts_pairs`.
    """
    rows = []
    for task in _TASKS:
        for index in range(params.sts_pairs * task.tenths // 10):
            rng = generator(params.seed, task.stream, index)
            turn, place = divmod(index, len(task.splits))
            split, label = task.splits[place], turn % task.classes
            scene_split = "test" if split == "all" else split
            texts = task.draw(scene_split, label, SUBSETS[pick(list(SUBSETS), rng)], rng)
            rows.append((task.name, split, *texts, label))
    return pd.DataFrame(rows, columns=records.TRANSFER.names)


def _draw_one_colour(split: str, label: int, told: Told, rng: np.random.Generator) -> _Texts:
    def fits(scene: Scene) -> bool:
        colours = {group.colour for group in scene.groups}
        # A sentence about one thing would give itself away.
        return len(scene.groups) > 1 and (len(colours) == 1) == label

    return describe(_draw_until(fits, split, rng), told, rng), None


def _draw_first_shape(split: str, label: int, told: Told, rng: np.random.Generator) -> _Texts:
    scene = _draw_until(lambda scene: scene.groups[0].shape == SHAPES[label], split, rng)
    return describe(scene, told, rng), None


def _draw_until(fits: Callable[[Scene], bool], split: str, rng: np.random.Generator) -> Scene:
    while not fits(scene := draw_scene(split, rng)):
        pass
    return scene


def _draw_paraphrase(split: str, label: int, told: Told, rng: np.random.Generator) -> _Texts:
    while True:
        first, second, score = draw_sentence_pair(split, told, rng)
        if (score == HIGHEST) == label:
            return first, second


_TRAIN_AND_TEST = ("train", "train", "test")
_TASKS = (
    _Task("SCENES-ONE-COLOUR", Stream.ONE_COLOUR, ("all",), 2, 2, _draw_one_colour),
    _Task("SCENES-FIRST-SHAPE", Stream.FIRST_SHAPE, _TRAIN_AND_TEST, 8, 4, _draw_first_shape),
    _Task("SCENES-PARAPHRASE", Stream.PARAPHRASE, _TRAIN_AND_TEST, 2, 3, _draw_paraphrase),
)
