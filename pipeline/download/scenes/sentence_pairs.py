"""Make sentence pairs whose gold score follows from the two scenes they tell of.

A group shares with another the weighted mean over what is told of both: colour (weight 3) and
shape (3) count 1 when equal, else 0; size (1) likewise; the count (1) shares 1 - |difference| / 3.
A scene shares with another, under the better of the two ways to pair up their groups, the weighted
mean over groups (6, a group without partner shares nothing), relation (2, when either scene has
one; equal only if the paired groups lie alike) and background (1, when told). The gold score is
5 * shared^2: squared, so that two scenes that agree in most words but not in one thing stand
clearly apart from two that are the same.
"""

import copy
from dataclasses import replace

import numpy as np

from pipeline.download.scenes.wording import Told, describe
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

HIGHEST = 5.0
"""Gold score of two sentences that tell the same."""

SUBSETS = {
    "brief": Told(sizes=(False, False), background=False),
    "sized": Told(background=False),
    "full": Told(),
}
"""How much both sentences of a pair tell, by the name of the subset."""

_VALUES = (("colour", COLOURS), ("shape", SHAPES), ("size", SIZES), ("count", COUNTS))


def draw_sentence_pair(split: str, told: Told, rng: np.random.Generator) -> tuple[str, str, float]:
    """Draw two sentences that tell `told` of two scenes of `split`, and their gold score in 0..5.

    The second scene is the first itself, or the first after one to five changed attributes, or with
    two things exchanged (same words, other meaning), or an unrelated one. Unless the scene is the
    same, half of the pairs use the very same wording, so that shared words say little of the score.
    """
    kind = pick(("same", "changed", "changed", "exchanged", "unrelated"), rng)
    while True:
        first = draw_scene(split, rng)
        second = _alter(kind, first, split, rng)
        if not is_scene_of(second, split):
            continue
        wording = copy.deepcopy(rng)
        sentence = describe(first, told, rng)
        same_wording = first != second and happens(0.5, rng)
        other = describe(second, told, wording if same_wording else rng)
        if sentence != other:
            return sentence, other, gold_score(first, second, told)


def _alter(kind: str, scene: Scene, split: str, rng: np.random.Generator) -> Scene:
    if kind == "changed":
        return change(scene, int(rng.integers(1, 6)), rng)
    if kind == "exchanged":
        return _exchange(scene, rng)
    return draw_scene(split, rng) if kind == "unrelated" else scene


def is_scene_of(scene: Scene, split: str) -> bool:
    """Whether an altered scene still has groups of different kinds, and belongs to `split`."""
    distinct = len(scene.combination) == len(scene.groups)
    return distinct and split_of(scene.combination) == split


def change(scene: Scene, times: int, rng: np.random.Generator) -> Scene:
    """Give `times` attributes of a scene another value; the result may be of another split."""
    for _ in range(times):
        scene = pick((_change_group, _change_group, _change_group, _change_place), rng)(scene, rng)
    return scene


def _change_group(scene: Scene, rng: np.random.Generator) -> Scene:
    index, (name, values) = int(rng.random() * len(scene.groups)), pick(_VALUES, rng)
    groups = list(scene.groups)
    others = [value for value in values if value != getattr(groups[index], name)]
    groups[index] = replace(groups[index], **{name: pick(others, rng)})  # type: ignore[arg-type]
    return replace(scene, groups=tuple(groups))


def _change_place(scene: Scene, rng: np.random.Generator) -> Scene:
    if scene.relation is None or happens(0.3, rng):
        others = [colour for colour in BACKGROUNDS if colour != scene.background]
        return replace(scene, background=pick(others, rng))
    return replace(scene, relation=RELATIONS[1 - RELATIONS.index(scene.relation)])


def _exchange(scene: Scene, rng: np.random.Generator) -> Scene:
    if scene.relation is None:
        return _change_group(scene, rng)
    return exchange(scene, pick(("colour", "shape", "place"), rng))


def exchange(scene: Scene, name: str) -> Scene:
    """Exchange the colours, shapes or places of two groups; the result may be of another split."""
    first, second = scene.groups
    if name == "place":
        return replace(scene, groups=(second, first))
    mine, others = getattr(first, name), getattr(second, name)
    swapped = replace(first, **{name: others}), replace(second, **{name: mine})
    return replace(scene, groups=swapped)


def gold_score(first: Scene, second: Scene, told: Told) -> float:
    """The gold score of two scenes in 0..5, two decimals; the order does not matter."""
    return round(HIGHEST * shared(first, second, told) ** 2, 2)


def shared(first: Scene, second: Scene, told: Told) -> float:
    """The fraction of what is told that two scenes have in common."""
    if len(first.groups) > len(second.groups):
        first, second = second, first
    related = told.relation and (first.relation or second.relation) is not None

    def compare(partners: tuple[Group, ...], *, lie_alike: bool) -> float:
        paired = zip(first.groups, partners, strict=False)
        groups = sum(_compare_groups(one, other, told) for one, other in paired)
        return _mean(
            (6.0, groups / max(len(first.groups), len(partners))),
            (2.0 if related else 0.0, float(lie_alike)),
            (1.0 if told.background else 0.0, float(first.background == second.background)),
        )

    straight = compare(second.groups, lie_alike=first.relation == second.relation)
    return max(straight, compare(second.groups[::-1], lie_alike=False))


def _compare_groups(one: Group, other: Group, told: Told) -> float:
    return _mean(
        (3.0, float(one.colour == other.colour)),
        (3.0, float(one.shape == other.shape)),
        (1.0 if all(told.sizes) else 0.0, float(one.size == other.size)),
        (1.0 if told.count else 0.0, 1 - abs(one.count - other.count) / (len(COUNTS) - 1)),
    )


def _mean(*shared_by_weight: tuple[float, float]) -> float:
    total = sum(weight * shared for weight, shared in shared_by_weight)
    return total / sum(weight for weight, _ in shared_by_weight)
