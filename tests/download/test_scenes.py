"""The embedded world: its bytes, the truth of its sentences, its held-out scenes and its gold."""

import functools
import hashlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import label
from scipy.stats import spearmanr

from pipeline.core.checksums import CHECKSUMS
from pipeline.download.records import read_pairs
from pipeline.download.scenes.render import SIDE, render
from pipeline.download.scenes.sentence_pairs import SUBSETS, gold_score, shared
from pipeline.download.scenes.statements import state
from pipeline.download.scenes.tables import (
    draw_picture,
    make_sentences,
    make_sts,
    write_scene_pairs,
)
from pipeline.download.scenes.transfer_tasks import make_transfer
from pipeline.download.scenes.wording import Told, caption, describe
from pipeline.download.scenes.world import (
    COLOURS,
    SHAPES,
    Group,
    Scene,
    draw_scene,
    generator,
    split_of,
)
from pipeline.params.download import ScenesParams

ROOT = Path(__file__).resolve().parents[2]
SMALL = ScenesParams(images=120, captions_per_image=3, sentences=150, sts_pairs=300, seed=7)
DEFAULT = ScenesParams(images=4600, captions_per_image=5, sentences=10_000, sts_pairs=3000, seed=0)

SEEN = {
    "red": "red|scarlet|crimson", "green": "green|emerald", "blue": "blue|azure",
    "yellow": "yellow|golden", "orange": "orange|tangerine", "purple": "purple|violet",
    "pink": "pink|rosy", "cyan": "cyan|turquoise",
    "circle": "circles?|discs?|round dots?", "square": "squares?|box|boxes|blocks?",
    "triangle": "triangles?|three-cornered shapes?", "star": "stars?|five-pointed shapes?",
    "diamond": "diamonds?|rhombus|rhombuses|lozenges?", "cross": "cross|crosses|plus signs?",
    "ring": "rings?|hoops?|loops?", "heart": "hearts?|heart shapes?",
    "small": "small|little|tiny", "large": "large|big|huge",
}  # fmt: skip
NUMBERS = {
    "a": {1}, "an": {1}, "one": {1}, "a single": {1}, "two": {2}, "a pair of": {2},
    "a couple of": {2}, "three": {3}, "a trio of": {3}, "four": {4}, "a group of four": {4},
    "some": {2, 3, 4}, "several": {3, 4},
}  # fmt: skip
TOWARDS = {
    "above|over|higher than|at the top|in the upper half": (0, -1),
    "below|under|beneath|underneath|at the bottom|in the lower half": (0, 1),
    "(?:to the )?left of|on the left side of|on the left|in the left half": (-1, 0),
    "(?:to the )?right of|on the right side of|on the right|in the right half": (1, 0),
}


def scenes(number: int, split: str = "train", stream: int = 50) -> list[Scene]:
    return [draw_scene(split, generator(3, stream, item)) for item in range(number)]


def find(text: str, names: tuple[str, ...]) -> str:
    return next(name for name in names if re.fullmatch(SEEN[name], text))


def any_of(names: tuple[str, ...]) -> str:
    return "|".join(sorted("|".join(SEEN[name] for name in names).split("|"), key=len)[::-1])


NOUN = re.compile(
    rf"\b(?:({'|'.join(sorted(NUMBERS, key=len)[::-1])}) )(?:({any_of(('small', 'large'))}) )?"
    rf"({any_of(COLOURS)}) ({any_of(SHAPES)})\b"
)


A_KIND = rf"(?:{any_of(COLOURS)}) (?:{any_of(SHAPES)})"


def relation_told(text: str) -> tuple[str, tuple[int, int], str] | None:
    """Read `who lies in which direction of whom` from a text whose groups are A0 and A1."""
    for words, step in TOWARDS.items():
        patterns = [
            (rf"(A\d)(?: is| are)?(?: placed)? (?:{words}) (A\d)", (1, 2)),
            (rf"(?:{words}) (A\d) (?:there )?(?:is|are) (A\d)", (2, 1)),
            (rf"(A\d) with (A\d) (?:{words}) (?:it|them)", (2, 1)),
            (rf"(A\d) (?:{words}) and (A\d)", (1, 2)),
            (rf"(?:{words}) there (?:is|are) (A\d), .* (?:is|are) (A\d)", (1, 2)),
        ]
        for pattern, (who, whom) in patterns:
            if found := re.search(pattern, text):
                return found[who], step, found[whom]
    return None


