"""`stages.search` as a user types it: where queries come from, and how answers look."""

import base64
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import ROOT, assert_clear_error, invoke
from tests.search.conftest import read_member


def answers(output: str) -> list[dict]:
    return [json.loads(line) for line in output.splitlines()]


def test_every_query_of_a_file_is_a_line_of_json(in_tiny_run, tmp_path):
    (tmp_path / "queries.txt").write_text("a red circle\n\nzwei blaue Sterne äöü\n")
    result = invoke("search", "--file", str(tmp_path / "queries.txt"), "-k", "3", "--images")
    found = answers(result.stdout)
    assert [one["query"] for one in found] == ["a red circle", "zwei blaue Sterne äöü"]
    assert [[hit["rank"] for hit in one["hits"]] for one in found] == [[1, 2, 3]] * 2
    for one in found:
        alone = answers(invoke("search", one["query"], "-k", "3", "--images").stdout)[0]
        assert [hit["id"] for hit in alone["hits"]] == [hit["id"] for hit in one["hits"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("dogs\n".encode("utf-16-be"), "stdin line 1 holds NUL, as UTF-16"),
        (b"\n \n", "stdin holds no query"),
    ],
)
def test_what_comes_from_stdin(tiny_run, content, words):
    command = [sys.executable, "-m", "stages.search"]
    done = subprocess.run(
        command, input=content, capture_output=True, cwd=tiny_run, env=environment(), check=False
    )
    assert (done.returncode, done.stdout) == (1, b"")
    assert words in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def environment() -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}


def test_a_picture_is_a_query(in_tiny_run, tmp_path):
    (tmp_path / "seen.png").write_bytes(read_member(Path("data/pairs"), 5))
    result = invoke("search", "--by-image", str(tmp_path / "seen.png"), "--images", "-k", "2")
    (found,) = answers(result.stdout)
    assert found["query"] == "seen.png"
    assert found["hits"][0]["score"] == pytest.approx(1, abs=1e-3)
    captions = answers(invoke("search", "--by-image", str(tmp_path / "seen.png")).stdout)[0]
    assert len(captions["hits"]) == 10


def test_a_page_holds_its_pictures_and_nothing_unescaped(in_tiny_run, tmp_path):
    page = tmp_path / "deep/page.html"
    query = "<script>alert('x')</script> a red circle"
    result = invoke("search", query, "--images", "-k", "4", "--save", str(page))
    hits = answers(result.stdout)[0]["hits"]
    html = page.read_text()
    assert "<script" not in html
    assert not re.search(r"(src|href)=\"(?!data:)", html), "nothing is loaded from elsewhere"
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    assert len(pictures) == 4
    for hit, data in zip(hits, pictures, strict=True):
        original = Image.open(io.BytesIO(read_member(Path("data/pairs"), hit["id"])))
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == original.size
        assert f"cosine {hit['score']:.4f}" in html


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("a", "--file", "b"), "more than one of query, --file and --by-image"),
        (("--file", "no/such"), "no/such cannot be read"),
        (("--by-image", "no/such.png"), "no/such.png is not a file"),
        (("a", "-k", "0"), "k is 0"),
        (("a", "--model", "nowhere"), "nowhere does not exist"),
        (("a", "--model", "nowhere"), "name a student's folder"),
        (("a", "--min-score", "2"), "score is 2"),
        (("a", "--save", "params.yaml/page.html"), "could not be written"),
    ],
)
def test_a_wrong_command_says_what_to_do(in_tiny_run, arguments, words):
    assert_clear_error(invoke("search", *arguments), words)


@pytest.mark.integration
def test_neither_a_text_query_nor_a_page_imports_torch(tiny_run, tmp_path):
    """What makes a search start fast; a page with pictures needs no teacher either."""
    heavy = ["torch", "transformers", "h5py", "sklearn"]
    words = ["a red circle", "--images", "--save", str(tmp_path / "page.html")]
    script = (
        f"import sys, stages.search; stages.search.app({words}, standalone_mode=False); "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, capture_output=True, cwd=tiny_run, env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().splitlines()[-1] == "[]"
    assert "data:image/jpeg" in (tmp_path / "page.html").read_text()
