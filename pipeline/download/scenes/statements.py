"""Sentences about a scene that are not captions: comparisons, totals, places, what is absent."""

from collections.abc import Callable

import numpy as np

from pipeline.download.scenes.wording import (
    BACKGROUND_WORDS,
    COLOUR_WORDS,
    INVERSE,
    RELATION_WORDS,
    SHAPE_WORDS,
    be,
    caption,
    describe_group,
    finish,
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


def _two(scene: Scene, rng: np.random.Generator) -> tuple[Group, Group, str]:
    """The two groups in either order, and the place of the first relative to the second."""
    first, second = scene.groups
    relation = scene.relation or ""
    if happens(0.5, rng):
        return second, first, INVERSE[relation]
    return first, second, relation


def _compare_counts(scene: Scene, rng: np.random.Generator) -> str:
    first, second, _ = _two(scene, rng)
    names = [describe_group(_plural(group), rng) for group in (first, second)]
    if first.count == second.count:
        return f"there are as many {names[0]} as {names[1]}"
    more = "more" if first.count > second.count else "fewer"
    return f"there are {more} {names[0]} than {names[1]}"


def _plural(group: Group) -> Group:
    return Group(group.colour, group.shape, group.size, 2)


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
    plurals = tuple(forms[1] for forms in SHAPE_WORDS[first.shape])
    return f"only {word_for(plurals, rng)} are drawn"


def _count_all(scene: Scene, rng: np.random.Generator) -> str:
    total = sum(group.count for group in scene.groups)
    shapes = "shape" if total == 1 else "shapes"
    templates = ("{n} {s} can be seen", "the picture has {n} {s}", "one counts {n} {s}")
    return pick(templates, rng).format(n=_NUMBERS[total], s=shapes)


def _count_group(scene: Scene, rng: np.random.Generator) -> str:
    group = pick(scene.groups, rng)
    name = describe_group(_plural(group), rng)
    return f"the number of {name} is {_NUMBERS[group.count]}"


def _tell_size(scene: Scene, rng: np.random.Generator) -> str:
    group = pick(scene.groups, rng)
    words = ("small", "of small size") if group.size == "small" else ("large", "of large size")
    return f"{_the(group, rng)} {be(group)} {word_for(words, rng)}"


def _tell_background(scene: Scene, rng: np.random.Generator) -> str:
    colour = word_for(BACKGROUND_WORDS[scene.background], rng)
    templates = ("the background is {c}", "the backdrop is {c}", "behind it all is {c}")
    return pick(templates, rng).format(c=colour)


def _tell_absent_shape(scene: Scene, rng: np.random.Generator) -> str:
    present = {group.shape for group in scene.groups}
    absent = pick([shape for shape in SHAPES if shape not in present], rng)
    singular = word_for(tuple(forms[0] for forms in SHAPE_WORDS[absent]), rng)
    templates = ("there is no {s}", "no {s} can be seen", "a {s} is missing")
    return pick(templates, rng).format(s=singular)


def _tell_absent_colour(scene: Scene, rng: np.random.Generator) -> str:
    present = {group.colour for group in scene.groups}
    absent = pick([colour for colour in COLOURS if colour not in present], rng)
    colour = word_for(COLOUR_WORDS[absent], rng)
    return pick(("no shape is {c}", "none of the shapes is {c}"), rng).format(c=colour)


_OF_ANY = (
    *(_count_all, _count_group, _tell_size, _tell_background),
    *(_tell_absent_shape, _tell_absent_colour),
)
_OF_TWO = (_compare_counts, _compare_sizes, _tell_places, _compare_colours, _compare_shapes)
_STATEMENTS_OF: dict[int, tuple[_Statement, ...]] = {1: _OF_ANY, 2: (*_OF_ANY, *_OF_TWO)}
"""By the number of groups of the scene."""