class Thing(NamedTuple):
    colour: str
    shape: str
    size: str | None
    numbers: frozenset[int]

    @property
    def kind(self) -> tuple[str, str]:
        return self.colour, self.shape


class Heard(NamedTuple):
    """What a sentence tells; of two things, the upper or left one comes first where it is told."""

    things: tuple[Thing, ...]
    direction: str | None
    background: str | None

    def is_true_of(self, scene: Scene) -> bool:
        groups = {group.kind: group for group in scene.groups}
        if sorted(thing.kind for thing in self.things) != sorted(groups):
            return False
        placed = (scene.relation, list(groups))
        return (
            self.background in {None, scene.background}
            and (not self.direction or (self.direction, [t.kind for t in self.things]) == placed)
            and all(groups[thing.kind].count in thing.numbers for thing in self.things)
            and all(thing.size in {None, groups[thing.kind].size} for thing in self.things)
        )


def hear(text: str) -> Heard:
    things: list[Thing] = []

    def name(match: re.Match[str]) -> str:
        number, size, colour, shape = match.groups()
        is_plural = shape.endswith("s") and shape not in {"cross", "rhombus"}
        assert is_plural == (1 not in NUMBERS[number]), text
        size = size and find(size, ("small", "large"))
        numbers = frozenset(NUMBERS[number])
        things.append(Thing(find(colour, COLOURS), find(shape, SHAPES), size, numbers))
        return f"A{len(things) - 1}"

    marked = NOUN.sub(name, text.lower())
    ground = re.search("white|gr[ea]y|black", marked)
    background = ground and ground[0].replace("gray", "grey")
    told = relation_told(marked)
    if told is None:
        return Heard(tuple(things), None, background)
    who, step, whom = told
    order = (who, whom) if sum(step) < 0 else (whom, who)
    direction = "left" if step[0] else "above"
    return Heard(tuple(things[int(mark[1])] for mark in order), direction, background)


@functools.cache
def drawn_sts() -> pd.DataFrame:
    return make_sts(DEFAULT.model_copy(update={"sts_pairs": 750}))


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.slow
def test_equal_params_give_equal_bytes_in_another_process(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from pipeline.download.scenes.tables import *\n"
        "from pipeline.download.scenes.transfer_tasks import make_transfer\n"
        "params = ScenesParams.model_validate_json(sys.argv[2])\n"
        "write_scene_pairs(Path(sys.argv[1]), params)\n"
        "make_sts(params).to_json(sys.argv[1] + '/sts.json')\n"
        "make_transfer(params).to_json(sys.argv[1] + '/transfer.json')\n"
        "Path(sys.argv[1], 'text').write_text('\\n'.join(make_sentences(params)))\n"
    )
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        command = [sys.executable, "-c", script, str(folder), SMALL.model_dump_json()]
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        subprocess.run(command, check=True, env=environment, cwd=ROOT)
    first = digests(tmp_path / "1")
    tables = {"images.parquet", "captions.parquet", CHECKSUMS, "sts.json", "transfer.json"}
    assert set(first) == {"images.zip", "text", *tables}
    assert digests(tmp_path / "2") == first


@pytest.mark.slow
def test_items_depend_on_the_seed_and_not_on_how_many_there_are() -> None:
    other = SMALL.model_copy(update={"seed": 8})
    assert draw_picture(5, SMALL).image.tobytes() != draw_picture(5, other).image.tobytes()
    assert make_sentences(SMALL) != make_sentences(other)
    assert not make_sts(SMALL).equals(make_sts(other))
    assert not make_transfer(SMALL).equals(make_transfer(other))
    more = SMALL.model_copy(update={"images": 130, "sentences": 160, "sts_pairs": 310})
    assert make_sentences(more)[:150] == make_sentences(SMALL)
    assert make_sts(more)[:300].equals(make_sts(SMALL))
    transfer, longer = (dict(list(make_transfer(p).groupby("task"))) for p in (SMALL, more))
    for task, rows in transfer.items():
        assert len(longer[task]) > len(rows)
        assert longer[task][: len(rows)].reset_index(drop=True).equals(rows.reset_index(drop=True))
    assert draw_picture(5, more).captions == draw_picture(5, SMALL).captions


