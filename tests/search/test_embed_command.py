"""`stages.embed`: the vectors are the peers' own, in their formats; nothing finished is lost."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from typer.testing import CliRunner

from pipeline.core.errors import InterruptedRunError
from pipeline.core.plaintext import read_lines
from pipeline.download.records import read_pairs
from pipeline.search import vectors
from pipeline.student.encoder import SentenceEncoder
from stages import paths
from stages.embed import app
from tests.conftest import ROOT, assert_clear_error, invoke, make_bomb, unseal
from tests.search.conftest import read_member

TEXTS = ["a red circle", "", "zwei blaue Sterne äöü 🙂", "two  green squares", "x " * 300]
LINES = "\n".join(TEXTS) + "\n"
MODEL = "data/models/0"

READERS = {
    "npy": lambda path: (None, np.load(path)),
    "parquet": lambda path: columns(pd.read_parquet(path)),
    "jsonl": lambda path: columns(pd.read_json(path, lines=True)),
}


def columns(table: pd.DataFrame) -> tuple[list[str], np.ndarray]:
    name, vector = table.columns
    assert vector == "vector"
    return table[name].tolist(), np.stack(table["vector"])


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch) -> Path:
    """Where vectors are kept, instead of in the tiny run."""
    monkeypatch.setenv(paths.VECTORS_VARIABLE, str(tmp_path / "kept"))
    return tmp_path / "kept/own"


def embed(*arguments: object, stdin: str | None = None):
    result = CliRunner().invoke(app, list(map(str, arguments)), input=stdin)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


@pytest.fixture
def texts(tmp_path) -> Path:
    (tmp_path / "texts.txt").write_text(LINES)
    return tmp_path / "texts.txt"


@pytest.fixture
def scratch(tiny_run, tmp_path, monkeypatch) -> Path:
    """A project of a student and params.yaml, to be changed."""
    shutil.copytree(tiny_run / MODEL, tmp_path / "run" / MODEL)
    shutil.copy(tiny_run / "params.yaml", tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("ending", READERS)
def test_a_row_a_line_as_sentence_transformers_embeds_it(in_tiny_run, texts, ending, caplog):
    out = texts.parent / f"deep/v.{ending}"
    embed(texts, "--out", out)
    found, rows = READERS[ending](out)
    assert found in (None, TEXTS)
    expected = SentenceTransformer(MODEL, device="cpu").encode(TEXTS)
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert "1 of 5 texts are blank" in caplog.text


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_row_of_a_table_has_a_row(in_tiny_run, texts, ending):
    table = pd.DataFrame({"text": TEXTS, "id": range(len(TEXTS))})
    path = texts.with_suffix(f".{ending}")
    if ending == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        getattr(table, f"to_{ending}")(path, index=False)
    embed(texts, "--out", texts.with_suffix(".npy"))
    embed(path, "--column", "text", "--out", path.with_name("table.npy"))
    expected, rows = (np.load(texts.with_name(name)) for name in ("texts.npy", "table.npy"))
    np.testing.assert_allclose(rows, expected, atol=1e-5)


def test_stdin_to_stdout_is_the_same_as_files(in_tiny_run, texts):
    embed(texts, "--out", texts.with_suffix(".npy"))
    for arguments in ((), ("-",)):
        found, rows = columns(
            pd.read_json(io.StringIO(embed(*arguments, stdin=LINES).stdout), lines=True)
        )
        assert found == TEXTS
        np.testing.assert_array_equal(rows.astype(np.float32), np.load(texts.with_suffix(".npy")))


def test_the_shared_space_is_that_of_the_index(in_tiny_run, texts, searcher):
    embed(texts, "--space", "shared", "--out", texts.with_suffix(".npy"))
    expected = searcher.queries.embed(TEXTS, "images")
    np.testing.assert_allclose(np.load(texts.with_suffix(".npy")), expected, atol=1e-5)


@pytest.mark.parametrize("ending", READERS)
def test_pictures_of_a_folder(in_tiny_run, tmp_path, searcher, teacher, ending, caplog):
    """Those that cannot be used are counted, and take no row from the others."""
    folder, pictures = tmp_path / "photos", {}
    for image in (3, 8, 5):
        name = f"{image}.png" if image == 5 else f"b/é {image}.PNG"
        pictures[name] = read_member(Path("data/pairs"), image)
    for name, content in {**pictures, "a.jpg": b"none", "c.png": make_bomb(), "d.txt": b""}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    embed("--images", folder, "--out", tmp_path / f"v.{ending}", "--store", tmp_path / "store")
    found, rows = READERS[ending](tmp_path / f"v.{ending}")
    found = found or pd.read_csv(tmp_path / "v.csv")["image"].tolist()
    assert found == sorted(pictures)
    expected = [searcher.embed_image(pictures[name], teacher)[0] for name in found]
    np.testing.assert_allclose(rows, expected, atol=1e-3)  # features are kept as float16
    assert f"left out {folder}/a.jpg: unreadable" in caplog.text
    assert "2 of 5 pictures are left out: {'unreadable': 1, 'huge': 1}" in caplog.text


def test_pictures_that_are_cached_are_not_encoded_again(in_tiny_run, tmp_path, monkeypatch):
    pairs = read_pairs(Path("data/pairs"))
    row = pairs.images.iloc[0]
    (tmp_path / "x.png").write_bytes(read_member(pairs.folder, row["image_id"]))
    monkeypatch.setattr("pipeline.features.encode.FeatureExtractor._encode_batch", None)
    (line,) = embed("--images", tmp_path).stdout.splitlines()
    assert json.loads(line)["image"] == "x.png"


def test_a_matryoshka_student_gives_its_first_dimensions(scratch, texts):
    about = Path(MODEL) / "heads.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"matryoshka": [32]}))
    unseal(Path(MODEL))
    out = texts.with_suffix(".npy")
    embed(texts, "--dimensions", "32", "--out", out)
    expected = SentenceTransformer(MODEL, device="cpu", truncate_dim=32).encode(TEXTS)
    np.testing.assert_allclose(np.load(out), expected, atol=1e-5)
    embed(texts, "--dimensions", "32", "--normalise", "--out", out)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(np.load(out), expected, atol=1e-5)
    result = invoke("embed", str(texts), "--dimensions", "33")
    assert_clear_error(result, "not trained for 33 dimensions", "use one of 128, 32")


def test_a_run_that_was_stopped_goes_on(in_tiny_run, texts, kept, monkeypatch):
    """From the parts that are whole; the result is that of a run that was not stopped."""
    monkeypatch.setattr(vectors, "ROWS_A_PART", 2)
    encode, given = SentenceEncoder.encode, []

    def stop(self, sentences, **options):
        if len(given) == 2:
            raise InterruptedRunError("embed was stopped.", "run the same command again.")
        given.append(list(sentences))
        return encode(self, sentences, **options)

    out = texts.with_suffix(".npy")
    monkeypatch.setattr(SentenceEncoder, "encode", stop)
    assert_clear_error(invoke("embed", str(texts), "--out", str(out)), "was stopped")
    assert not out.exists()
    _, damaged = kept.iterdir()
    damaged.write_bytes(damaged.read_bytes()[:-80])
    given.clear()
    embed(texts, "--out", out)
    assert len(given) == 2, "one part is damaged, and one is new"
    embed(texts, "--out", out.with_suffix(".parquet"))
    assert len(given) == 2, "another kind of file embeds nothing again"
    shutil.rmtree(kept)
    given.clear()
    monkeypatch.setattr(SentenceEncoder, "encode", encode)
    embed(texts, "--out", texts.with_name("whole.npy"))
    assert out.read_bytes() == texts.with_name("whole.npy").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_kill_loses_one_part_at_most(tiny_run, tmp_path, kept):
    """SIGKILL of the command with its texts from a pipe, once two parts are whole."""
    lines = [f"{number} red circles" for number in range(70_000)]
    (tmp_path / "texts").write_text("\n".join(lines))
    command = f"cat texts | {sys.executable} -m stages.embed --out v.npy --model {tiny_run / MODEL}"
    options = {"shell": True, "cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(ROOT)}}
    with subprocess.Popen(command, start_new_session=True, **options) as run:
        deadline = time.monotonic() + 200
        while len(list(kept.glob("*.arrow"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(run.pid, signal.SIGKILL)
    times = {path: path.stat().st_mtime_ns for path in kept.glob("*.arrow")}
    assert len(times) >= 2
    assert not (tmp_path / "v.npy").exists()
    subprocess.run(command, check=True, **options)
    assert times.items() <= {path: path.stat().st_mtime_ns for path in times}.items()
    rows = np.load(tmp_path / "v.npy")
    assert rows.shape == (70_000, 128)
    some = np.array([0, 16_383, 16_384, 69_999])
    peer = SentenceTransformer(str(tiny_run / MODEL), device="cpu")
    expected = peer.encode([lines[number] for number in some])
    np.testing.assert_allclose(rows[some], expected, atol=1e-4)


@given(st.lists(st.text(st.characters(exclude_characters="\r\n\0\ufeff", codec="utf-8"))))
def test_parts_are_the_lines_in_order(lines):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "ROWS_A_PART", 3)
        patch.setattr(vectors, "_CHARACTERS_A_PART", 20)
        content = "".join(f"{line}\n" for line in [*lines, "last"]).encode()
        parts = list(vectors.in_parts(vectors.read_texts(io.BytesIO(content), "x"), "x"))
    assert [line for part in parts for line in part] == [*lines, "last"]
    assert max(map(len, parts)) <= 3
    assert all(sum(map(len, part[:-1])) < 20 for part in parts)


def test_lines_come_from_a_pipe():
    reading, writing = os.pipe()
    os.write(writing, "\ufeffä\r\nb\n".encode())
    os.close(writing)
    assert list(read_lines(os.fdopen(reading, "rb"), "stdin")) == [(1, "ä\n"), (2, "b\n")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("no/such.txt",), "no/such.txt cannot be read: no such file"),
        (("table.csv",), "has no column 'text'; its columns are 'caption'"),
        (("several.jsonl",), "several.jsonl line 2: text holds 2 texts"),
        (("v.xlsx",), "v.xlsx is neither lines of text nor a table"),
        (("empty.txt",), "empty.txt holds no text"),
        (("wide.txt",), "wide.txt is UTF-16"),
        (("params.yaml", "--out", "v.hdf5"), "end it in .npy, .parquet, .jsonl"),
        (("params.yaml", "--out", "params.yaml/v.npy"), "could not be written"),
        (("params.yaml", "--model", "nowhere"), "nowhere does not exist"),
        (("params.yaml", "--dimensions", "64"), "not trained for 64 dimensions"),
        (("params.yaml", "--space", "shared", "--dimensions", "64"), "cannot be shortened"),
        (("params.yaml", "--images", "."), "both texts and --images"),
        (("--images", "nowhere"), "nowhere is not a folder"),
        (("--images", "."), "holds no picture that can be used (0 files"),
        (("--images", ".", "--space", "text"), "--space text is for texts"),
        (("--images", ".", "--dimensions", "64"), "--dimensions is for texts"),
    ],
)
def test_a_wrong_command_says_what_to_do(scratch, arguments, words):
    Path("table.csv").write_text("caption\na red circle\n")
    Path("several.jsonl").write_text('{"text": "a"}\n{"text": ["a", "b"]}\n')
    Path("empty.txt").touch()
    Path("wide.txt").write_text("a\n", encoding="utf-16")
    assert_clear_error(invoke("embed", *arguments), words)
    assert not list(Path().glob("*.npy"))


def test_a_text_only_student_has_no_shared_space(scratch, texts):
    about = Path(MODEL) / "heads.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"objective": "simcse"}))
    unseal(Path(MODEL))
    for arguments in ((str(texts), "--space", "shared"), ("--images", ".")):
        assert_clear_error(invoke("embed", *arguments), "trained without images")
    assert len(embed(texts).stdout.splitlines()) == len(TEXTS)
