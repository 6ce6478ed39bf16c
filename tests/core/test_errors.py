"""What a user meets when something is wrong: one clear line, the remedy, exit code 1."""

import errno
import shutil
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
    ("stage", "change", "words"),
    [
        *(
            (stage, {"loss": {"margn": 1}}, ["unknown key loss.margn (did you mean margin?)"])
            for stage in ("download", "features", "train", "baselines", "evaluate", "index")
        ),
        ("features", {"teacher": {"model": "local-dir:no/such"}}, ["no/such", "does not exist"]),
        (
            "train",
            {"teacher": {"model": "local-dir:other"}},
            ["data/features.h5", "another teacher", "dvc repro -f features"],
        ),
        ("index", {"teacher": {"model": "local-dir:other"}}, ["another teacher"]),
        # named before a score on dev meets what it made of the student
        ("train", {"loss": {"temperature": 1e-40}}, ["the loss is nan at step 3", "learning_rate"]),
    ],
)
def test_a_stage_that_cannot_do_what_params_say_leaves_all_as_it_was(scratch, stage, change, words):
    shutil.copytree(ROOT / "data/demo/teacher", scratch / "other")
    write_params(scratch, TINY, change)
    before = snapshot(scratch)
    assert_clear_error(invoke(stage), *words)
    assert snapshot(scratch) == before


@pytest.mark.parametrize("stage", ["features", "download"])
def test_a_truncated_zip(scratch, monkeypatch, stage):
    if stage == "features":
        archive = scratch / "data/pairs/images.zip"
    else:
        archive = scratch / "mirror/caption_datasets.zip"
        archive.parent.mkdir()
        with zipfile.ZipFile(archive, "w") as writer:
            writer.writestr("dataset_flickr8k.json", "{}" * 5000)
        with zipfile.ZipFile(archive.parent / "Flickr8k_Dataset.zip", "w") as writer:
            writer.writestr("Flicker8k_Dataset/1.jpg", b"")
        write_params(scratch, TINY, {"download": {"pairs": "flickr8k"}})
        monkeypatch.setenv("DATA_MIRROR", str(archive.parent))
    content = archive.read_bytes()
    archive.write_bytes(content[: len(content) // 2])
    before = snapshot(scratch / "data")
    assert_clear_error(invoke(stage), archive.name, "damaged or truncated")
    after = snapshot(scratch / "data")
    assert {name: after[name] for name in before} == before
    assert not list((scratch / "data").glob(".*"))


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


def test_captions_are_shown_as_they_are(scratch, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    rows = pd.read_parquet("data/index/texts.parquet")
    rows["text"] = "a [red] circle :smile: [/b]"
    write_table(Path("data/index/texts.parquet"), rows, ROWS)
    result = invoke("search", "a circle", "-k", "1")
    assert "a [red] circle :smile: [/b]" in result.stdout, result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["search", "   "], ["the query is empty"]),
        (["evaluate", "--out", "scores.csv"], ["scores.csv", "ends in .json"]),
    ],
)
def test_an_argument_that_cannot_be_used(in_tiny_run, arguments, words):
    assert_clear_error(invoke(*arguments), *words)


def test_a_place_that_cannot_be_written_has_a_remedy(scratch):
    (scratch / "reports/index.json").unlink()
    (scratch / "reports/index.json").mkdir()
    assert_clear_error(invoke("index"), "reports/index.json", "is a directory", "name a file")


def run(error: Exception, cause: Exception | None = None) -> object:
    """A command that ends with an error."""

    def main() -> None:
        try:
            raise cause or error
        except type(cause or error):
            raise error from None

    return CliRunner().invoke(run_stage(main), [])


def test_a_bug_is_one_line_too_and_says_how_to_see_more(monkeypatch):
    error = RuntimeError("first\nsecond")
    assert_clear_error(run(error), "unexpected RuntimeError: first second", "KDMCSE_DEBUG=1")
    monkeypatch.setenv("KDMCSE_DEBUG", "1")
    assert "Traceback" in run(error).stderr


@pytest.mark.parametrize(
    "cause",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        pa.ArrowMemoryError("realloc of size 256 failed"),
    ],
)
def test_memory_that_ran_out_has_a_remedy_and_is_not_blamed_on_a_file(cause):
    for error in (cause, ValueError("the export failed")):
        assert_clear_error(run(error, cause), "memory ran out", "batch size")
    result = run(InputError("a.parquet cannot be read.", "run `dvc repro -f x`."), cause)
    assert_clear_error(result, "memory ran out: a.parquet cannot be read", "batch size")
    assert "dvc repro" not in result.stderr


def test_errors_that_name_each_other_as_the_cause_are_read_once():
    first, second = RuntimeError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert_clear_error(run(first), "unexpected RuntimeError: first")


def test_markup_in_an_error_is_shown_as_it_is():
    error = InputError("[bold] and [/bold] :smile:", "[red]")
    assert_clear_error(run(error), "[bold] and [/bold] :smile:", "[red]")
