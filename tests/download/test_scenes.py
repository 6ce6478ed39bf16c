"""The embedded world: its bytes, the truth of its sentences, its held-out scenes and its gold."""

import functools
import hashlib
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
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


def check_noun(match: re.Match[str], scene: Scene) -> int:
    """Hold a named group against the scene; returns its place among the scene's groups."""
    number, size, colour, shape = match.groups()
    kind = find(colour, COLOURS), find(shape, SHAPES)
    places = [place for place, group in enumerate(scene.groups) if group.kind == kind]
    assert len(places) == 1, (match[0], scene)
    group = scene.groups[places[0]]
    assert group.count in NUMBERS[number], (match[0], scene)
    assert (group.count > 1) == (shape.endswith("s") and shape not in ("cross", "rhombus"))
    assert size is None or find(size, ("small", "large")) == group.size, (match[0], scene)
    return places[0]


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


def check_caption(text: str, scene: Scene) -> tuple[int, bool]:
    """Hold a caption against its scene; returns groups named, and whether a relation was."""
    lower = text.lower()
    named: list[int] = []

    def name(match: re.Match[str]) -> str:
        named.append(check_noun(match, scene))
        return f"A{named[-1]}"

    marked = NOUN.sub(name, lower)
    assert sorted(named) == list(range(len(scene.groups))), (text, scene)
    background = re.search(r"(white|grey|gray|black)", marked)
    if background:
        assert background[1].replace("gray", "grey") == scene.background
    told = relation_told(marked)
    if told:
        step = (0, 1) if scene.relation == "above" else (1, 0)
        places = {"A0": np.array((0, 0)), "A1": np.array(step)}
        assert tuple(places[told[0]] - places[told[2]]) == told[1], (text, scene)
    return len(named), told is not None


@functools.cache
def drawn_sts() -> pd.DataFrame:
    return make_sts(DEFAULT.model_copy(update={"sts_pairs": 1500}))


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
def test_another_seed_gives_another_world(tmp_path: Path) -> None:
    other = SMALL.model_copy(update={"seed": 8})
    write_scene_pairs(tmp_path / "a", SMALL)
    write_scene_pairs(tmp_path / "b", other)
    assert digests(tmp_path / "a")["images.zip"] != digests(tmp_path / "b")["images.zip"]
    assert make_sentences(SMALL) != make_sentences(other)
    assert not make_sts(SMALL).equals(make_sts(other))
    assert not make_transfer(SMALL).equals(make_transfer(other))


@pytest.mark.slow
def test_more_items_leave_the_first_ones_as_they_were() -> None:
    more = SMALL.model_copy(update={"images": 130, "sentences": 160, "sts_pairs": 310})
    assert make_sentences(more)[:150] == make_sentences(SMALL)
    assert make_sts(more)[:300].equals(make_sts(SMALL))
    transfer, longer = (dict(list(make_transfer(p).groupby("task"))) for p in (SMALL, more))
    for task, rows in transfer.items():
        assert len(longer[task]) > len(rows)
        assert longer[task][: len(rows)].reset_index(drop=True).equals(rows.reset_index(drop=True))
    assert draw_picture(5, more).captions == draw_picture(5, SMALL).captions


def test_corpus_has_the_asked_counts_and_readable_pictures(tmp_path: Path) -> None:
    import zipfile

    from PIL import Image

    write_scene_pairs(tmp_path, SMALL)
    pairs = read_pairs(tmp_path)
    assert len(pairs.images) == 120
    assert list(pairs.captions["caption_id"]) == list(range(360))
    assert (pairs.captions.groupby("image_id")["caption"].nunique() == 3).all()
    with zipfile.ZipFile(tmp_path / "images.zip") as archive:
        assert archive.namelist() == list(pairs.images["member"])
        for name in archive.namelist()[:5]:
            with archive.open(name) as stream, Image.open(stream) as picture:
                assert (picture.size, picture.mode) == ((SIDE, SIDE), "RGB")


@pytest.mark.slow
def test_default_splits_are_large_enough() -> None:
    splits = [draw_picture(index, SMALL).split for index in range(100)]
    shares = {name: splits.count(name) for name in ("train", "val", "test")}
    assert shares == {"train": 80, "val": 9, "test": 11}  # of 4,600 pictures: 506 in test
    counts = drawn_sts()["split"].value_counts().to_dict()
    assert counts == {"train": 500, "dev": 350, "test": 650}  # a third, 7 and 13 thirtieths


def test_no_combination_of_one_split_occurs_in_another() -> None:
    met: dict[str, set[frozenset[tuple[str, str]]]] = {"train": set(), "val": set(), "test": set()}
    for index in range(400):
        picture = draw_picture(index, SMALL)
        met[picture.split].add(picture.scene.combination)
    assert not met["train"] & (met["val"] | met["test"])
    assert not met["val"] & met["test"]


