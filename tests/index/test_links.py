"""With DVC's `cache.type` symlink or hardlink, the files of outputs are links to read-only files.

Those are named after their content. Everything opens, and nothing is changed.
"""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from pipeline.index.format import QUERY
from pipeline.search.searcher import Searcher
from tests.conftest import ROOT, invoke

LINKS = {"symlink": os.symlink, "hardlink": os.link}
OUTPUTS = ("pairs", "text", "evaluation", "features.h5", "models", "index")
QUERIES = ["a small red circle", "two blue squares above a large green star"]


@pytest.fixture(params=LINKS)
def linked(request, tiny_run, tmp_path, monkeypatch) -> Path:
    """A copy of the tiny run with its outputs as DVC checks them out."""
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    for output in (folder / "data" / name for name in OUTPUTS):
        files = [output] if output.is_file() else [p for p in output.rglob("*") if p.is_file()]
        for path in files:
            digest = hashlib.md5(path.read_bytes()).hexdigest()  # noqa: S324
            cached = tmp_path / "cache" / digest[:2] / digest[2:]
            cached.parent.mkdir(parents=True, exist_ok=True)
            path.replace(cached)
            cached.chmod(0o444)
            LINKS[request.param](cached, path)
    monkeypatch.chdir(folder)
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def found(folder: Path) -> list[list[tuple[str, int, float]]]:
    searcher = Searcher.open(folder / "data/models/0", folder / "data/index")
    hits = searcher.search(QUERIES, target="texts") + searcher.search(QUERIES, target="images")
    return [[(hit.kind, hit.id, round(hit.score, 5)) for hit in one] for one in hits]


def test_a_linked_index_finds_what_the_index_finds(linked, tiny_run):
    assert found(linked) == found(tiny_run)


def test_the_export_is_one_file(tiny_run):
    assert [path.name for path in (tiny_run / "data/index").glob(f"{QUERY}*")] == [QUERY]


@pytest.mark.integration
def test_a_linked_student_loads_in_all_three_libraries(linked, tiny_run):
    linked, own = linked / "data/models/0", tiny_run / "data/models/0"
    theirs = SentenceTransformer(str(linked), device="cpu").encode(QUERIES)
    np.testing.assert_array_equal(
        theirs, SentenceTransformer(str(own), device="cpu").encode(QUERIES)
    )
    assert AutoModel.from_pretrained(linked).config.hidden_size == theirs.shape[1]
    assert AutoTokenizer.from_pretrained(linked)(QUERIES[0])["input_ids"]


@pytest.mark.parametrize("linked", ["symlink"], indirect=True)
@pytest.mark.slow
def test_an_index_replaces_links_and_leaves_the_cache_alone(linked):
    cache = linked.parent / "cache"
    before, expected = contents(cache), found(linked)
    shutil.rmtree(linked / "data/vectors")  # a student that is exported again is the same
    result = invoke("index")
    assert result.exit_code == 0, (result.output, result.exception)
    assert not any(path.is_symlink() for path in (linked / "data/index").iterdir())
    assert found(linked) == expected
    assert contents(cache) == before


def test_an_encoder_and_a_teacher_may_be_links(in_tiny_run, tmp_path):
    for kind in ("student", "teacher"):
        for path in (ROOT / "data/demo" / kind).iterdir():
            (tmp_path / kind).mkdir(exist_ok=True)
            (tmp_path / kind / path.name).symlink_to(path)
    report = str(tmp_path / "x.json")
    options = ("--pooling", "mean", "--out", report, "--tasks", "sts")
    result = invoke("evaluate", "--model", str(tmp_path / "student"), *options)
    assert result.exit_code == 0, result.output
