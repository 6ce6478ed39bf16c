"""The words of the world: which phrases name an attribute, and how a group is named."""

from dataclasses import dataclass

import numpy as np

from pipeline.download.scenes.world import Group, happens, pick

COLOUR_WORDS = {
    "red": ("red", "scarlet", "crimson"),
    "green": ("green", "emerald"),
    "blue": ("blue", "azure"),
    "yellow": ("yellow", "golden"),
    "orange": ("orange", "tangerine"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rosy"),
    "cyan": ("cyan", "turquoise"),
}
SHAPE_WORDS = {
    "circle": (("circle", "circles"), ("disc", "discs"), ("round dot", "round dots")),
    "square": (("square", "squares"), ("box", "boxes"), ("block", "blocks")),
    "triangle": (("triangle", "triangles"), ("three-cornered shape", "three-cornered shapes")),
    "star": (("star", "stars"), ("five-pointed shape", "five-pointed shapes")),
    "diamond": (("diamond", "diamonds"), ("rhombus", "rhombuses"), ("lozenge", "lozenges")),
    "cross": (("cross", "crosses"), ("plus sign", "plus signs")),
    "ring": (("ring", "rings"), ("hoop", "hoops"), ("loop", "loops")),
    "heart": (("heart", "hearts"), ("heart shape", "heart shapes")),
}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
COUNT_WORDS = {
    1: ("a", "one", "a single"),
    2: ("two", "a pair of", "a couple of"),
    3: ("three", "a trio of"),
    4: ("four", "a group of four"),
}
VAGUE_WORDS = {1: ("a",), 2: ("some",), 3: ("some", "several"), 4: ("some", "several")}
BACKGROUND_WORDS = {"white": ("white",), "grey": ("grey", "gray"), "black": ("black",)}

RELATION_WORDS = {
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "beneath", "underneath"),
    "left": ("to the left of", "left of", "on the left side of"),
    "right": ("to the right of", "right of", "on the right side of"),
}
INVERSE = {"above": "below", "below": "above", "left": "right", "right": "left"}
PLACE_WORDS = {
    "above": ("at the top", "in the upper half"),
    "below": ("at the bottom", "in the lower half"),
    "left": ("on the left", "in the left half"),
    "right": ("on the right", "in the right half"),
}


@dataclass(frozen=True)
class Told:
    """Which attributes a sentence tells; colours and shapes it always tells.

    `sizes` is for the group that the sentence calls its first, and for the other.
    """

    sizes: tuple[bool, bool] = (True, True)
    count: bool = True
    relation: bool = True
    background: bool = True


def word_for(options: tuple[str, ...], rng: np.random.Generator) -> str:
    """The usual word half of the time, else any of them; spends two random numbers."""
    usual, other = happens(0.5, rng), pick(options, rng)
    return options[0] if usual else other


def name_group(group: Group, rng: np.random.Generator, *, size: bool, count: bool) -> str:
    """Name a group with its number, e.g. `two small red circles`."""
    number = word_for((COUNT_WORDS if count else VAGUE_WORDS)[group.count], rng)
    described = describe_group(group, rng, size=size)
    article = "an" if number == "a" and described[0] in "aeiou" else number
    return f"{article} {described}"


def describe_group(group: Group, rng: np.random.Generator, *, size: bool = False) -> str:
    """Name a group without its number, e.g. `small red circles`."""
    size_word = word_for(SIZE_WORDS[group.size], rng)
    colour = word_for(COLOUR_WORDS[group.colour], rng)
    form = 0 if group.count == 1 else 1
    shape = word_for(tuple(forms[form] for forms in SHAPE_WORDS[group.shape]), rng)
    return " ".join([*([size_word] if size else []), colour, shape])


def finish(sentence: str, rng: np.random.Generator) -> str:
    """Half of the time give a sentence its capital letter and full stop."""
    return f"{sentence[0].upper()}{sentence[1:]}." if happens(0.5, rng) else sentence


def be(group: Group) -> str:
    """`is` or `are`."""
    return "is" if group.count == 1 else "are"
