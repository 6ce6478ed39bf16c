"""Make sentence pairs whose gold score follows from the two scenes they tell of.

A second scene is the first itself, or the first after one to five changed attributes, or with
two things exchanged (same words, other meaning), or an unrelated one. Unless the scene is the
same, half of the pairs use the very same wording, so that shared words say little about the score.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from pipeline.download.scenes.similarity import gold_score
from pipeline.download.scenes.wording import describe
from pipeline.download.scenes.words import Told
from pipeline.download.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    COUNTS,
    RELATIONS,
    SHAPES,
    SIZES,
    Group,
    Scene,
    draw_scene,
    happens,
    pick,
    split_of,
)

SUBSETS = {
    "brief": Told(sizes=(False, False), background=False),
    "sized": Told(background=False),
    "full": Told(),
}
"""How much both sentences of a pair tell, by the name of the subset."""

_VALUES: dict[str, tuple[str, ...] | tuple[int, ...]] = {
    "colour": COLOURS,
    "shape": SHAPES,
    "size": SIZES,
    "count": COUNTS,
}


@dataclass(frozen=True)
class ScoredPair:
    """Two sentences of one split with their gold score in 0..5."""

    sentences: tuple[str, str]
    score: float


def draw_pair(split: str, told: Told, rng: np.random.Generator) -> ScoredPair:
    """Draw two sentences that tell `told` of two scenes of `split`."""
    kind = pick(_KINDS, rng)
    while True:
        first = draw_scene(split, rng)
        second = kind(first, split, rng)
        if not is_scene_of(second, split):
            continue
        sentences = _word_pair(first, second, told, rng)
        if sentences[0] != sentences[1]:
            return ScoredPair(sentences, gold_score(first, second, told))


def is_scene_of(scene: Scene, split: str) -> bool:
    """Whether an altered scene still has groups of different kinds, and belongs to `split`."""
    distinct = len(scene.combination) == len(scene.groups)
    return distinct and split_of(scene.combination) == split


def _word_pair(
    first: Scene, second: Scene, told: Told, rng: np.random.Generator
) -> tuple[str, str]:
    wording = copy.deepcopy(rng)
    sentence = describe(first, told, rng)
    same_wording = first != second and happens(0.5, rng)
    return sentence, describe(second, told, wording if same_wording else rng)


def _same(scene: Scene, _split: str, _rng: np.random.Generator) -> Scene:
    return scene


def _unrelated(_scene: Scene, split: str, rng: np.random.Generator) -> Scene:
    return draw_scene(split, rng)


def _changed(scene: Scene, _split: str, rng: np.random.Generator) -> Scene:
    return change(scene, int(rng.integers(1, 6)), rng)


def change(scene: Scene, times: int, rng: np.random.Generator) -> Scene:
    """Give `times` attributes of a scene another value; the result may be of another split."""
    for _ in range(times):
        scene = pick((_change_group, _change_group, _change_group, _change_place), rng)(scene, rng)
    return scene


def _change_group(scene: Scene, rng: np.random.Generator) -> Scene:
    index, name = int(rng.random() * len(scene.groups)), pick(list(_VALUES), rng)
    group = scene.groups[index]
    others = [value for value in _VALUES[name] if value != getattr(group, name)]
    changed = replace(group, **{name: pick(others, rng)})  # type: ignore[arg-type]
    return replace(scene, groups=_put(scene.groups, index, changed))


def _put(groups: tuple[Group, ...], index: int, group: Group) -> tuple[Group, ...]:
    return (*groups[:index], group, *groups[index + 1 :])


def _change_place(scene: Scene, rng: np.random.Generator) -> Scene:
    if scene.relation is None or happens(0.3, rng):
        others = [colour for colour in BACKGROUNDS if colour != scene.background]
        return replace(scene, background=pick(others, rng))
    other = RELATIONS[1 - RELATIONS.index(scene.relation)]
    return replace(scene, relation=other)


def _exchanged(scene: Scene, _split: str, rng: np.random.Generator) -> Scene:
    if scene.relation is None:
        return _change_group(scene, rng)
    first, second = scene.groups
    name = pick(("colour", "shape", "place"), rng)
    if name == "place":
        return replace(scene, groups=(second, first))
    swapped = _with(first, name, second), _with(second, name, first)
    return replace(scene, groups=swapped)


def _with(group: Group, name: str, giver: Group) -> Group:
    return replace(group, **{name: getattr(giver, name)})


_Kind = Callable[[Scene, str, np.random.Generator], Scene]
_KINDS: tuple[_Kind, ...] = (_same, _changed, _changed, _exchanged, _unrelated)
