"""The recipes of docs/cookbook.md run as they are written; what docs/moving.md names exists."""

import functools
import importlib
import itertools
import json
import re
import shlex
import shutil
import zipfile
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import pytest
import typer
from PIL import Image
from ruamel.yaml import YAML
from typer.testing import Result

from pipeline.download.records import read_pairs, read_sentences
from pipeline.evaluate import with_mteb
from pipeline.features.store import Features, read_features, read_identity
from pipeline.params.block import dotted, load_params
from pipeline.params.changes import apply_changes
from pipeline.params.schema import Params
from tests.conftest import ROOT, TINY, assert_clear_error, invoke, merge, write_params
from tests.download.conftest import image_bytes
from tests.download.test_webdataset import sample, write_shard
from tests.features.tiny_teachers import SIDE, TEXT, VISION, save_open_clip

PAGES = {name: (ROOT / f"docs/{name}.md").read_text() for name in ("cookbook", "moving")}
RECIPES = dict(re.findall(r"^## (.+)\n((?:.*\n)+?)(?=## |\Z)", PAGES["cookbook"], re.MULTILINE))
OWN = "Your own photos in ten minutes"
CLIP = "Tune the text side of a frozen CLIP"
TEACHER = "Replace the teacher by one of today"
TEXT_TEACHER = "Add a sentence encoder as a second teacher"
MILLION = "A million pairs from img2dataset"
IMPORT = "Vectors that others computed"
MTEB = "Score any model with mteb and ours"
ROUTER = "Hand the student to sentence-transformers, with pictures"

QUICK = {
    "download": {"splits": {"test": 0.2}},
    "train": {"pair_every": "auto"},
    "evaluate": {"tasks": ["sts", "retrieval"], "resamples": 100},
}
OF_REPRO = ("download", "features", "train", "evaluate", "index")
COUNT = 60
"""Pictures of one's own."""
CAPTIONS = [f"dog number {number} on a beach" for number in range(COUNT)]

load_yaml = YAML(typ="safe", pure=True).load


def commands(text: str) -> list[list[str]]:
    """Our commands in lines of code and between backticks, as words; shell operators end one."""
    found = re.findall(
        r"((?:python -m stages\.\w|dvc (?:exp run|repro)).*?)(?=`|$|&&| [|<>] )",
        re.sub(r" \\\n +", " ", text),
        re.MULTILINE,
    )
    return [shlex.split(command, comments=True) for command in found]


def settings(words: list[str]) -> dict[str, object]:
    """What `-S` sets, by dotted key."""
    given = [word for before, word in itertools.pairwise(words) if before == "-S"]
    return {key: load_yaml(value) for key, _, value in (one.partition("=") for one in given)}


def cook(title: str, *replaced: tuple[str, object], stages: tuple[str, ...] = OF_REPRO) -> Result:
    """Run a recipe in the current folder, `replaced` in its text; the last command's result."""
    text = RECIPES[title]
    for old, new in replaced:
        assert old in text, old
        text = text.replace(old, str(new))
    for block in re.findall(r"```yaml\n(.+?)```", text, re.DOTALL):
        change_params(load_yaml(block))
    shown = commands(re.sub(r"```.+?```", "", text, flags=re.DOTALL))
    results = [one for words in shown for one in obey(words, stages)]
    return results[-1]


def obey(words: list[str], stages: tuple[str, ...]) -> list[Result]:
    """Run one command in this process; dvc's as the stages that it would run."""
    if words[0] == "dvc":
        change_params(nested(settings(words)))
        return [run(stage) for stage in stages]
    stage = words[2].removeprefix("stages.")
    return [] if stage == "app" else [run(stage, *words[3:])]


def change_params(changes: dict) -> None:
    write_params(Path(), merge(load_yaml(Path("params.yaml")), changes))


def nested(changes: dict[str, object]) -> dict:
    """Blocks of what is given by dotted key."""
    blocks: dict = {}
    for key, value in changes.items():
        *above, name = key.split(".")
        functools.reduce(lambda block, one: block.setdefault(one, {}), above, blocks)[name] = value
    return blocks


def run(*words: str) -> Result:
    result = invoke(*words)
    assert result.exit_code == 0, (words, result.output, result.exception)
    return result


