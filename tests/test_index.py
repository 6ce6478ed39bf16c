import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.download.records import read_pairs
from pipeline.encoder import load_student
from pipeline.errors import InputError, MissingArtifactError, StaleArtifactError
from pipeline.features.store import read_features
from pipeline.index import build_index, open_index
from pipeline.params.index import IndexParams
from pipeline.params.teacher import TeacherParams
from pipeline.search import Searcher
from tests.conftest import TINY


@pytest.fixture(scope="module")
def searcher(tiny_run) -> Searcher:
    return Searcher.open(tiny_run / "data/models/0", tiny_run / "data/index")


def test_hits_are_the_exact_cosines(tiny_run, searcher):
    captions = read_pairs(tiny_run / "data/pairs").captions["caption"].tolist()
    query = "a small red circle above a blue square"
    encoder = load_student(tiny_run / "data/models/0", torch.device("cpu")).encoder
    vectors = encoder.encode([query, *captions], batch_size=32).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = np.sort(vectors[1:] @ vectors[0])[::-1][:7]
    hits = searcher.search([query], kind="caption", k=7)[0]
    np.testing.assert_allclose([hit.score for hit in hits], expected, atol=1e-5)
    assert [hit.rank for hit in hits] == list(range(1, 8))
    for hit in hits:
        assert captions[hit.id] == hit.caption


def test_an_indexed_caption_finds_itself(tiny_run, searcher):
    captions = read_pairs(tiny_run / "data/pairs").captions
    for row in captions.sample(5, random_state=0).itertuples():
        hit = searcher.search([row.caption], kind="caption", k=1)[0][0]
        assert hit.score == pytest.approx(1, abs=1e-5)


def test_images_are_ranked_through_the_grounding_heads(tiny_run, searcher):
    pairs = read_pairs(tiny_run / "data/pairs")
    features = read_features(
        tiny_run / "data/features.h5",
        TeacherParams(model=TINY["teacher"]["model"]),
        pairs.fingerprint(),
    )
    student = load_student(tiny_run / "data/models/0", torch.device("cpu"))
    query = student.ground_sentences(student.encoder.encode(["a red circle"], batch_size=1))
    cosines = (student.ground_images(features.images) @ query.T)[:, 0]
    best = features.image_ids[np.argsort(-cosines)[:5]]
    hits = searcher.search(["a red circle"], kind="image", k=5)[0]
    assert [hit.id for hit in hits] == list(best)
    members = pairs.images.set_index("image_id")["member"]
    assert [hit.image for hit in hits] == [members[image] for image in best]


def test_many_queries_at_once_are_like_one_by_one(searcher):
    queries = ["a red circle", "two blue stars", "nothing of the kind"]
    together = searcher.search(queries, kind="caption", k=3)
    apart = [searcher.search([query], kind="caption", k=3)[0] for query in queries]
    for one, other in zip(together, apart, strict=True):
        np.testing.assert_allclose([h.score for h in one], [h.score for h in other], atol=1e-5)


def test_more_hits_than_rows_gives_all_rows(searcher):
    rows = len(searcher.index.rows_of("image"))
    assert len(searcher.search(["x"], kind="image", k=10**6)[0]) == rows


@pytest.mark.parametrize(
    ("query", "k", "words"),
    [
        ("", 5, "empty"),
        (" \n", 5, "empty"),
        ("x" * 100_000, 5, "100,000 characters"),
        ("x", 0, "k is 0"),
    ],
)
def test_bad_queries_are_refused(searcher, query, k, words):
    with pytest.raises(InputError, match=words):
        searcher.search([query], kind="caption", k=k)


@pytest.fixture
def copied(tiny_run, tmp_path):
    shutil.copytree(tiny_run / "data/models/0", tmp_path / "model")
    shutil.copytree(tiny_run / "data/index", tmp_path / "index")
    return tmp_path


def test_an_index_of_another_model_is_refused(copied):
    config = json.loads((copied / "model/config.json").read_text())
    (copied / "model/config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-6}))
    with pytest.raises(StaleArtifactError, match="another student") as error:
        open_index(copied / "index", copied / "model")
    assert "dvc repro -f index" in error.value.fix


@pytest.mark.parametrize("name", ["captions.faiss", "rows.parquet", "manifest.json"])
def test_damaged_files_are_named(copied, name):
    (copied / "index" / name).write_bytes(b"rot")
    with pytest.raises(InputError, match=name) as error:
        open_index(copied / "index", copied / "model")
    assert error.value.fix == "run `dvc repro -f index`."


def test_files_that_do_not_belong_together_are_refused(copied):
    rows = pd.read_parquet(copied / "index/rows.parquet")
    rows.iloc[:-3].to_parquet(copied / "index/rows.parquet")
    with pytest.raises(InputError, match=r"does not fit its rows|has columns"):
        open_index(copied / "index", copied / "model")


def test_a_missing_index_names_the_stage(copied):
    shutil.rmtree(copied / "index")
    with pytest.raises(MissingArtifactError, match="dvc repro index"):
        open_index(copied / "index", copied / "model")


def test_a_text_only_student_has_no_image_index(copied, tiny_run):
    heads = json.loads((copied / "model/heads.json").read_text())
    (copied / "model/heads.json").write_text(json.dumps(heads | {"objective": "simcse"}))
    pairs = read_pairs(tiny_run / "data/pairs")
    features = read_features(
        tiny_run / "data/features.h5",
        TeacherParams(model=TINY["teacher"]["model"]),
        pairs.fingerprint(),
    )
    params = IndexParams(kind="flat", batch_size=64)
    student = load_student(copied / "model", torch.device("cpu"))
    metrics = build_index(copied / "index", student, copied / "model", pairs, features, params)
    assert "images" not in metrics
    blind = Searcher.open(copied / "model", copied / "index")
    assert blind.search(["a red circle"], kind="caption", k=1)[0]
    with pytest.raises(InputError, match="no images"):
        blind.search(["a red circle"], kind="image", k=1)
