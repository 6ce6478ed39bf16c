"""What a scene is, how scenes are drawn, and which of them are held out.

A scene holds one or two groups of equal shapes on a plain background; the first of two groups
lies above or to the left of the second. The *kind* of a group is its colour and shape; the
*combination* of a scene is the set of its kinds, without order, sizes, counts or places.
Every combination belongs to one split for good, whatever the seed: a model trained on the
train split has seen red stars and blue rings, but never a held-out pair of them together.

The precedents are ShapeWorld (arXiv 1704.04517) and CLEVR (arXiv 1612.06890).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from itertools import combinations, product
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "cyan")
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "ring", "heart")
SIZES = ("small", "large")
COUNTS = (1, 2, 3, 4)
RELATIONS = ("above", "left")
BACKGROUNDS = ("white", "grey", "black")

SPLITS_OF_HUNDRED = ("train",) * 80 + ("val",) * 9 + ("test",) * 11
"""The split of each of a hundred pictures in a row, and of a hundred combinations."""

_COMMON = frozenset({"red", "green", "blue", "yellow", "circle", "square", "triangle"})
"""Colours and shapes that are drawn more often than the others, as in any real collection."""
_COMMON_WEIGHT = 3.0
"""How much more often."""
_ALONE = 0.15
"""Fraction of the scenes that hold one group only."""


class Stream(IntEnum):
    """What the random numbers of an item are for; each corpus has its own."""

    PICTURES = 0
    SENTENCES = 1
    STS = 2
    ONE_COLOUR = 3
    FIRST_SHAPE = 4
    PARAPHRASE = 5


Kind = tuple[str, str]
T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """`count` equal shapes that lie together."""

    colour: str
    shape: str
    size: str
    count: int

    @property
    def kind(self) -> Kind:
        """Colour and shape."""
        return self.colour, self.shape


@dataclass(frozen=True)
class Scene:
    """One or two groups of different kinds."""

    groups: tuple[Group, ...]
    """With two, the first is the upper or the left one."""
    relation: str | None
    """`above` or `left`, the place of the first relative to the second; None with one group."""
    background: str

    @property
    def combination(self) -> frozenset[Kind]:
        """The kinds of the groups, which decide the split of the scene."""
        return frozenset(group.kind for group in self.groups)


def generator(seed: int, stream: int, item: int) -> np.random.Generator:
    """The random numbers of one item of one stream: no item depends on the others."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream, item)))


def pick(options: Sequence[T], rng: np.random.Generator) -> T:
    """One of `options`; spends one random number, however many options there are."""
    return options[int(rng.random() * len(options))]


def happens(probability: float, rng: np.random.Generator) -> bool:
    """True with this probability; spends one random number."""
    return bool(rng.random() < probability)


@cache
def split_of(combination: frozenset[Kind]) -> str:
    """The split (train | val | test) that a combination belongs to."""
    name = " + ".join(sorted(" ".join(kind) for kind in combination))
    digest = hashlib.sha256(name.encode()).digest()
    return SPLITS_OF_HUNDRED[int.from_bytes(digest[:8], "big") % 100]


def draw_scene(split: str, rng: np.random.Generator) -> Scene:
    """Draw a scene whose combination belongs to `split`."""
    alone = happens(_ALONE, rng)
    options, cumulated = _weighted(split, 1 if alone else 2)
    drawn = np.searchsorted(cumulated, rng.random() * cumulated[-1], side="right")
    kinds = list(options[int(drawn)])
    if happens(0.5, rng):
        kinds.reverse()
    groups = tuple(Group(*kind, pick(SIZES, rng), pick(COUNTS, rng)) for kind in kinds)
    relation = None if alone else pick(RELATIONS, rng)
    return Scene(groups, relation, pick(BACKGROUNDS, rng))


@cache
def _weighted(split: str, size: int) -> tuple[list[tuple[Kind, ...]], NDArray[np.float64]]:
    """The combinations of a split, and their weights, added up."""
    every = combinations(product(COLOURS, SHAPES), size)
    options = [kinds for kinds in every if split_of(frozenset(kinds)) == split]
    common = [sum(word in _COMMON for kind in kinds for word in kind) for kinds in options]
    return options, np.cumsum([_COMMON_WEIGHT**count for count in common])