def run_code(title: str, *replaced: tuple[str, object]) -> dict:
    """The names that a recipe's Python has in the end."""
    (code,) = re.findall(r"```python\n(.+?)```", RECIPES[title], re.DOTALL)
    for old, new in replaced:
        assert old in code
        code = code.replace(old, str(new))
    names: dict = {}
    exec(code, names)  # noqa: S102
    return names


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder: the default project, of small size."""
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, TINY, QUICK)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/demo").symlink_to(ROOT / "data/demo")
    return tmp_path


def features_of(folder: Path) -> Features:
    params = load_params(folder / "params.yaml", Params)
    return read_features(
        folder / "data/features.h5", params.teacher, read_pairs(folder / "data/pairs").fingerprint()
    )


def hits_of(result: Result) -> pd.DataFrame:
    return pd.DataFrame(json.loads(result.stdout.splitlines()[-1])["hits"])


def write_photos(folder: Path, *, with_text: bool) -> None:
    (folder / "photos").mkdir()
    for number, caption in enumerate(CAPTIONS):
        (folder / f"photos/{number}.png").write_bytes(image_bytes(number))
        if with_text:
            (folder / f"photos/{number}.txt").write_text(caption)
    rows = [f"{number}.png,{caption}" for number, caption in enumerate(CAPTIONS)]
    (folder / "captions.csv").write_text("\n".join(["image,caption", *rows]))


REAL = [
    ("ViT-B-32", TINY["teacher"]["model"]),
    ("teacher.pretrained=openai", "teacher.pretrained=null"),
    ("bert-base-uncased", ROOT / "data/demo/student"),
]


@pytest.mark.parametrize("with_text", [pytest.param(False, marks=pytest.mark.slow), True])
def test_own_photos(folder, with_text):
    write_photos(folder, with_text=with_text)
    table = "" if with_text else folder / "captions.csv"
    own = [("/data/photos", folder / "photos"), ("/data/captions.csv", table)]
    if with_text:  # what both ways share was run by the other
        result = cook(OWN, *own, *REAL, ("dvc repro", ""), ("python -m stages.search", ""),
                      ("dvc exp run", ""))  # fmt: skip
        assert f"pairs: folder: images {COUNT}, captions {COUNT}" in result.stdout
        assert f"{CAPTIONS[0]}" in result.stdout
        return
    cook(OWN, *own, *REAL)
    page = (folder / "page.html").read_text()
    assert page.count("<img") == 10
    hits = hits_of(run("search", "a dog on a beach", "--images"))
    assert set(hits["text"]) <= {*CAPTIONS}
    assert load_params(folder / "params.yaml", Params).train.head_learning_rate == 2e-4


@pytest.mark.integration
def test_the_text_side_of_a_frozen_clip(folder):
    query = "a small red circle"
    (folder / "texts.txt").write_text(f"{query}\n")
    for colour in ("red", "blue"):
        Image.new("RGB", (64, 64), colour).save(f"{colour}.png")
    hits = hits_of(cook(CLIP))
    names = run_code(CLIP)
    assert names["scores"].shape == (1, 2)
    features = features_of(folder)
    assert names["texts"].shape[1] == names["images"].shape[1] == features.images.shape[1]
    rows = np.searchsorted(features.image_ids, hits["id"])
    found = unit(features.images[rows].astype(np.float32))
    np.testing.assert_allclose(found @ names["texts"][0], hits["score"], atol=1e-5)
    assert read_sentences(Path("data/text")) == []


def tables(title: str) -> list[list[str]]:
    return [
        [cell.strip().strip("`") for cell in row.split("|")]
        for row in re.findall(r"^\| (`.+) \|$", RECIPES[title], re.MULTILINE)
    ]


SMALL = {"vit_base_patch16_siglip_224": "test_vit", "fastvit_mci4": "test_efficientnet"}
"""Image towers of timm, and its own for tests, of the same kind."""


def shrunken(model: str, folder: Path) -> str:
    """A teacher of open_clip's architecture, small and with random weights."""
    config = open_clip.get_model_config(model)
    vision, text = config.pop("vision_cfg"), config.pop("text_cfg")
    if name := vision.get("timm_model_name"):
        vision |= {"timm_model_name": SMALL[name], "image_size": SIDE}
        config["embed_dim"] = 64 if vision["timm_proj"] == "none" else 24
    else:
        vision, config["embed_dim"] = VISION, 24
    kept = {key: text[key] for key in text if key not in {"hf_tokenizer_name", "tokenizer_kwargs"}}
    return save_open_clip(folder, text=kept | TEXT, vision_cfg=vision, **config)