def test_corpus_has_the_asked_counts_and_readable_pictures(tmp_path: Path) -> None:
    write_scene_pairs(tmp_path, SMALL)
    pairs = read_pairs(tmp_path)
    assert len(pairs.images) == 120
    assert pairs.images["split"][:100].value_counts().to_dict() == {
        "train": 80,
        "test": 11,
        "val": 9,
    }
    assert list(pairs.captions["caption_id"]) == list(range(360))
    assert (pairs.captions.groupby("image_id")["caption"].nunique() == 3).all()
    with zipfile.ZipFile(tmp_path / "images.zip") as archive:
        assert archive.namelist() == list(pairs.images["member"])
        for name in archive.namelist()[:5]:
            with archive.open(name) as stream, Image.open(stream) as picture:
                assert (picture.size, picture.mode) == ((SIDE, SIDE), "RGB")


def test_no_combination_of_one_split_occurs_in_another() -> None:
    met: dict[str, set[frozenset[tuple[str, str]]]] = {"train": set(), "val": set(), "test": set()}
    for index in range(200):
        picture = draw_picture(index, SMALL)
        met[picture.split].add(picture.scene.combination)
    assert not met["train"] & (met["val"] | met["test"])
    assert not met["val"] & met["test"]


def test_every_kind_is_seen_in_training() -> None:
    """Held out are pairs of kinds, not the kinds: a model can know each of them."""
    seen = {kind for scene in scenes(2000) for kind in scene.combination}
    assert len(seen) == len(COLOURS) * len(SHAPES)


def test_hearing_a_sentence() -> None:
    first = Thing("red", "square", "small", frozenset({1}))
    second = Thing("cyan", "cross", None, frozenset({2}))
    heard = Heard((first, second), "left", None)
    assert hear("Two turquoise plus signs to the right of a tiny scarlet box.") == heard
    assert hear("there is a small red square with two cyan crosses right of it") == heard
    assert hear("one little red block, all on gray") == Heard((first,), None, "grey")
    groups = Group("red", "square", "small", 1), Group("cyan", "cross", "large", 2)
    scene = Scene(groups, "left", "white")
    assert heard.is_true_of(scene)
    for wrong in (
        replace(scene, relation="above"),
        replace(scene, groups=groups[::-1]),
        replace(scene, groups=(groups[0], replace(groups[1], count=3))),
        replace(scene, groups=(replace(groups[0], size="large"), groups[1])),
        replace(scene, groups=(groups[0], replace(groups[1], shape="ring"))),
    ):
        assert not heard.is_true_of(wrong)
    assert not heard._replace(background="grey").is_true_of(scene)


def test_captions_are_true_and_most_tell_the_relation() -> None:
    told = []
    for index, scene in enumerate(scenes(400)):
        text = caption(scene, generator(4, 51, index))
        assert hear(text).is_true_of(scene), (text, scene)
        told += [hear(text).direction is not None] if scene.relation else []
    assert np.mean(told) > 0.85


@pytest.mark.parametrize("subset", SUBSETS)
def test_sts_wording_tells_what_its_subset_says(subset: str) -> None:
    told = SUBSETS[subset]
    for index, scene in enumerate(scenes(150, stream=52)):
        heard = hear(describe(scene, told, generator(4, 53, index)))
        assert heard.is_true_of(scene), scene
        assert (heard.direction is None) == (scene.relation is None)
        assert (heard.background is None) != told.background
        assert [thing.size is not None for thing in heard.things] == [
            all(told.sizes) for _ in heard.things
        ]


def test_the_grammar_can_say_the_plain_caption() -> None:
    groups = Group("red", "circle", "small", 1), Group("blue", "square", "small", 1)
    scene = Scene(groups, "above", "white")
    spoken = {caption(scene, generator(0, 54, item)) for item in range(1000)}
    plain = {text.lower().rstrip(".") for text in spoken}
    article, size = "(?:a|one|a single)", "(?:small|tiny|little)"
    mixed = rf"{article} {size} red circle (above|over) {article} blue square"
    assert any(re.fullmatch(mixed, text) for text in plain)
    assert len(spoken) > 850