def test_every_kind_is_seen_in_training() -> None:
    """Held out are pairs of kinds, not the kinds: a model can know each of them."""
    seen = {kind for scene in scenes(2000) for kind in scene.combination}
    assert len(seen) == len(COLOURS) * len(SHAPES)


def test_captions_are_true_and_most_tell_the_relation() -> None:
    told = []
    for index, scene in enumerate(scenes(1000)):
        groups, related = check_caption(caption(scene, generator(4, 51, index)), scene)
        told += [related] if groups == 2 else []
    assert np.mean(told) > 0.85


@pytest.mark.parametrize("subset", SUBSETS)
def test_sts_wording_tells_what_its_subset_says(subset: str) -> None:
    for index, scene in enumerate(scenes(300, stream=52)):
        text = describe(scene, SUBSETS[subset], generator(4, 53, index))
        groups, related = check_caption(text, scene)
        assert related == (groups == 2), text
        assert bool(re.search("white|gr[ea]y|black", text)) == SUBSETS[subset].background
        assert bool(re.search(SEEN["small"] + "|" + SEEN["large"], text)) == all(
            SUBSETS[subset].sizes
        )


def test_the_grammar_can_say_the_plain_caption() -> None:
    groups = Group("red", "circle", "small", 1), Group("blue", "square", "small", 1)
    scene = Scene(groups, "above", "white")
    spoken = {caption(scene, generator(0, 54, item)) for item in range(1500)}
    plain = {text.lower().rstrip(".") for text in spoken}
    article, size = "(?:a|one|a single)", "(?:small|tiny|little)"
    mixed = rf"{article} {size} red circle (above|over) {article} blue square"
    assert any(re.fullmatch(mixed, text) for text in plain)
    assert len(spoken) > 1300


@functools.cache
def stated() -> list[tuple[str, Scene]]:
    drawn = enumerate(scenes(1500, stream=55))
    return [(state(scene, generator(4, 56, index)).lower(), scene) for index, scene in drawn]


def statement_of(words: str) -> list[tuple[re.Match[str], Scene]]:
    found = [(match, scene) for text, scene in stated() for match in re.finditer(words, text)]
    assert len(found) > 20, words
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
    sentences = make_sentences(DEFAULT.model_copy(update={"sentences": 2000}))
    assert len(sentences) == 2000
    assert len(set(sentences)) > 1970


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
    drawn = [render(scene, generator(5, 60, 0)).tobytes() for scene in set(scenes(200))]
    assert len(set(drawn)) == len(drawn)
    scene = scenes(1)[0]
    assert (
        render(scene, generator(5, 60, 1)).tobytes() != render(scene, generator(5, 60, 2)).tobytes()
    )


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
    drawn = scenes(60)
    for first in drawn:
        for second in drawn:
            score = gold_score(first, second, Told())
            assert 0 <= score <= 5
            assert score == gold_score(second, first, Told())
            assert (score == 5) == (first == second)


def test_gold_falls_with_every_further_change() -> None:
    first, second = BASE.groups
    steps = [
        BASE,
        replace(BASE, groups=(replace(first, count=2), second)),
        replace(BASE, groups=(replace(first, count=4), second)),
        replace(BASE, groups=(replace(first, count=4, size="large"), second)),
        replace(BASE, groups=(replace(first, count=4, size="large", colour="cyan"), second)),
        replace(BASE, groups=(Group("cyan", "heart", "large", 4), second)),
        replace(BASE, groups=(Group("cyan", "heart", "large", 4), replace(second, shape="ring"))),
        Scene((Group("cyan", "heart", "large", 4), replace(second, shape="ring")), "left", "white"),
        Scene((Group("cyan", "heart", "large", 4), replace(second, shape="ring")), "left", "grey"),
    ]
    shares = [shared(BASE, step, Told()) for step in steps]
    assert shares == sorted(shares, reverse=True)
    assert len(set(shares)) == len(shares)


def test_untold_attributes_do_not_change_the_gold() -> None:
    other = replace(
        BASE, background="black", groups=(replace(BASE.groups[0], size="large"), BASE.groups[1])
    )
    assert gold_score(BASE, other, SUBSETS["brief"]) == 5
    assert gold_score(BASE, other, SUBSETS["full"]) < 5


def test_sts_is_graded_and_words_alone_say_little_of_it() -> None:
    rows = drawn_sts()
    assert set(rows["subset"]) == {"brief", "sized", "full"}
    assert rows["score"].between(0, 5).all()
    assert rows["score"].nunique() > 100
    assert np.histogram(rows["score"], bins=5, range=(0, 5))[0].min() > 75
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
            nouns = NOUN.findall(sentence.lower())
            kinds = frozenset((find(noun[2], COLOURS), find(noun[3], SHAPES)) for noun in nouns)
            assert split_of(kinds) == {"dev": "val"}.get(row.split, row.split)
