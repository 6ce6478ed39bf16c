"""The demo's models as they are kept in data/demo: they load, they know the world."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModel, AutoTokenizer

from benchmarks.binding import binding, draw_scenes, encode
from pipeline.download.scenes.demo.rebuild import (
    HELD_OUT,
    WORLD,
    build_demo,
    held_out_recall,
    recall_at,
)
from pipeline.download.scenes.demo.student_model import StudentRecipe
from pipeline.download.scenes.demo.teacher_model import TeacherRecipe, draw_families
from pipeline.download.scenes.demo.tokenizer import build_tokenizer
from pipeline.download.scenes.sentence_pairs import exchange
from pipeline.download.scenes.tables import draw_picture, make_sentences
from pipeline.download.scenes.world import generator, split_of

DEMO = Path(__file__).resolve().parents[2] / "data" / "demo"


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    return make_sentences(WORLD)


@pytest.mark.slow
def test_teacher_finds_held_out_pictures() -> None:
    recall = held_out_recall(DEMO / "teacher", HELD_OUT)
    assert recall[10] > 0.95  # chance is 0.02
    assert recall[1] > 0.8  # chance is 0.002


@pytest.mark.slow
def test_teacher_knows_which_colour_is_whose_and_which_thing_is_where() -> None:
    scenes = list(itertools.islice(draw_scenes(), 200))
    views = encode(scenes, f"local-dir:{DEMO / 'teacher'}", None, None)["teacher"]
    shares = binding(views)
    assert min(shares["colour"]) > 0.95  # chance is 0.5
    assert min(shares["place"]) > 0.95


def test_teacher_loads_by_its_folder_in_full_precision() -> None:
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{DEMO / 'teacher'}")
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert preprocess(draw_picture(0, WORLD).image).shape == (3, 64, 64)


@pytest.mark.slow
def test_no_text_of_the_world_is_too_long_for_the_teacher(sentences: list[str]) -> None:
    tokenizer = open_clip.get_tokenizer(f"local-dir:{DEMO / 'teacher'}")
    captions = [text for index in range(400) for text in draw_picture(index, WORLD).captions]
    last = tokenizer(captions + sentences[:2000])[:, -1]
    assert (last == 0).all()  # padding to the end: nothing was cut off


def test_the_files_are_small_and_their_weights_in_half_precision() -> None:
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) < 10e6
    for name in ("teacher/open_clip_model.safetensors", "student/model.safetensors"):
        with safe_open(DEMO / name, "pt") as weights:
            kinds = {weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118
        assert kinds <= {"F16", "I64"}, name


def test_student_loads_as_plain_transformers_in_full_precision() -> None:
    model = AutoModel.from_pretrained(DEMO / "student")
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "student")
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    tokens = tokenizer(["a small red circle above a blue square"], return_tensors="pt")
    assert model.eval()(**tokens).last_hidden_state.shape[1:] == (10, 128)


def test_any_english_text_is_spelt_out() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "student")
    text = "Naïve QUANTUM chromodynamics (1973) isn't cheap: it costs $3.50 & more; see [4]!"
    assert tokenizer.unk_token not in tokenizer.tokenize(text)
    assert tokenizer.tokenize("two rhombuses") == ["two", "rhombuses"]


@pytest.mark.integration
def test_kept_vocabulary_is_the_one_of_the_world(sentences: list[str]) -> None:
    built = build_tokenizer(sentences)
    for name in ("teacher", "student"):
        assert AutoTokenizer.from_pretrained(DEMO / name).get_vocab() == built.get_vocab()


def test_teacher_learns_from_train_scenes_and_their_exchanged_relatives() -> None:
    scenes = draw_families(200, ("change", "place", "colour"), generator(0, 0, 0))
    assert {split_of(scene.combination) for scene in scenes} == {"train"}
    families = [scenes[start : start + 4] for start in range(0, len(scenes), 4)]
    assert all(scene not in relatives for scene, *relatives in families)
    related = [family for family in families if family[0].relation]
    assert len(related) > 100
    assert all(family[2] == exchange(family[0], "place") for family in related)
    assert sum(family[3] == exchange(family[0], "colour") for family in related) > 50


def test_recall_counts_texts_whose_image_is_near_enough() -> None:
    images = torch.eye(4)
    texts = torch.nn.functional.normalize(
        torch.tensor([[3.0, 1, 0, 0], [3, 1, 0, 0], [3, 2, 1, 0], [3, 2, 1, 0.5]])
    )
    assert [recall_at(k, images, texts) for k in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.integration
def test_a_tiny_rebuild_gives_the_same_layout_and_equal_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentences: list[str]
) -> None:
    monkeypatch.setattr(
        "pipeline.download.scenes.demo.rebuild.make_sentences", lambda _world: sentences
    )
    monkeypatch.setattr("pipeline.download.scenes.demo.rebuild.HELD_OUT", 20)
    tiny = {"steps": 2, "families": 2}
    for name in "ab":
        build_demo(
            tmp_path / name,
            TeacherRecipe(lessons=tuple(replace(one, **tiny) for one in TeacherRecipe().lessons)),
            StudentRecipe(steps=2, batch_size=4),
        )
    made = {path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*")}
    assert made == {path.relative_to(DEMO) for path in DEMO.rglob("*.*")} - {Path("README.md")}
    for path in made:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes(), path
    config = json.loads((tmp_path / "a/teacher/open_clip_config.json").read_text())
    assert config == json.loads((DEMO / "teacher/open_clip_config.json").read_text())