@functools.cache
def stated() -> list[tuple[str, Scene]]:
    drawn = enumerate(scenes(900, stream=55))
    return [(state(scene, generator(4, 56, index)).lower(), scene) for index, scene in drawn]


def statement_of(words: str) -> list[tuple[re.Match[str], Scene]]:
    found = [(match, scene) for text, scene in stated() for match in re.finditer(words, text)]
    assert len(found) > 10, words
    return found


def group_named(text: str, scene: Scene) -> Group:
    colour = next(name for name in COLOURS if re.search(rf"\b({SEEN[name]})\b", text))
    shape = next(name for name in SHAPES if re.search(rf"\b({SEEN[name]})(\b|$)", text))
    return next(group for group in scene.groups if group.kind == (colour, shape))


def total_is(match: re.Match[str], scene: Scene) -> bool:
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    return words.index(match[1]) + 1 == sum(group.count for group in scene.groups)


def counts_compare(match: re.Match[str], scene: Scene) -> bool:
    first, second = (group_named(match[part], scene).count for part in (2, 3))
    return {"more": first > second, "fewer": first < second, "as many": first == second}[match[1]]


def shape_is_absent(match: re.Match[str], scene: Scene) -> bool:
    return find(match[1], SHAPES) not in {group.shape for group in scene.groups}


def colour_is_absent(match: re.Match[str], scene: Scene) -> bool:
    return find(match[1], COLOURS) not in {group.colour for group in scene.groups}


def background_is(match: re.Match[str], scene: Scene) -> bool:
    return match[1].replace("gray", "grey") == scene.background


@pytest.mark.parametrize(
    ("words", "is_true"),
    [
        (r"(?:counts|has) (\w+) shape", total_is),
        (
            rf"are (more|fewer|as many) ({A_KIND}) (?:than|as) ({A_KIND})",
            counts_compare,
        ),
        (rf"there is no ({any_of(SHAPES)})\b", shape_is_absent),
        (r"(?:no shape|none of the shapes) is (\w+)", colour_is_absent),
        (r"(?:background|backdrop) is (\w+)", background_is),
    ],
)
def test_statements_are_true(words: str, is_true: Callable[[re.Match[str], Scene], bool]) -> None:
    for match, scene in statement_of(words):
        assert is_true(match, scene), (match.string, scene)


def test_sentences_are_mostly_distinct() -> None:
    sentences = make_sentences(DEFAULT.model_copy(update={"sentences": 1000}))
    assert len(sentences) == 1000
    assert len(set(sentences)) > 985


def test_pictures_show_as_many_shapes_as_told() -> None:
    """Counted another way: connected spots that differ from the background."""
    for index, scene in enumerate(scenes(60, stream=57)):
        groups = tuple(replace(g, size="small", shape="square") for g in scene.groups)
        small = replace(scene, groups=groups)
        pixels = np.asarray(render(small, generator(5, 58, index))).astype(int)
        ground = np.median(pixels.reshape(-1, 3), axis=0)
        spots = np.abs(pixels - ground).sum(axis=2) > 60
        assert label(spots, np.ones((3, 3)))[1] == sum(group.count for group in scene.groups)


def test_pictures_show_the_relation() -> None:
    """Measured another way: where the pixels of either colour lie."""
    rgb = {"red": (214, 32, 32), "blue": (36, 60, 214)}
    groups = Group("red", "star", "large", 3), Group("blue", "cross", "small", 4)
    for relation, axis in (("above", 0), ("left", 1)):
        for item in range(20):
            picture = render(Scene(groups, relation, "white"), generator(5, 59, item))
            pixels = np.asarray(picture).astype(int)
            near = [np.abs(pixels - rgb[name]).sum(axis=2) < 60 for name in ("red", "blue")]
            first, second = (np.argwhere(mask)[:, axis] for mask in near)
            assert first.max() < second.min()