@pytest.mark.integration
@pytest.mark.parametrize("row", tables(TEACHER)[1:], ids=lambda row: row[0])
def test_a_teacher_of_today(folder, monkeypatch, row):
    name, model, pretrained, width, pixels, tokens, _ = row
    config = open_clip.get_model_config(model)
    assert int(width) == config["embed_dim"]
    assert int(pixels) == config["vision_cfg"]["image_size"]
    assert int(tokens) == config["text_cfg"]["context_length"]
    cook(TEACHER, ("flickr8k best", "demo best"), ("siglip2", name), ("MobileCLIP2-S4", model),
         ("dfndr2b", pretrained), stages=())  # fmt: skip
    teacher = load_params(folder / "params.yaml", Params).teacher
    assert (teacher.model, teacher.pretrained) == (model, pretrained)
    small = {"model": shrunken(model, folder / "teacher"), "pretrained": None}
    write_params(folder, TINY, {"teacher": small, "download": {"scenes": {"images": 100}}})
    for stage in ("download", "features"):
        run(stage)
    assert read_identity(folder / "data/features.h5").model == small["model"]
    assert len(features_of(folder).images) == 100


@pytest.mark.integration
def test_a_sentence_encoder_as_a_second_teacher(folder):
    change_params({"loss": {"distillation": {"weight": 1.0}}})  # as by default
    here = f"[{ROOT / 'data/demo/student'}]' -S teacher.text.pooling=mean"
    cook(TEXT_TEACHER, ("[sentence-transformers/all-MiniLM-L6-v2]'", here), stages=OF_REPRO[:3])
    counts = json.loads(Path("reports/features.json").read_text())
    assert (counts["text_dim"], counts["sentences"]) == (128, 400)
    curves = pd.read_csv("reports/train/0/curves.csv")
    assert {"loss_distillation", "loss_image"} <= set(curves["curve"])
    assert json.loads(Path("reports/train/0/metrics.json").read_text())["paired_share"] == 0.5


@pytest.fixture
def shards(folder) -> Path:
    """Two shards, as img2dataset writes them."""
    for shard in range(2):
        rows = range(shard, COUNT, 2)
        members = [sample(f"{row:09d}", CAPTIONS[row]) for row in rows]
        write_shard(folder / f"cc3m/{shard:05d}.tar", *members)
    return folder / "cc3m"


@pytest.mark.slow
def test_a_million_pairs(folder, shards):
    (shards / "00002.tar").write_bytes(b"damaged" * 1000)
    hits = hits_of(cook(MILLION, ("/data/cc3m", shards), ("{00000..00099}", "{00000..00002}")))
    assert {name.removesuffix(".jpg") for name in hits["member"]} <= {
        f"{row:09d}" for row in range(COUNT)
    }
    counts = json.loads(Path("reports/download.json").read_text())
    assert (counts["pairs"]["captions"], counts["pairs"]["shards_skipped"]) == (COUNT, 1)
    assert counts["text"].get("sentences", 0) == 0


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.integration
def test_vectors_that_others_computed(folder, shards):
    images, noise = np.random.default_rng(0).standard_normal((2, COUNT, 16))
    sides = {"img_emb": unit(images), "text_emb": unit(images + noise / 4)}
    for name, vectors in sides.items():
        (folder / "embeddings" / name).mkdir(parents=True)
        np.save(folder / f"embeddings/{name}/{name}_0.npy", vectors.astype(np.float16))
    (folder / "embeddings/metadata").mkdir()
    keys = [f"{row:09d}" for row in range(COUNT)]
    about = pd.DataFrame({"image_path": keys, "caption": CAPTIONS})
    about.to_parquet(folder / "embeddings/metadata/metadata_0.parquet")
    places = [("/data/cc3m", shards), ("/data/embeddings", folder / "embeddings")]
    assert len(hits_of(cook(IMPORT, *places, ("{00000..00099}", "{00000..00001}")))) == 10
    members = read_pairs(Path("data/pairs")).images["member"]
    expected = sides["img_emb"][[int(member[:9]) for member in members]].astype(np.float16)
    np.testing.assert_array_equal(features_of(folder).images, expected)
    (folder / "new.png").write_bytes(image_bytes(7))
    refused = invoke("search", "--by-image", "new.png")
    assert_clear_error(refused, "imported:ViT-B-32 / laion2b_s34b_b79k")


