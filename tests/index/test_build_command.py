"""`stages.index` as a user runs it: what is kept, what is refused, what is measured."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.core.errors import InputError
from pipeline.index import queries as query_module
from pipeline.index.embed import Partition
from pipeline.index.format import Window
from pipeline.index.queries import ExportedQueries, StudentQueries, export_queries
from pipeline.search.searcher import Searcher
from pipeline.student.encoder import Student
from tests.conftest import ROOT, TINY, assert_clear_error, invoke, unseal, write_params


@pytest.fixture
def scratch(tiny_run, tmp_path, monkeypatch):
    shutil.copytree(tiny_run, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    return tmp_path / "run"


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_the_same_index_again_is_the_same_bytes(scratch):
    before = bytes_of(Path("data/index"))
    shutil.rmtree("data/index")
    shutil.rmtree("data/vectors")
    assert invoke("index").exit_code == 0
    assert bytes_of(Path("data/index")) == before


def test_the_exported_graph_does_not_say_where_it_was_made(in_tiny_run):
    """Places differ between clones and experiments; what they make does not."""
    content = Path("data/index/query.onnx").read_bytes()
    assert b"input_ids" in content
    for place in (str(ROOT), sys.prefix, "site-packages", "query.py"):
        assert place.encode() not in content, place


def kept_parts() -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in Path("data/vectors").rglob("*.npy")}


def test_a_lost_part_is_embedded_again_and_nothing_else_is_by_another_kind(scratch):
    before = bytes_of(Path("data/index"))
    lost = next(Path("data/vectors").rglob("texts-00000.npy"))
    lost.unlink()
    assert invoke("index").exit_code == 0
    assert lost.is_file()
    assert bytes_of(Path("data/index")) == before
    kept = kept_parts()
    write_params(scratch, TINY, {"index": {"kind": "hnsw"}})
    result = invoke("index")
    assert result.exit_code == 0, result.output
    assert kept_parts() == kept
    metrics = json.loads(Path("reports/index.json").read_text())
    assert {one["kind"] for one in metrics["spaces"].values()} == {"hnsw"}


def test_metrics_and_curve_agree(in_tiny_run):
    metrics = json.loads(Path("reports/index.json").read_text())
    curve = pd.read_csv("reports/index.csv")
    taken = curve[curve["taken"]].set_index("space")
    assert set(taken.index) == {"texts", "grounded", "images"}
    for space, one in metrics["spaces"].items():
        assert taken.loc[space, "recall"] == one["recall"] == 1.0
        assert one["kind"] == "flat"
    assert metrics["texts"]["of"] == 600
    sizes = [path.stat().st_size for path in Path("data/index").iterdir()]
    assert metrics["bytes"] == sum(sizes)


def test_own_texts_or_images_alone_are_found(scratch):
    Path("own.txt").write_text("quarterly report on heat pumps\na red circle\n\na red circle\n")
    write_params(scratch, TINY, {"index": {"items": ["texts"], "texts": "own.txt"}})
    assert invoke("index").exit_code == 0
    (hit,) = json.loads(invoke("search", "a red circle", "-k", "1").stdout)["hits"]
    assert (hit["kind"], hit["id"], hit["text"], hit["count"]) == ("text", 2, "a red circle", 2)
    assert_clear_error(invoke("search", "x", "--images"), "holds no images", "index.items")
    write_params(scratch, TINY, {"index": {"items": ["images"]}})
    assert invoke("index").exit_code == 0
    assert len(json.loads(invoke("search", "a circle", "--images").stdout)["hits"]) == 10
    assert_clear_error(invoke("search", "a circle"), "holds no texts", "index.items")


def test_shares_embed_what_a_whole_run_would(scratch, monkeypatch):
    monkeypatch.setattr("pipeline.index.embed.ROWS_A_PART", 100)
    before = bytes_of(Path("data/index"))
    for share in ("1/2", "2/2"):
        shutil.rmtree("data/index", ignore_errors=True)
        assert invoke("index", "--share", share).exit_code == 0
        assert not Path("data/index").exists()
    made = kept_parts()
    assert invoke("index").exit_code == 0
    assert kept_parts() == made
    after = bytes_of(Path("data/index"))
    assert after.keys() == before.keys()
    assert after["texts.parquet"] == before["texts.parquet"]
    for name in ("texts", "grounded", "images"):
        one, other = (np.frombuffer(made[f"{name}.faiss"][45:], "<f4") for made in (before, after))
        np.testing.assert_allclose(one, other, atol=1e-5)  # other batches sum in another order


def test_a_wrong_share_is_refused():
    for text in ("", "3", "0/2", "3/2", "a/b", "1/0", "-1/2"):
        with pytest.raises(InputError, match="--share"):
            Partition.read(text)


@pytest.mark.slow
def test_a_text_only_student_has_texts_alone(scratch):
    unseal(Path("data/models/0"))
    about = Path("data/models/0/heads.json")
    about.write_text(json.dumps(json.loads(about.read_text()) | {"objective": "simcse"}))
    assert invoke("index").exit_code == 0
    assert sorted(Path("data/index").glob("*.faiss")) == [Path("data/index/texts.faiss")]
    assert json.loads(invoke("search", "a red circle", "-k", "1").stdout)["hits"]
    result = invoke("search", "x", "--images")
    assert_clear_error(result, "holds no images", "train.objective=kdmcse")


@pytest.mark.integration
def test_exported_queries_are_the_students(in_tiny_run):
    model = Path("data/models/0")
    searcher = Searcher.open(model, Path("data/index"))
    assert isinstance(searcher.queries, ExportedQueries)
    own = StudentQueries(Student.load(model, __import__("torch").device("cpu")))
    texts = ["a red circle", "Ünïcode ∑ 🙂", "x " * 500, "", *map(str, range(100))]
    for target in ("texts", "images"):
        np.testing.assert_allclose(
            searcher.queries.embed(texts, target), own.embed(texts, target), atol=1e-5
        )


def test_an_encoder_that_cannot_be_exported_is_used_as_it_is(scratch, monkeypatch, caplog):
    before = json.loads(invoke("search", "a red circle", "--images").stdout)["hits"]

    def fail(*_, **__):
        raise RuntimeError("no such operator")

    monkeypatch.setattr("torch.onnx.export", fail)
    shutil.rmtree("data/index")
    shutil.rmtree("data/vectors")
    assert invoke("index").exit_code == 0
    assert "will be embedded by torch" in caplog.text
    assert not list(Path("data/index").glob("*.onnx*"))
    after = json.loads(invoke("search", "a red circle", "--images").stdout)["hits"]
    assert [hit["id"] for hit in after] == [hit["id"] for hit in before]
    assert [hit["score"] for hit in after] == pytest.approx([hit["score"] for hit in before])


@pytest.mark.slow
def test_an_export_with_other_vectors_is_not_kept(scratch, monkeypatch, caplog):
    monkeypatch.setattr(query_module, "_TOLERANCE", 0.0)
    (scratch / "made").mkdir()
    assert not export_queries(Path("data/models/0"), scratch / "kept", scratch / "made")
    assert "gives other vectors" in caplog.text
    assert not list((scratch / "made").iterdir())
    assert not list((scratch / "kept").iterdir())


def test_a_window_beyond_the_rows_is_empty(in_tiny_run):
    searcher = Searcher.open(Path("data/models/0"), Path("data/index"))
    assert searcher.search(["x"], target="texts", window=Window(5, 10_000)) == [[]]