def test_pictures_of_other_scenes_and_of_other_draws_differ() -> None:
    drawn = [render(scene, generator(5, 60, 0)).tobytes() for scene in set(scenes(100))]
    drawn += [render(scenes(1)[0], generator(5, 60, draw)).tobytes() for draw in (1, 2)]
    assert len(set(drawn)) == len(drawn)


BASE = Scene(
    (Group("red", "circle", "small", 1), Group("blue", "square", "large", 2)), "above", "white"
)


def test_gold_of_worked_examples() -> None:
    """By hand: weights 3, 3, 1, 1 within a group; 6, 2, 1 over groups, relation, background."""
    recoloured = replace(BASE, groups=(replace(BASE.groups[0], colour="pink"), BASE.groups[1]))
    assert gold_score(BASE, recoloured, Told()) == pytest.approx(
        5 * ((6 * (1 + 5 / 8) / 2 + 2 + 1) / 9) ** 2, abs=0.005
    )
    reversed_ = replace(BASE, groups=BASE.groups[::-1])
    assert gold_score(BASE, reversed_, Told()) == pytest.approx(5 * (7 / 9) ** 2, abs=0.005)
    fewer = replace(BASE, groups=(BASE.groups[0], replace(BASE.groups[1], count=4)))
    brief = Told(sizes=(False, False), background=False)
    assert gold_score(BASE, fewer, brief) == pytest.approx(
        5 * ((6 * (1 + (6 + 1 / 3) / 7) / 2 + 2) / 8) ** 2, abs=0.005
    )


def test_gold_is_five_only_for_the_same_and_does_not_depend_on_order() -> None:
    drawn = scenes(30)
    for first in drawn:
        for second in drawn:
            score = gold_score(first, second, Told())
            assert 0 <= score <= 5
            assert score == gold_score(second, first, Told())
            assert (score == 5) == (first == second)


def test_gold_falls_with_every_further_change() -> None:
    first, second = BASE.groups
    scene, shares = BASE, [shared(BASE, BASE, Told())]
    for change in (
        {"count": 2},
        {"count": 4},
        {"size": "large"},
        {"colour": "cyan"},
        {"shape": "heart"},
    ):
        first = replace(first, **change)
        scene = replace(BASE, groups=(first, second))
        shares.append(shared(BASE, scene, Told()))
    for more in (
        {"groups": (first, replace(second, shape="ring"))},
        {"relation": "left"},
        {"background": "grey"},
    ):
        scene = replace(scene, **more)
        shares.append(shared(BASE, scene, Told()))
    assert shares == sorted(set(shares), reverse=True)


def test_untold_attributes_do_not_change_the_gold() -> None:
    groups = replace(BASE.groups[0], size="large"), BASE.groups[1]
    other = replace(BASE, background="black", groups=groups)
    assert gold_score(BASE, other, SUBSETS["brief"]) == 5
    assert gold_score(BASE, other, SUBSETS["full"]) < 5


def test_sts_is_graded_and_words_alone_say_little_of_it() -> None:
    rows = drawn_sts()
    assert set(rows["subset"]) == {"brief", "sized", "full"}
    assert rows["score"].between(0, 5).all()
    assert rows["score"].nunique() > 100
    assert np.histogram(rows["score"], bins=5, range=(0, 5))[0].min() > 37
    counts = rows["split"].value_counts().to_dict()
    assert counts == {"train": 250, "dev": 175, "test": 325}  # a third, 7 and 13 thirtieths
    assert (rows["sentence1"] != rows["sentence2"]).all()
    words = [
        [set(re.findall(r"\w+", sentence.lower())) for sentence in pair]
        for pair in zip(rows["sentence1"], rows["sentence2"], strict=True)
    ]
    overlap = [len(one & other) / len(one | other) for one, other in words]
    assert abs(spearmanr(overlap, rows["score"])[0]) < 0.3


def test_sts_scenes_of_a_split_are_of_its_combinations_only() -> None:
    """Read back from the sentences themselves."""
    for row in make_sts(SMALL).itertuples():
        for sentence in (row.sentence1, row.sentence2):
            kinds = frozenset(thing.kind for thing in hear(sentence).things)
            assert split_of(kinds) == {"dev": "val"}.get(row.split, row.split)
