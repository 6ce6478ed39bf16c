"""The command: what it shows and frees, and that nothing else makes the teacher work."""

import json
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from pipeline.download.records import read_pairs, read_sentences
from pipeline.features.store import read_features
from pipeline.features.teacher import Teacher
from pipeline.params.block import load_params
from pipeline.params.schema import Params
from tests.conftest import ROOT, TINY, assert_clear_error, invoke, merge, write_params

SMALL = merge(TINY, {"download": {"scenes": {"images": 100, "sentences": 100}}})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs and their features."""
    folder = tmp_path_factory.mktemp("made")
    write_params(folder, SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("download")
        run("features")
    return folder


@pytest.fixture
def scratch(made: Path, tmp_path: Path, monkeypatch) -> Path:
    """A copy of it, which is the current folder."""
    shutil.copytree(made, tmp_path / "run", symlinks=True)
    monkeypatch.chdir(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def calls(monkeypatch) -> Counter[str]:
    """Counts what any teacher encodes, but for its probe."""
    counted: Counter[str] = Counter()
    for name in ("encode_images", "encode_tokens", "encode_captions"):
        whole = getattr(Teacher, name)

        def counting(self, *arguments, whole=whole, name=name):
            counted[name] += len(arguments[-1])
            return whole(self, *arguments)

        monkeypatch.setattr(Teacher, name, counting)
    probe = Teacher.probe

    def uncounted(self):
        before = counted.copy()
        features = probe(self)
        counted.clear()
        counted.update(before)
        return features

    monkeypatch.setattr(Teacher, "probe", uncounted)
    return counted


def run(stage: str, *arguments: str) -> str:
    result = invoke(stage, *arguments)
    assert result.exit_code == 0, (stage, result.output, result.exception)
    return result.stdout


def test_no_stage_after_features_can_make_the_teacher_work():
    """They do not import it: tests/test_dvc_yaml.py verifies that deps list every import."""
    stages = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text())["stages"]
    assert stages["features"]["params"] == ["teacher", "features"]
    for stage in ("train", "index"):
        assert not {"pipeline/features", "pipeline/features/teacher.py"} & set(
            stages[stage]["deps"]
        )
    assert "--with" not in stages["evaluate"]["cmd"]  # `--with mteb` alone reads pictures


def test_the_layout_of_older_params_is_said_to_be_removed(scratch):
    write_params(scratch, SMALL, {"features": {"layout": "virtual"}})
    assert_clear_error(invoke("features"), "features.layout", "removed")


def test_sizes_and_limits_run_the_stage_without_the_teacher(scratch, calls):
    before = Path("data/features.h5").read_bytes()
    sizes = {"batch_size": 7, "workers": 0, "shard_rows": 64, "max_rejected": 0.5}
    write_params(scratch, SMALL, {"features": sizes})
    run("features")
    assert not calls
    assert Path("data/features.h5").read_bytes() == before
    metrics = json.loads(Path("reports/features.json").read_text())
    assert metrics["images"] == 100
    assert json.loads(Path("reports/times/features.json").read_text())["images_encoded"] == 0
    shutil.rmtree("data/store")
    run("features")
    assert calls["encode_images"] == metrics["images"] - duplicates()


def test_rejected_rows_are_listed_before_the_stage_fails(scratch, monkeypatch):
    """All of them, also where a list of an earlier run is there."""
    assert len(pd.read_csv("reports/rejected.csv")) == 0
    with zipfile.ZipFile("data/pairs/images.zip") as archive:
        pictures = {name: archive.read(name) for name in archive.namelist()}
    broken = list(pictures)[::8]
    with zipfile.ZipFile("data/pairs/images.zip", "w") as archive:
        for name, content in pictures.items():
            archive.writestr(name, b"<html></html>" if name in broken else content)
    result = invoke("features")
    assert_clear_error(result, f"{len(broken)} of 100 images were rejected")
    assert_clear_error(result, "reports/rejected.csv lists them all")
    listed = pd.read_csv("reports/rejected.csv")
    assert listed["member"].tolist() == broken
    assert set(listed["reason"]) == {"unreadable"}


def test_imported_vectors_take_the_place_of_the_teacher(scratch, calls):
    with h5py.File("data/features.h5") as file:
        before = {name: file[name][:] for name in ("image/features", "caption/features")}
        for kind in ("image", "caption"):
            np.save(f"{kind}.npy", before[f"{kind}/features"])
            np.save(f"{kind}_ids.npy", file[f"{kind}/ids"][:])
    files = {f"{kind}{part}s": f"{kind}{part and '_ids'}.npy" for kind in ("image", "caption")
             for part in ("", "_row")}  # fmt: skip
    named = {"teacher": {"model": "imported:demo"}}
    write_params(scratch, SMALL, named)
    assert_clear_error(invoke("features"), "features.import.images", "go together")
    write_params(scratch, SMALL, named, {"features": {"import": files}},
                 {"evaluate": {"tasks": ["sts", "retrieval"]}})  # fmt: skip
    run("features")
    with h5py.File("data/features.h5") as file:
        assert all(np.array_equal(file[name][:], rows) for name, rows in before.items())
    run("baselines")
    scores = pd.read_csv("reports/baselines.csv")
    assert set(scores[scores["system"] == "teacher"]["part"]) == {"retrieval"}
    assert not calls


def duplicates() -> int:
    """Rendered pictures that are equal to an earlier one."""
    with zipfile.ZipFile("data/pairs/images.zip") as archive:
        contents = [archive.read(name) for name in archive.namelist()]
    return len(contents) - len(set(contents))


def test_a_swapped_weight_file_under_the_same_name_is_noticed(scratch, calls):
    copy = shutil.copytree(ROOT / "data/demo/teacher", scratch / "teacher")
    write_params(scratch, SMALL, {"teacher": {"model": "local-dir:teacher"}})
    run("features")
    assert not calls  # the same weights by another name
    weights = load_file(copy / "open_clip_model.safetensors")
    weights["visual.attnpool.c_proj.bias"] += 0.5
    save_file(weights, copy / "open_clip_model.safetensors")
    assert_clear_error(invoke("train"), "the files in its folder changed", "dvc repro -f features")
    run("features")
    assert calls["encode_images"] > 70
    assert len(json.loads(run("features", "--status", "--json"))) == 2


def test_the_cache_is_shown_and_freed(scratch):
    [shown] = json.loads(run("features", "--status", "--json"))
    assert shown["model"] == SMALL["teacher"]["model"]
    assert 70 < shown["images"] <= 100
    assert shown["bytes"] == sum(path.stat().st_size for path in Path("data/store").rglob("*.h5"))
    table = run("features", "--status")
    assert shown["name"][:8] in table
    assert_clear_error(invoke("features", "--teacher", "x"), "without --prune")
    assert_clear_error(invoke("features", "--prune", "--teacher", "zzz"), "zzz", "--status")
    assert json.loads(run("features", "--prune", "--teacher", shown["name"], "--json")) == [shown]
    assert json.loads(run("features", "--status", "--json")) == []
    assert Path("data/features.h5").is_file()


def save_encoder(folder: Path) -> str:
    """A random BERT that says, unlike the demo's, how it pools."""
    config = BertConfig(vocab_size=271, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=64, max_position_embeddings=16)  # fmt: skip
    torch.manual_seed(3)
    BertModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY["student"]["encoder"]).save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    settings = {"pooling_mode_cls_token": True, "word_embedding_dimension": 32}
    (folder / "1_Pooling/config.json").write_text(json.dumps(settings))
    return str(folder)


