"""What a user meets when something is wrong: one clear line, the remedy, exit code 1."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
import torch
from typer.testing import CliRunner

from pipeline.core.errors import InputError
from pipeline.download.records import write_table
from pipeline.index.format import ROWS
from stages._cli import run_stage
from tests.conftest import ROOT, TINY, assert_clear_error, invoke, write_params


@pytest.fixture
def scratch(tiny_run, tmp_path, monkeypatch) -> Path:
    """A copy of the tiny run that a test may spoil, as the current folder."""
    shutil.copytree(tiny_run, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    return tmp_path / "run"


def snapshot(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"loss": {"margn": 1}}, "did you mean margin?"),
        ({"loss": {"margin": "abc"}}, "loss.margin"),
        ({"loss": {"margin": 4}}, "loss.margin"),
        ({"train": {"batch_size": 1}}, "train.batch_size"),
    ],
)
def test_a_fault_of_params_stops_every_stage_before_it_writes(scratch, change, word):
    write_params(scratch, TINY, change)
    before = snapshot(scratch)
    for stage in ("download", "features", "train", "baselines", "evaluate", "index"):
        assert_clear_error(invoke(stage), word)
    assert snapshot(scratch) == before


def test_a_teacher_folder_that_does_not_exist(scratch):
    write_params(scratch, TINY, {"teacher": {"model": "local-dir:no/such"}})
    before = snapshot(scratch)
    assert_clear_error(invoke("features"), "no/such", "does not exist")
    assert snapshot(scratch) == before


def test_features_of_another_teacher(scratch):
    shutil.copytree(ROOT / "data/demo/teacher", scratch / "other")
    write_params(scratch, TINY, {"teacher": {"model": "local-dir:other"}})
    before = snapshot(scratch)
    for stage in ("train", "index"):
        assert_clear_error(
            invoke(stage), "data/features.h5", "another teacher", "dvc repro -f features"
        )
    assert snapshot(scratch) == before


def test_a_truncated_zip(scratch):
    images = scratch / "data/pairs/images.zip"
    images.write_bytes(images.read_bytes()[:-5000])
    features = (scratch / "data/features.h5").read_bytes()
    assert_clear_error(invoke("features"), "images.zip", "damaged or truncated")
    assert (scratch / "data/features.h5").read_bytes() == features


def test_a_truncated_zip_in_the_mirror(scratch, tmp_path, monkeypatch):
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    with zipfile.ZipFile(mirror / "caption_datasets.zip", "w") as archive:
        archive.writestr("dataset_flickr8k.json", "{}" * 5000)
    content = (mirror / "caption_datasets.zip").read_bytes()
    (mirror / "caption_datasets.zip").write_bytes(content[: len(content) // 2])
    (mirror / "Flickr8k_Dataset.zip").write_bytes(b"")
    write_params(scratch, TINY, {"download": {"pairs": "flickr8k"}})
    before = snapshot(scratch / "data/pairs")
    monkeypatch.setenv("DATA_MIRROR", str(mirror))
    assert_clear_error(invoke("download"), "caption_datasets.zip", "damaged or truncated")
    assert snapshot(scratch / "data/pairs") == before
    assert not list((scratch / "data").glob(".pairs*"))


@pytest.mark.slow
def test_a_corrupt_image_among_good_ones(scratch):
    images = scratch / "data/pairs/images.zip"
    with zipfile.ZipFile(images) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    first = next(iter(members))
    members[first] = members[first][:100]
    with zipfile.ZipFile(images, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    result = invoke("features")
    assert result.exit_code == 0, result.output
    metrics = json.loads((scratch / "reports/features.json").read_text())
    assert (metrics["images"], metrics["rejected"]) == (299, 1)
    assert first in (scratch / "reports/rejected.csv").read_text()
    assert invoke("train").exit_code == 0  # its captions are left out
    assert invoke("index").exit_code == 0


@pytest.mark.parametrize("query", ["", "   "])
def test_an_empty_query(in_tiny_run, query):
    assert_clear_error(invoke("search", query), "the query is empty")


@pytest.mark.parametrize(
    ("gone", "stage", "made_by"),
    [
        ("data/pairs", "features", "download"),
        ("data/features.h5", "train", "features"),
        ("data/models/0", "evaluate", "train"),
        ("data/models/0", "search", "train"),
        ("data/index", "search", "index"),
    ],
)
def test_a_missing_artefact_names_the_stage_that_makes_it(scratch, gone, stage, made_by):
    path = scratch / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    arguments = ("a circle",) if stage == "search" else ()
    assert_clear_error(invoke(stage, *arguments), gone, f"dvc repro {made_by}")


@pytest.mark.parametrize("every", [3, 6])
def test_a_loss_that_is_not_finite(scratch, every):
    """It is named before a score on dev meets what it made of the student."""
    train = {"evaluate_every": every}
    write_params(scratch, TINY, {"loss": {"temperature": 1e-40}, "train": train})
    model = snapshot(scratch / "data/models/0")
    assert_clear_error(invoke("train"), f"the loss is nan at step {every}", "learning_rate")
    assert snapshot(scratch / "data/models/0") == model


EAGER_LOG = """
import runpy
import sys
from pipeline.core import progress
progress.INTERVAL = 0.0  # a line of progress at every step
runpy.run_module(f"stages.{sys.argv.pop()}", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["features", "train"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle_loses_nothing(scratch, stage, number):
    write_params(scratch, TINY, {"train": {"steps": 2000}, "features": {"batch_size": 1}})
    out = scratch / {"features": "data/features.h5", "train": "data/models/0"}[stage]
    shutil.rmtree(out) if out.is_dir() else out.unlink()
    before = set(scratch.rglob("*"))
    process = subprocess.Popen(
        [sys.executable, "-c", EAGER_LOG, stage],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_until_busy(process, {"features": "images:", "train": "training:"}[stage])
    os.killpg(process.pid, number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    lines = [line for line in stderr.replace("\r", "\n").splitlines() if line.strip()]
    stopped = {
        "features": rf"features was stopped by {number.name}; nothing half-written was left\.",
        "train": rf"training was stopped by {number.name} after step \d+ of 2000, which is kept\.",
    }
    assert re.fullmatch(f"error: {stopped[stage]}", lines[-2]), stderr
    assert lines[-1].startswith("  fix: run the same command again")
    assert "Traceback" not in stderr
    assert not out.exists()
    left = set(scratch.rglob("*")) - before
    kept = set((scratch / "data/checkpoints").glob("*.pt"))
    assert len(kept) == (stage == "train")
    assert left <= kept | {scratch / "data/checkpoints"}
    write_params(scratch, TINY)
    assert invoke(stage).exit_code == 0  # with other params, so that no checkpoint is used
    assert out.exists()
    assert set((scratch / "data/checkpoints").glob("*.pt")) == kept  # still there for its own run


def wait_until_busy(process: subprocess.Popen, bar: str) -> None:
    """Read stderr until the progress bar of the long part has moved."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if re.match(rf"{bar} [1-9]\d*/", line):
            return
    pytest.fail(f"the stage never showed {bar}: {lines}")


def test_captions_are_shown_as_they_are(scratch, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    rows = pd.read_parquet("data/index/texts.parquet")
    rows["text"] = "a [red] circle :smile: [/b]"
    write_table(Path("data/index/texts.parquet"), rows, ROWS)
    result = invoke("search", "a circle", "-k", "1")
    assert "a [red] circle :smile: [/b]" in result.stdout, result.output


def test_json_is_not_written_to_a_csv(in_tiny_run):
    assert_clear_error(invoke("evaluate", "--out", "scores.csv"), "scores.csv", "ends in .json")


def test_a_place_that_cannot_be_written_has_a_remedy(scratch):
    (scratch / "reports/index.json").unlink()
    (scratch / "reports/index.json").mkdir()
    assert_clear_error(invoke("index"), "reports/index.json", "is a directory", "name a file")


def run(main) -> object:
    return CliRunner().invoke(run_stage(main), [])


def test_a_bug_is_one_line_too_and_says_how_to_see_more(monkeypatch):
    def main() -> None:
        raise RuntimeError("first\nsecond")

    assert_clear_error(run(main), "unexpected RuntimeError: first second", "KDMCSE_DEBUG=1")
    monkeypatch.setenv("KDMCSE_DEBUG", "1")
    assert "Traceback" in run(main).stderr


OUT_OF_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    pa.ArrowMemoryError("realloc of size 256 failed"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_memory_that_ran_out_has_a_remedy(error):
    def main() -> None:
        raise error

    def export() -> None:
        raise RuntimeError("the export failed") from error

    for command in (main, export):
        assert_clear_error(run(command), "memory ran out", "batch size")


@pytest.mark.parametrize("cause", OUT_OF_MEMORY)
def test_out_of_memory_is_not_blamed_on_a_file(cause):
    def main() -> None:
        try:
            raise cause
        except type(cause):
            raise InputError("a.parquet cannot be read.", "run `dvc repro -f x`.") from None

    result = run(main)
    assert_clear_error(result, "memory ran out: a.parquet cannot be read", "batch size")
    assert "dvc repro" not in result.stderr


def test_errors_that_name_each_other_as_the_cause_are_read_once():
    def main() -> None:
        first, second = RuntimeError("first"), ValueError("second")
        first.__cause__, second.__cause__ = second, first
        raise first

    assert_clear_error(run(main), "unexpected RuntimeError: first")


def test_markup_in_an_error_is_shown_as_it_is():
    def main() -> None:
        raise InputError("[bold] and [/bold] :smile:", "[red]")

    assert_clear_error(run(main), "[bold] and [/bold] :smile:", "[red]")