@pytest.mark.integration
def test_any_model_by_mteb_and_ours(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(with_mteb, "is_offline_mode", lambda: True)
    shutil.copytree(tiny_run, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "data/demo/student", "minilm")
    model = "minilm --pooling mean"
    cook(MTEB, ("mteb-sts", "scenes"), ("sentence-transformers/all-MiniLM-L6-v2", model))
    report = json.loads(Path("mine.json").read_text())
    assert len(report["systems"]) == 2
    for name in ("minilm.json", "mine.json"):
        about = json.loads(Path(name).read_text())["systems"][0]["about"]
        assert about["mteb"]
        assert all(abs(one["difference"]) <= with_mteb.LIMIT for one in about["mteb"])
    assert list(Path("reports/mteb").rglob("SCENES-local.json"))


@pytest.mark.integration
def test_a_student_with_pictures_for_sentence_transformers(folder):
    teacher = save_open_clip(folder / "teacher")
    places = [("ViT-B-32", teacher), ("data/router", folder / "router")]
    stages = ("download", "features", "train", "baselines", "evaluate", "summary", "index")
    cook(ROUTER, *places, ("teacher.pretrained=openai", "teacher.pretrained=null"), stages=stages)
    hits = hits_of(run("search", "a red circle", "--images", "-k", "2"))
    with zipfile.ZipFile("data/pairs/images.zip") as archive:
        for name, member in zip(("red", "blue"), hits["member"], strict=True):
            Path(f"{name}.png").write_bytes(archive.read(member))
    scores = run_code(ROUTER, places[1])["scores"]
    assert scores.shape == (2, 2)
    np.testing.assert_allclose(scores[0], hits["score"], atol=2e-4)


def test_every_recipe_is_run_and_short():
    assert set(RECIPES) == {OWN, CLIP, TEACHER, TEXT_TEACHER, MILLION, IMPORT, MTEB, ROUTER}
    for title, text in RECIPES.items():
        lines = re.findall(r"^(?:    .*|```\w+\n(?:.*\n)+?```)$", text, re.MULTILINE)
        assert 0 < sum(len(line.splitlines()) for line in lines) <= 25, title


SHOWN = [words for text in PAGES.values() for words in commands(text)]


def test_a_command_that_is_shown_parses():
    for words in SHOWN:
        if words[0] == "dvc":
            assert_valid(settings(words))
            continue
        stage = words[2].removeprefix("stages.")
        command = typer.main.get_command(importlib.import_module(f"stages.{stage}").app)
        command.make_context(stage, words[3:])


def assignments(row: str) -> dict[str, object]:
    blocks = "|".join(Params.model_fields)
    found = re.findall(rf"`((?:{blocks})\.[\w.]+)=([^`]+)`", row)
    return {key: load_yaml(value) for key, value in found}


def test_settings_of_a_row_are_valid_together():
    for row in re.findall(r"^\| .+=.+ \|$", PAGES["moving"], re.MULTILINE):
        assert_valid(assignments(row))


def assert_valid(changes: dict[str, object]) -> None:
    """Known keys, with values that params.yaml may have."""
    default = Params().model_dump()
    assert changes.keys() <= dict(dotted(default)).keys()
    Params.model_validate(apply_changes(default, changes))


def test_wrong_commands_and_settings_are_seen():
    """The tests above can fail."""
    ((_, _, stage, *words), more) = commands("`python -m stages.search x --imags` `dvc repro`")
    assert (stage, words, more) == ("stages.search", ["x", "--imags"], ["dvc", "repro"])
    for key in ("loss.margn", "loss.margin"):
        with pytest.raises((AssertionError, ValueError)):
            assert_valid(assignments(f"| `{key}=9` |"))
