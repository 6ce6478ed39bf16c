"""The command: what it shows and frees, and that nothing else makes the teacher work."""

import json
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from pipeline.features.teacher import Teacher
from tests.conftest import ROOT, TINY, assert_clear_error, invoke, write_params


@pytest.fixture
def scratch(tiny_run: Path, tmp_path: Path, monkeypatch) -> Path:
    """A copy of the tiny run, which is the current folder."""
    shutil.copytree(tiny_run, tmp_path / "run", symlinks=True)
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


def test_parameters_after_the_teacher_make_it_do_nothing(scratch, calls):
    changes = {
        "loss": {"margin": 0.2, "temperature": 0.1, "filter": {"kind": "cosine", "threshold": 0.5}},
        "train": {"learning_rate": 2e-4, "pairs": {"hard_negatives": 2}},
        "student": {"grounding_dim": 64, "pooling": "cls"},
        "evaluate": {"tasks": ["retrieval"], "seed": 3},
        "index": {"batch_size": 64},
    }
    write_params(scratch, TINY, changes)
    for stage in ("train", "evaluate", "index"):
        run(stage)
    assert not calls


def test_sizes_and_limits_run_the_stage_without_the_teacher(scratch, calls):
    before = Path("data/features.h5").read_bytes()
    sizes = {"batch_size": 7, "workers": 0, "shard_rows": 64, "max_rejected": 0.5}
    write_params(scratch, TINY, {"features": sizes})
    run("features")
    assert not calls
    assert Path("data/features.h5").read_bytes() == before
    metrics = json.loads(Path("reports/features.json").read_text())
    assert metrics["images"] == 300
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
    assert_clear_error(result, f"{len(broken)} of 300 images were rejected")
    assert_clear_error(result, "reports/rejected.csv lists them all")
    listed = pd.read_csv("reports/rejected.csv")
    assert listed["member"].tolist() == broken
    assert set(listed["reason"]) == {"unreadable"}


def duplicates() -> int:
    """Rendered pictures that are equal to an earlier one."""
    with zipfile.ZipFile("data/pairs/images.zip") as archive:
        contents = [archive.read(name) for name in archive.namelist()]
    return len(contents) - len(set(contents))


def test_a_swapped_weight_file_under_the_same_name_is_noticed(scratch, calls):
    copy = shutil.copytree(ROOT / "data/demo/teacher", scratch / "teacher")
    write_params(scratch, TINY, {"teacher": {"model": "local-dir:teacher"}})
    run("features")
    assert not calls  # the same weights by another name
    weights = load_file(copy / "open_clip_model.safetensors")
    weights["visual.attnpool.c_proj.bias"] += 0.5
    save_file(weights, copy / "open_clip_model.safetensors")
    assert_clear_error(invoke("train"), "the files in its folder changed", "dvc repro -f features")
    run("features")
    assert calls["encode_images"] > 200
    assert len(json.loads(run("features", "--status", "--json"))) == 2


def test_the_cache_is_shown_and_freed(scratch):
    [shown] = json.loads(run("features", "--status", "--json"))
    assert shown["model"] == TINY["teacher"]["model"]
    assert 200 < shown["images"] <= 300
    assert shown["bytes"] == sum(path.stat().st_size for path in Path("data/store").rglob("*.h5"))
    table = run("features", "--status")
    assert shown["name"][:8] in table
    assert_clear_error(invoke("features", "--prune", "--teacher", "zzz"), "zzz", "--status")
    assert json.loads(run("features", "--prune", "--teacher", shown["name"], "--json")) == [shown]
    assert json.loads(run("features", "--status", "--json")) == []
    assert Path("data/features.h5").is_file()


def test_a_teacher_is_named_for_pruning_only(scratch):
    assert_clear_error(invoke("features", "--teacher", "x"), "without --prune")


def test_another_place_for_the_cache(scratch, monkeypatch, calls):
    monkeypatch.setenv("KDMCSE_STORE", str(scratch / "elsewhere"))
    run("features")
    assert calls["encode_images"] > 200
    assert list((scratch / "elsewhere").glob("*/teacher.json"))