def cosines_of(name: str, texts: list[str], pooling: str, length: int) -> np.ndarray:
    """By plain transformers, one text at a time."""
    model = AutoModel.from_pretrained(name).eval()
    tokenizer = AutoTokenizer.from_pretrained(name)
    vectors = []
    for text in texts:
        tokens = tokenizer(text, truncation=True, max_length=length, return_tensors="pt")
        with torch.inference_mode():
            states = model(**tokens).last_hidden_state[0].double()
        vectors.append((states[0] if pooling == "cls" else states.mean(dim=0)).numpy())
    unit = np.stack([vector / np.sqrt((vector**2).sum()) for vector in vectors])
    return unit @ unit.T


def test_a_text_teacher_is_the_weighted_average_of_its_encoders(scratch, calls):
    plain = Path("data/features.h5").read_bytes()
    other = save_encoder(scratch / "other")
    names = [TINY["student"]["encoder"], other]
    text = {"encoders": names, "pooling": "mean", "weights": [1, 3]}
    write_params(scratch, SMALL, {"teacher": {"text": text}})
    run("features")
    assert not calls  # of the CLIP teacher
    params, corpus = load_params(Path("params.yaml"), Params), read_pairs(Path("data/pairs"))
    sentences = read_sentences(Path("data/text"))
    features = read_features(
        Path("data/features.h5"), params.teacher, corpus.fingerprint(), sentences
    )
    captions = corpus.captions.set_index("caption_id")["caption"][features.caption_ids].tolist()
    assert features.caption_text.shape == (len(captions), 128 + 32)
    assert features.sentence_text.shape == (100, 128 + 32)
    found = np.concatenate([features.caption_text[:15], features.sentence_text[-15:]])
    texts = captions[:15] + sentences[-15:]
    expected = 0.25 * cosines_of(names[0], texts, "mean", 256)
    expected += 0.75 * cosines_of(other, texts, "cls", 16)
    np.testing.assert_allclose(found.astype(np.float64) @ found.T, expected, atol=2e-3)
    times = json.loads(Path("reports/times/features.json").read_text())
    assert times["texts_encoded"] == 2 * len({*captions, *sentences})
    run("features")
    assert json.loads(Path("reports/times/features.json").read_text())["texts_encoded"] == 0
    assert len(json.loads(run("features", "--status", "--json"))) == 3
    (scratch / "other/1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": true}')
    assert_clear_error(invoke("train"), "the files in its folders changed", "dvc repro -f features")
    write_params(scratch, SMALL, {"teacher": {"text": text | {"encoders": []}}})
    assert_clear_error(invoke("features"), "weights must be one for each of the 0 encoders")
    write_params(scratch, SMALL, {"teacher": {"text": {"encoders": names}}})
    assert_clear_error(invoke("features"), "does not say how it pools", "teacher.text.pooling")
    write_params(scratch, SMALL)
    assert_clear_error(invoke("train"), "another text teacher", "instead of none")
    run("features")
    assert Path("data/features.h5").read_bytes() == plain


def test_the_cache_may_be_in_another_place(scratch, monkeypatch, calls):
    monkeypatch.setenv("KDMCSE_STORE", str(scratch / "elsewhere"))
    run("features")
    assert calls["encode_images"] > 70
    assert list((scratch / "elsewhere").glob("*/teacher.json"))
