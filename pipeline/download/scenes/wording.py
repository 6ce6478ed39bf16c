"""Describe a scene in a sentence, in many wordings, all of them true; and the words for it."""

from dataclasses import dataclass

import numpy as np

from pipeline.download.scenes.world import Group, Scene, happens, pick

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
_SHAPE_WORDS = {
    "circle": (("circle", "circles"), ("disc", "discs"), ("round dot", "round dots")),
    "square": (("square", "squares"), ("box", "boxes"), ("block", "blocks")),
    "triangle": (("triangle", "triangles"), ("three-cornered shape", "three-cornered shapes")),
    "star": (("star", "stars"), ("five-pointed shape", "five-pointed shapes")),
    "diamond": (("diamond", "diamonds"), ("rhombus", "rhombuses"), ("lozenge", "lozenges")),
    "cross": (("cross", "crosses"), ("plus sign", "plus signs")),
    "ring": (("ring", "rings"), ("hoop", "hoops"), ("loop", "loops")),
    "heart": (("heart", "hearts"), ("heart shape", "heart shapes")),
}
_SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
_COUNT_WORDS = {
    1: ("a", "one", "a single"),
    2: ("two", "a pair of", "a couple of"),
    3: ("three", "a trio of"),
    4: ("four", "a group of four"),
}
_VAGUE_WORDS = {1: ("a",), 2: ("some",), 3: ("some", "several"), 4: ("some", "several")}
BACKGROUND_WORDS = {"white": ("white",), "grey": ("grey", "gray"), "black": ("black",)}

RELATION_WORDS = {
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "beneath", "underneath"),
    "left": ("to the left of", "left of", "on the left side of"),
    "right": ("to the right of", "right of", "on the right side of"),
}
INVERSE = {"above": "below", "below": "above", "left": "right", "right": "left"}
_PLACE_WORDS = {
    "above": ("at the top", "in the upper half"),
    "below": ("at the bottom", "in the lower half"),
    "left": ("on the left", "in the left half"),
    "right": ("on the right", "in the right half"),
}

_OPENINGS = (
    "",
    "",
    "a picture of ",
    "an image of ",
    "an image showing ",
    "a drawing with ",
    "there {be} ",
    "we see ",
    "you can see ",
    "the picture shows ",
    "the scene contains ",
)
_ALONE = ("{a}", "only {a}", "{a} and nothing else")
_TOGETHER = ("{a} and {b}", "{a} together with {b}", "both {a} and {b}")
_PHRASES = (
    "{a} {relation} {b}",
    "{a} {relation} {b}",
    "{b} with {a} {relation} {it}",
    "{a} {place_a} and {b} {place_b}",
)
_CLAUSES = (
    "{a} {be} {relation} {b}",
    "{a} {be} placed {relation} {b}",
    "{relation} {b} there {be} {a}",
    "{relation} {b} {be} {a}",
    "{place_a} there {be} {a}, {place_b} {be_b} {b}",
)
_BACKGROUNDS = (
    "{sentence}, on a {background} background",
    "{sentence}, against a {background} backdrop",
    "{sentence}, all on {background}",
    "on a {background} background, {sentence}",
)

_SIZE_TOLD = 0.8
_TOLD = {"count": 0.85, "relation": 0.9, "background": 0.4}
"""How often a caption tells each attribute."""


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


def _name_group(group: Group, rng: np.random.Generator, *, size: bool, count: bool) -> str:
    """Name a group with its number, e.g. `two small red circles`."""
    number = word_for((_COUNT_WORDS if count else _VAGUE_WORDS)[group.count], rng)
    described = describe_group(group, rng, size=size)
    article = "an" if number == "a" and described[0] in "aeiou" else number
    return f"{article} {described}"


def describe_group(group: Group, rng: np.random.Generator, *, size: bool = False) -> str:
    """Name a group without its number, e.g. `small red circles`."""
    size_word = word_for(_SIZE_WORDS[group.size], rng)
    colour = word_for(COLOUR_WORDS[group.colour], rng)
    shape = shape_word(group.shape, group.count, rng)
    return f"{size_word} {colour} {shape}" if size else f"{colour} {shape}"


def shape_word(shape: str, count: int, rng: np.random.Generator) -> str:
    """A word for a shape, in the singular or, for a larger count, in the plural."""
    return word_for(tuple(forms[count > 1] for forms in _SHAPE_WORDS[shape]), rng)


def finish(sentence: str, rng: np.random.Generator) -> str:
    """Half of the time give a sentence its capital letter and full stop."""
    return f"{sentence[0].upper()}{sentence[1:]}." if happens(0.5, rng) else sentence


def be(group: Group) -> str:
    """`is` or `are`."""
    return "is" if group.count == 1 else "are"


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption that tells most of a scene."""
    drawn = {name: happens(often, rng) for name, often in _TOLD.items()}
    sizes = happens(_SIZE_TOLD, rng), happens(_SIZE_TOLD, rng)
    return describe(scene, Told(sizes=sizes, **drawn), rng)


def draw_captions(scene: Scene, number: int, rng: np.random.Generator) -> list[str]:
    """`number` captions of a scene, no two of them alike."""
    found: dict[str, None] = {}
    while len(found) < number:
        found[caption(scene, rng)] = None
    return list(found)


def describe(scene: Scene, told: Told, rng: np.random.Generator) -> str:
    """Say what `told` asks for, no more and no less.

    The wording follows from `rng` alone: two scenes with as many groups, described from equal
    generators, differ only in the words for what differs.
    """
    sentence = _describe_groups(scene, told, rng)
    background = word_for(BACKGROUND_WORDS[scene.background], rng)
    if told.background:
        sentence = pick(_BACKGROUNDS, rng).format(sentence=sentence, background=background)
    return finish(sentence, rng)


def _describe_groups(scene: Scene, told: Told, rng: np.random.Generator) -> str:
    if scene.relation is None:
        group = scene.groups[0]
        name = _name_group(group, rng, size=told.sizes[0], count=told.count)
        return _open(_ALONE, rng).format(a=name, be=be(group))
    first, second = scene.groups
    view = (first, second, scene.relation)
    if not happens(0.5, rng):
        view = (second, first, INVERSE[scene.relation])
    if not told.relation:
        return _fill(_open(_TOGETHER, rng), *view, told, rng)
    clause, phrase = pick(_CLAUSES, rng), _open(_PHRASES, rng)
    return _fill(clause if happens(0.4, rng) else phrase, *view, told, rng)


def _open(templates: tuple[str, ...], rng: np.random.Generator) -> str:
    return pick(_OPENINGS, rng) + pick(templates, rng)


def _fill(
    template: str, first: Group, second: Group, direction: str, told: Told, rng: np.random.Generator
) -> str:
    """Fill in two groups, the first of which lies `direction` of the second."""
    # What comes first decides the verb of an opening such as `there is`.
    leader = second if "{be} {b}" in template else first
    place = int(rng.random() * 2)
    return template.format(
        a=_name_group(first, rng, size=told.sizes[0], count=told.count),
        b=_name_group(second, rng, size=told.sizes[1], count=told.count),
        be=be(leader),
        be_b=be(second),
        it="it" if second.count == 1 else "them",
        relation=word_for(RELATION_WORDS[direction], rng),
        place_a=_PLACE_WORDS[direction][place],
        place_b=_PLACE_WORDS[INVERSE[direction]][place],
    )
