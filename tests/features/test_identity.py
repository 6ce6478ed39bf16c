"""The fingerprint changes with whatever changes a feature, and with nothing else."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPModel

from pipeline.core.errors import ModelError
from pipeline.features.identity import TeacherIdentity, folder_of, hash_teacher_source
from pipeline.features.teacher import Teacher
from pipeline.params.teacher import TeacherParams
from tests.conftest import ROOT, slow_after
from tests.features.tiny_teachers import VISION, make_tokenizer, save_clip, save_open_clip

CPU = torch.device("cpu")
IDENTITY = TeacherIdentity(*(field.name for field in fields(TeacherIdentity)))


def identify(name: str | Path, precision: str = "auto") -> TeacherIdentity:
    return Teacher(TeacherParams(model=str(name)), CPU, precision).identity


def changed(first: TeacherIdentity, second: TeacherIdentity) -> set[str]:
    """The fields that differ, and whether the fingerprint does."""
    names = [*(field.name for field in fields(first)), "fingerprint"]
    return {name for name in names if getattr(first, name) != getattr(second, name)}


def test_the_fingerprint_is_independent_of_names_and_versions_only():
    names = {"model", "pretrained", "source", "library"}
    for field in fields(TeacherIdentity):
        other = replace(IDENTITY, **{field.name: "other"})
        assert (other.fingerprint == IDENTITY.fingerprint) == (field.name in names), field.name


@pytest.fixture(scope="module")
def open_clip_teacher(tmp_path_factory) -> TeacherIdentity:
    return identify(save_open_clip(tmp_path_factory.mktemp("open_clip")))


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return Path(save_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="module")
def clip_teacher(clip) -> TeacherIdentity:
    return identify(f"transformers:{clip}")


def test_all_fields_are_filled(open_clip_teacher, clip_teacher):
    for identity in (open_clip_teacher, clip_teacher):
        empty = {field.name for field in fields(identity) if not getattr(identity, field.name)}
        assert empty == {"pretrained"}
        assert "0x" not in identity.preprocessing


def test_the_same_model_in_another_folder_is_the_same(tmp_path, open_clip_teacher, clip):
    again = identify(save_open_clip(tmp_path / "elsewhere"))
    assert changed(again, open_clip_teacher) == {"model"}
    copy = shutil.copytree(clip, tmp_path / "copy")
    assert changed(identify(f"transformers:{copy}"), identify(f"local-dir:{clip}")) == {"model"}


def test_the_same_model_saved_again_is_the_same(tmp_path, clip, clip_teacher):
    """Saving rewrites the configuration, with defaults and the name of the folder it came from."""
    copy = shutil.copytree(clip, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config |= {
        "transformers_version": "4.0.0",
        "_name_or_path": "somewhere",
        "torch_dtype": "float16",
    }
    (copy / "config.json").write_text(json.dumps(config))
    CLIPModel.from_pretrained(copy).save_pretrained(tmp_path / "again")
    for file in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copy(clip / file, tmp_path / "again")
    for folder in (copy, tmp_path / "again"):
        assert "fingerprint" not in changed(identify(f"transformers:{folder}"), clip_teacher)


@pytest.mark.parametrize(
    ("change", "fields_changed"),
    slow_after(
        4,
        [
            ({"quick_gelu": True}, {"architecture"}),
            ({"text": {"tokenizer_kwargs": {"clean": "canonicalize"}}}, {"tokenizer"}),
            ({"preprocess": {"mean": [0.5, 0.5, 0.5000001]}}, {"preprocessing", "architecture"}),
            ({"preprocess": {"interpolation": "bilinear"}}, {"preprocessing"}),
            ({"text": {"heads": 4}}, {"architecture"}),
            ({"vision_cfg": VISION | {"head_width": 32}}, {"architecture"}),
            ({"text": {"norm_kwargs": {"eps": 1e-4}}}, {"architecture"}),
            ({"text": {"pool_type": "eos", "eos_id": 49407}}, {"architecture"}),
            ({"text": {"tokenizer_kwargs": {"clean": "whitespace"}}}, {"tokenizer"}),
            ({"preprocess": {"std": [0.3, 0.3, 0.2]}}, {"preprocessing", "architecture"}),
            ({"preprocess": {"resize_mode": "squash"}}, {"preprocessing"}),
            ({"preprocess": {"fill_color": 7}}, {"preprocessing"}),
        ],
    ),
)
def test_a_setting_changes_its_own_field(tmp_path, open_clip_teacher, change, fields_changed):
    other = identify(save_open_clip(tmp_path, **change))
    expected = {"model", "source", "fingerprint"} | fields_changed
    assert changed(other, open_clip_teacher) == expected


def test_a_context_of_another_length_changes_model_and_tokenizer(tmp_path, open_clip_teacher):
    other = identify(save_open_clip(tmp_path, text={"context_length": 15}))
    assert {"architecture", "weights", "tokenizer"} <= changed(other, open_clip_teacher)


@pytest.mark.parametrize("place", [0.01, 0.999])
def test_every_byte_of_the_weights_counts(tmp_path, place):
    copy = shutil.copytree(ROOT / "data/demo/teacher", tmp_path / "copy")
    original = identify(f"local-dir:{copy}")
    weights = copy / "open_clip_model.safetensors"
    content = bytearray(weights.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    content[start + int(place * (len(content) - start))] ^= 0x01
    weights.write_bytes(bytes(content))
    found = changed(identify(f"local-dir:{copy}"), original)
    assert found == {"source", "weights", "fingerprint"}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_type_of_the_forward_pass_counts(clip, clip_teacher, precision):
    found = changed(identify(f"transformers:{clip}", precision), clip_teacher)
    assert found == {"dtype", "fingerprint"}
    assert identify(f"transformers:{clip}", "fp32") == clip_teacher


def test_settings_of_a_transformers_model_count(tmp_path, clip_teacher):
    for number, change in enumerate(({"act": "gelu"}, {"heads": 2}, {"eos": 2})):
        folder = save_clip(tmp_path / str(number), **change)
        found = changed(identify(f"transformers:{folder}"), clip_teacher)
        assert found >= {"architecture", "fingerprint"}
        assert "weights" not in found


def test_rules_of_a_transformers_tokenizer_count(tmp_path, clip, clip_teacher):
    copy = shutil.copytree(clip, tmp_path / "copy")
    make_tokenizer(lower=True).save_pretrained(copy)
    found = changed(identify(f"transformers:{copy}"), clip_teacher)
    assert found == {"model", "source", "tokenizer", "fingerprint"}


@pytest.mark.parametrize(
    ("key", "value"),
    [("image_mean", [0.5, 0.5, 0.5]), ("resample", 2), ("rescale_factor", 0.00392), ("size", 33)],
)
def test_numbers_of_an_image_processor_count(tmp_path, clip, clip_teacher, key, value):
    copy = shutil.copytree(clip, tmp_path / "copy")
    path = copy / "preprocessor_config.json"
    config = json.loads(path.read_text())
    config[key] = {"shortest_edge": value} if key == "size" else value
    path.write_text(json.dumps(config))
    found = changed(identify(f"transformers:{copy}"), clip_teacher)
    assert found == {"model", "source", "preprocessing", "fingerprint"}


def test_using_a_teacher_does_not_change_its_identity(clip, clip_teacher):
    teacher = Teacher(TeacherParams(model=f"transformers:{clip}"), CPU)
    teacher.encode_captions(["a cat", "a dog " * 30])
    assert np.isfinite(teacher.probe()).all()
    again = Teacher(TeacherParams(model=f"transformers:{clip}"), CPU)
    assert again.identity == teacher.identity == clip_teacher


_PRINT = """
import sys, torch
from pipeline.features.teacher import Teacher
from pipeline.params.teacher import TeacherParams
for name in sys.argv[1:]:
    print(Teacher(TeacherParams(model=name), torch.device("cpu")).identity.fingerprint)
