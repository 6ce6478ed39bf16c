"""The search page's command as a process of its own, and a second experiment to compare with."""

import contextlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.download.records import read_pairs
from pipeline.features.teacher import Teacher
from pipeline.params.teacher import TeacherParams
from pipeline.search.searcher import Searcher
from tests.conftest import ROOT, TINY, invoke, write_params


@pytest.fixture(scope="session")
def searcher(tiny_run: Path) -> Searcher:
    return Searcher.open(tiny_run / "data/models/0", tiny_run / "data/index")


@pytest.fixture(scope="session")
def teacher() -> Teacher:
    return Teacher(TeacherParams(model=TINY["teacher"]["model"]), torch.device("cpu"))


LOST = 7
"""An image of `compared` that its archive lacks."""


def read_member(folder: Path, image_id: int) -> bytes:
    """The file of an image, read without the project."""
    row = read_pairs(folder).images.set_index("image_id").loc[image_id]
    with zipfile.ZipFile(folder / row["archive"]) as archive:
        return archive.read(row["member"])


def rewrite_archive(folder: Path, changes: dict[int, bytes | None]) -> None:
    """Give images of a corpus other bytes, or none; its tables stay."""
    images = read_pairs(folder).images.set_index("image_id")
    changed = {images.loc[image, "member"]: content for image, content in changes.items()}
    path = folder / images["archive"].iloc[0]
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (members | changed).items():
            if content is not None:
                archive.writestr(name, content)


@contextlib.contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """`python -m stages.app` in a folder; its address, once it listens, and its process."""
    environment = {name: value for name, value in os.environ.items() if "DISPLAY" not in name}
    command = [sys.executable, "-m", "stages.app", "--port", "0", *arguments]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), process.stderr.read()
        yield address, process
    finally:
        process.terminate()
        process.communicate(timeout=30)


@pytest.fixture(scope="session")
def compared(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny run with a second student and its index; one picture is lost."""
    folder = tmp_path_factory.mktemp("compared") / "run"
    shutil.copytree(tiny_run, folder)
    write_params(folder, TINY, {"train": {"seeds": [1]}})
    other = ("--model", "data/models/1", "--out", "data/other", "--metrics", "other.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage, arguments in (("train", ("--seed", "1")), ("index", other)):
            result = invoke(stage, *arguments)
            assert result.exit_code == 0, (stage, result.output, result.exception)
    write_params(folder, TINY)
    rewrite_archive(folder / "data/pairs", {LOST: None})
    return folder


BESIDE = (
    *("--name", "first", "--beside-name", "second"),
    *("--beside-model", "data/models/1", "--beside-index", "data/other"),
)
