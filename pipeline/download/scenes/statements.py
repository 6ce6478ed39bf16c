"""Sentences about a scene that are not captions: comparisons, totals, places, what is absent."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pipeline.download.scenes.wording import (
    BACKGROUND_WORDS,
    COLOUR_WORDS,
    INVERSE,
    RELATION_WORDS,
    be,
    caption,
    describe_group,
    finish,
    shape_word,
    word_for,
)
from pipeline.download.scenes.world import COLOURS, SHAPES, Group, Scene, happens, pick

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
_JOINTS = (", and ", "; ", ", while ", " and ")

_Statement = Callable[[Scene, np.random.Generator], str]


def state(scene: Scene, rng: np.random.Generator) -> str:
    """A true sentence about a scene: a caption, or two different statements joined."""
    if happens(0.35, rng):
        return caption(scene, rng)
    statements = _STATEMENTS_OF[len(scene.groups)]
    order = rng.permutation(len(statements))[:2]
    first, second = (statements[index](scene, rng) for index in order)
    return finish(f"{first}{pick(_JOINTS, rng)}{second}", rng)


def _the(group: Group, rng: np.random.Generator) -> str:
    return f"the {describe_group(group, rng)}"


def _several(group: Group, rng: np.random.Generator) -> str:
    return describe_group(replace(group, count=2), rng)


def _two(scene: Scene, rng: np.random.Generator) -> tuple[Group, Group, str]:
    """The two groups in either order, and the place of the first relative to the second."""
    first, second = scene.groups
    relation = scene.relation or ""
    if happens(0.5, rng):
        return second, first, INVERSE[relation]
    return first, second, relation


def _compare_counts(scene: Scene, rng: np.random.Generator) -> str:
    first, second, _ = _two(scene, rng)
    names = _several(first, rng), _several(second, rng)
    if first.count == second.count:
        return f"there are as many {names[0]} as {names[1]}"
    more = "more" if first.count > second.count else "fewer"
    return f"there are {more} {names[0]} than {names[1]}"


def _compare_sizes(scene: Scene, rng: np.random.Generator) -> str:
    first, second, _ = _two(scene, rng)
    names = _the(first, rng), _the(second, rng)
    if first.size == second.size:
        return f"{names[0]} {be(first)} about as big as {names[1]}"
    words = ("bigger", "larger") if first.size == "large" else ("smaller", "tinier")
    return f"{names[0]} {be(first)} {word_for(words, rng)} than {names[1]}"


def _tell_places(scene: Scene, rng: np.random.Generator) -> str:
    first, second, direction = _two(scene, rng)
    relation = word_for(RELATION_WORDS[direction], rng)
    return f"{_the(first, rng)} {be(first)} {relation} {_the(second, rng)}"


def _compare_colours(scene: Scene, rng: np.random.Generator) -> str:
    first, second = scene.groups
    if first.colour != second.colour:
        return pick(("not all shapes share one colour", "there are two different colours"), rng)
    return f"everything drawn here is {word_for(COLOUR_WORDS[first.colour], rng)}"


def _compare_shapes(scene: Scene, rng: np.random.Generator) -> str:
    first, second = scene.groups
    if first.shape != second.shape:
        return pick(("two sorts of shapes are drawn", "the shapes are of two sorts"), rng)
    return f"only {shape_word(first.shape, 2, rng)} are drawn"


def _count_all(scene: Scene, rng: np.random.Generator) -> str:
    total = sum(group.count for group in scene.groups)
    counted = f"{_NUMBERS[total]} {'shape' if total == 1 else 'shapes'}"
    return pick(("{} can be seen", "the picture has {}", "one counts {}"), rng).format(counted)


def _count_group(scene: Scene, rng: np.random.Generator) -> str:
    group = pick(scene.groups, rng)
    return f"the number of {_several(group, rng)} is {_NUMBERS[group.count]}"


def _tell_size(scene: Scene, rng: np.random.Generator) -> str:
    group = pick(scene.groups, rng)
    words = ("small", "of small size") if group.size == "small" else ("large", "of large size")
    return f"{_the(group, rng)} {be(group)} {word_for(words, rng)}"


def _tell_background(scene: Scene, rng: np.random.Generator) -> str:
    colour = word_for(BACKGROUND_WORDS[scene.background], rng)
    templates = ("the background is {}", "the backdrop is {}", "behind it all is {}")
    return pick(templates, rng).format(colour)


def _tell_absent_shape(scene: Scene, rng: np.random.Generator) -> str:
    present = {group.shape for group in scene.groups}
    absent = pick([shape for shape in SHAPES if shape not in present], rng)
    word = shape_word(absent, 1, rng)
    return pick(("there is no {}", "no {} can be seen", "a {} is missing"), rng).format(word)


def _tell_absent_colour(scene: Scene, rng: np.random.Generator) -> str:
    present = {group.colour for group in scene.groups}
    absent = pick([colour for colour in COLOURS if colour not in present], rng)
    word = word_for(COLOUR_WORDS[absent], rng)
    return pick(("no shape is {}", "none of the shapes is {}"), rng).format(word)


_OF_ANY = (
    *(_count_all, _count_group, _tell_size, _tell_background),
    *(_tell_absent_shape, _tell_absent_colour),
)
_OF_TWO = (_compare_counts, _compare_sizes, _tell_places, _compare_colours, _compare_shapes)
_STATEMENTS_OF: dict[int, tuple[_Statement, ...]] = {1: _OF_ANY, 2: (*_OF_ANY, *_OF_TWO)}