"""


@pytest.mark.slow
def test_the_fingerprint_is_the_same_in_another_process(tmp_path, clip, clip_teacher):
    names = [save_open_clip(tmp_path), f"local-dir:{ROOT / 'data/demo/teacher'}"]
    expected = [clip_teacher.fingerprint, *(identify(name).fingerprint for name in names)]
    output = subprocess.run(
        [sys.executable, "-c", _PRINT, f"transformers:{clip}", *names],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": "1"},
    )
    assert output.stdout.split() == expected


def test_the_source_is_all_files_of_a_folder(tmp_path, clip):
    copy = shutil.copytree(clip, tmp_path / "copy")
    assert hash_teacher_source(f"local-dir:{copy}") == hash_teacher_source(f"transformers:{clip}")
    (copy / "NOTICE").write_text("a word")
    assert hash_teacher_source(f"local-dir:{copy}") != hash_teacher_source(f"transformers:{clip}")
    assert hash_teacher_source("ViT-B-32") == ""
    assert hash_teacher_source("transformers:org/name") == ""


def test_folders_are_distinguished_from_names_on_a_hub(tmp_path):
    assert folder_of(f"local-dir:{tmp_path}") == tmp_path
    assert folder_of(f"transformers:{tmp_path}") == tmp_path
    assert folder_of("transformers:org/name") is None
    assert folder_of("hf-hub:org/name") is None
    with pytest.raises(ModelError, match="does not exist"):
        folder_of(f"local-dir:{tmp_path}/none")
