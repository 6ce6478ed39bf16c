"""Mutated indexes, students and teachers: in place of each file of theirs, broken bytes.

Checksums notice most of it at once; where the folder is sealed again behind the damage, the
libraries themselves meet it.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.encoder import load_student
from pipeline.features.teacher import Teacher
from pipeline.params.teacher import TeacherParams
from pipeline.seal import seal
from pipeline.search import Searcher
from tests.faults.fuzz.runner import Target, account, run
from tests.faults.ledger import record, times
from tests.features.tiny_teachers import save_clip, save_open_clip

CPU = torch.device("cpu")
INDEX = [
    "manifest.json",
    "texts.faiss",
    "grounded.faiss",
    "images.faiss",
    "texts.parquet",
    "images.parquet",
    "query.onnx",
    "query.onnx.data",
    "tokenizer.json",
]
STUDENT = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
HEADS = ["heads.json", "heads.safetensors"]
CLIP = ["config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"]
OPEN_CLIP = ["open_clip_config.json", "open_clip_model.safetensors"]
TOKENS = (b"null", b"[]", b"{}", b"-1", b"1e9", b"99999999999", b'"x"', b"true", b"[" * 2000)


def broken(folder: Path, name: str, again: bool, use: Callable[[Path], object]) -> Target:
    """A target that puts the bytes in the place of one file of a copy of a folder."""

    def read(work: Path, content: bytes) -> None:
        copy = work / "copy"
        if not copy.exists():
            shutil.copytree(folder, copy)
        (copy / name).write_bytes(content)
        if again and (copy / "checksums.json").is_file():
            seal(copy / name)
        use(copy)

    where = f"{folder.name} {name}{' sealed again' if again else ''}"
    return Target(where, folder.name, [(folder / name).read_bytes()], read, TOKENS)


def check(target: Target, folder: Path, cases: int) -> None:
    kept = Path(os.environ.get("KDMCSE_FUZZ", folder))
    kept.mkdir(parents=True, exist_ok=True)
    outcome = run(target, range(cases), kept)
    assert not outcome.findings, (kept, outcome.findings[:20])
    for said, count in account(target, outcome).items():
        record(f"mutated {target.name}", target.where, said, count)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("name", INDEX)
def test_an_index(tiny_run, tmp_path, name, again):
    student = tiny_run / "data/models/0"

    def use(folder: Path) -> None:
        searcher = Searcher.open(student, folder)
        for target in ("texts", "images"):
            searcher.search(["a dog runs"], target=target)

    check(broken(tiny_run / "data/index", name, again, use), tmp_path, times(8, 150))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("name", [*STUDENT, *HEADS])
def test_a_student(tiny_run, tmp_path, name, again):
    def use(folder: Path) -> None:
        load_student(folder, CPU).encoder.encode(["a dog"], batch_size=1)

    folder = tmp_path / "student"
    shutil.copytree(tiny_run / "data/models/0", folder)
    check(broken(folder, name, again, use), tmp_path, times(4, 40))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", CLIP)
def test_a_teacher_of_transformers(tmp_path, name):
    folder = Path(save_clip(tmp_path / "clip"))
    target = broken(folder, name, False, lambda copy: load(f"transformers:{copy}"))
    check(target, tmp_path, times(4, 40))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", OPEN_CLIP)
def test_a_teacher_of_open_clip(tmp_path, name):
    save_open_clip(tmp_path / "open_clip")
    target = broken(tmp_path / "open_clip", name, False, lambda copy: load(f"local-dir:{copy}"))
    check(target, tmp_path, times(4, 40))


def load(name: str) -> None:
    Teacher(TeacherParams(model=name), CPU).probe()
