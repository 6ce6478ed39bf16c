"""What the teacher learns from: pictures of train scenes, and batches with new captions."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.progress import progress
from pipeline.download.scenes.graded_pairs import change, is_scene_of
from pipeline.download.scenes.render import SIDE, render
from pipeline.download.scenes.wording import caption
from pipeline.download.scenes.world import Scene, draw_scene, generator

_PICTURES, _BATCHES = 100, 101
"""Random streams; those of the corpora are below them."""

_MOST_CHANGES = 3


@dataclass(frozen=True)
class Lessons:
    """Scenes two by two, the second of two a relative of the first, and their pictures."""

    scenes: list[Scene]
    pictures: UInt8[Tensor, "scenes 3 height width"]


def render_lessons(number: int, seed: int) -> Lessons:
    """Draw and render `number` scenes of the train split."""
    scenes: list[Scene] = []
    pictures = torch.empty(number, 3, SIDE, SIDE, dtype=torch.uint8)
    for index in progress(range(number), total=number, what="train scenes", unit="scene"):
        rng = generator(seed, _PICTURES, index)
        scenes.append(_relative(scenes[-1], rng) if index % 2 else draw_scene("train", rng))
        pixels = torch.from_numpy(np.array(render(scenes[-1], rng)))
        pictures[index] = pixels.permute(2, 0, 1)
    return Lessons(scenes, pictures)


def _relative(scene: Scene, rng: np.random.Generator) -> Scene:
    while True:
        relative = change(scene, int(rng.integers(1, _MOST_CHANGES + 1)), rng)
        if is_scene_of(relative, "train") and relative != scene:
            return relative


def draw_batches(
    lessons: Lessons, *, steps: int, batch_size: int, seed: int
) -> Iterator[tuple[NDArray[np.int64], list[str]]]:
    """Rows of random scenes, each with its relative, and a new caption of each row."""
    rng = generator(seed, _BATCHES, 0)
    for _ in range(steps):
        firsts = 2 * rng.choice(len(lessons.scenes) // 2, batch_size // 2, replace=False)
        rows = np.concatenate([firsts, firsts + 1])
        yield rows, [caption(lessons.scenes[row], rng) for row in rows]
