"""The command: what it shows and frees, and that nothing else makes the teacher work."""

import json
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from pipeline.features.teacher import Teacher
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
    for stage in ("train", "evaluate", "index"):
        assert not {"pipeline/features", "pipeline/features/teacher.py"} & set(
            stages[stage]["deps"]
        )


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
    assert_clear_error(invoke("features", "--prune", "--teacher", "zzz"), "zzz", "--status")
    assert json.loads(run("features", "--prune", "--teacher", shown["name"], "--json")) == [shown]
    assert json.loads(run("features", "--status", "--json")) == []
    assert Path("data/features.h5").is_file()


def test_a_teacher_is_named_for_pruning_only(scratch):
    assert_clear_error(invoke("features", "--teacher", "x"), "without --prune")


def test_the_cache_may_be_in_another_place(scratch, monkeypatch, calls):
    monkeypatch.setenv("KDMCSE_STORE", str(scratch / "elsewhere"))
    run("features")
    assert calls["encode_images"] > 70
    assert list((scratch / "elsewhere").glob("*/teacher.json"))
