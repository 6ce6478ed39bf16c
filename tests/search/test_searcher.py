import dataclasses
import re
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import InputError, StaleArtifactError
from pipeline.core.plaintext import is_blank
from pipeline.download.records import read_pairs
from pipeline.features.store import read_features
from pipeline.features.teacher import Teacher
from pipeline.index.format import Window
from pipeline.params.teacher import TeacherParams
from pipeline.search.searcher import read_queries
from pipeline.student.encoder import Student
from tests.conftest import TINY, make_bomb
from tests.search.conftest import read_member


def test_hits_are_the_exact_cosines(tiny_run, searcher):
    texts = read_pairs(tiny_run / "data/pairs").captions["caption"].tolist()
    captions = list(dict.fromkeys(texts))
    query = "a small red circle above a blue square"
    encoder = Student.load(tiny_run / "data/models/0", torch.device("cpu")).encoder
    vectors = encoder.encode([query, *captions], batch_size=32).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = np.sort(vectors[1:] @ vectors[0])[::-1][:7]
    hits = searcher.search([query], target="texts", window=Window(7))[0]
    np.testing.assert_allclose([hit.score for hit in hits], expected, atol=1e-5)
    assert [hit.rank for hit in hits] == list(range(1, 8))
    for hit in hits:
        assert texts.index(hit.text) == hit.id
        assert texts.count(hit.text) == hit.count


def test_images_are_ranked_through_the_grounding_heads(tiny_run, searcher):
    pairs = read_pairs(tiny_run / "data/pairs")
    features = read_features(
        tiny_run / "data/features.h5",
        TeacherParams(model=TINY["teacher"]["model"]),
        pairs.fingerprint(),
    )
    student = Student.load(tiny_run / "data/models/0", torch.device("cpu"))
    query = student.ground_sentences(student.encoder.encode(["a red circle"], batch_size=1))
    cosines = (student.ground_images(features.images) @ query.T)[:, 0]
    best = features.image_ids[np.argsort(-cosines)[:5]]
    hits = searcher.search(["a red circle"], target="images", window=Window(5))[0]
    assert [hit.id for hit in hits] == list(best)
    members = pairs.images.set_index("image_id")["member"]
    assert [hit.member for hit in hits] == [members[image] for image in best]


def test_many_queries_at_once_are_like_one_by_one(searcher):
    queries = ["a red circle", "two blue stars", "nothing of the kind"]
    together = searcher.search(queries, target="texts", window=Window(3))
    apart = [searcher.search([query], target="texts", window=Window(3))[0] for query in queries]
    for one, other in zip(together, apart, strict=True):
        np.testing.assert_allclose([h.score for h in one], [h.score for h in other], atol=1e-5)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"k": 0}, "k is 0"),
        ({"offset": -1}, "offset is -1"),
        ({"min_score": 1.5}, "score is 1.5"),
        ({"min_score": float("nan")}, "score is nan"),
    ],
)
def test_a_window_that_shows_nothing_is_refused(values, words):
    with pytest.raises(InputError, match=words):
        Window(**values)


@pytest.mark.parametrize("target", ["texts", "images"])
def test_a_window_is_a_part_of_the_whole_ranking(searcher, target):
    whole = searcher.search(["a red circle"], target=target, window=Window(10**6))[0]
    assert searcher.search(["a red circle"], target=target, window=Window(4, 3))[0] == whole[3:7]
    assert searcher.search(["a red circle"], target=target, window=Window(4, 10**6))[0] == []
    middle = whole[len(whole) // 2].score
    enough = searcher.search(["a red circle"], target=target, window=Window(10**6, 0, middle))[0]
    assert enough == [hit for hit in whole if hit.score >= middle]


def test_an_indexed_picture_finds_itself(tiny_run, searcher, teacher):
    for hit in searcher.search(["a blue star"], target="images", window=Window(3))[0]:
        picture = read_member(tiny_run / "data/pairs", hit.id)
        best = searcher.search_by_image(picture, teacher, target="images", window=Window(1))[0]
        assert best.score == pytest.approx(1, abs=1e-3)
        assert read_member(tiny_run / "data/pairs", best.id) == picture


def test_captions_are_ranked_by_their_cosine_to_a_picture(tiny_run, searcher, teacher):
    picture = read_member(tiny_run / "data/pairs", 0)
    hits = searcher.search_by_image(picture, teacher, target="texts")
    student = Student.load(tiny_run / "data/models/0", torch.device("cpu"))
    captions = list(dict.fromkeys(read_pairs(tiny_run / "data/pairs").captions["caption"]))
    sentences = student.ground_sentences(student.encoder.encode(captions, batch_size=64))
    pixels = teacher.decode(picture)
    image = student.ground_images(teacher.encode_images(pixels[None]).numpy())
    expected = np.sort((sentences @ image.T)[:, 0])[::-1][:10]
    np.testing.assert_allclose([hit.score for hit in hits], expected, atol=1e-5)


def test_a_picture_that_cannot_be_used_says_why(searcher, teacher):
    for content, words in {b"": "unreadable", make_bomb(): "huge"}.items():
        with pytest.raises(InputError, match=words):
            searcher.search_by_image(content, teacher, target="images")
    other = SimpleNamespace(identity=dataclasses.replace(teacher.identity, weights="another"))
    with pytest.raises(StaleArtifactError, match="another teacher"):
        searcher.search_by_image(b"", cast(Teacher, other), target="images")


@given(st.binary(max_size=200))
def test_queries_of_any_bytes_are_read_or_refused(content):
    text = content.decode("utf-8", "replace")
    lines = re.split("\r\n|\r|\n", text.replace("\ufeff", ""))
    wanted = [line for line in lines if not is_blank(line)]
    if wanted and "\0" not in text and content.decode("utf-8", "ignore").encode() == content:
        assert read_queries(content, "stdin") == wanted
    else:
        with pytest.raises(InputError, match="stdin"):
            read_queries(content, "stdin")


def test_a_byte_order_mark_is_no_part_of_a_query(searcher, monkeypatch):
    content = "\ufeffa red circle\r\n\ufeff\r\na blue\u2028square\n".encode()
    queries = read_queries(content, "stdin")
    assert queries == ["a red circle", "a blue\u2028square"]
    given, embed = [], type(searcher.queries).embed

    def note(self, texts, target):
        given.extend(texts)
        return embed(self, texts, target)

    monkeypatch.setattr(type(searcher.queries), "embed", note)
    typed = searcher.search(["\ufeffa red circle"], target="texts")
    assert given == ["a red circle"]  # this tokenizer would drop the mark, others do not
    assert typed == searcher.search(["a red circle"], target="texts")


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("", "the query is empty"),
        ("\ufeff", "the query is empty"),
        (" \u200b\n", "the query is empty"),
        ("x" * 100_000, "100,000 characters"),
        ("a\0dog", "NUL"),
        ("caf\udce9", "not UTF-8"),
    ],
)
def test_bad_queries_are_refused(searcher, query, words):
    with pytest.raises(InputError, match=words):
        searcher.search([query], target="texts")


def test_a_line_too_long_is_named():
    with pytest.raises(InputError, match=r"stdin, line 3: the query has 10,001 characters"):
        read_queries(b"one\n\n" + b"x" * 10_001, "stdin")
