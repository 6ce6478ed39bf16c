"""What can be found: each text and image once, with its number."""

import dataclasses
import re
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import InputError
from pipeline.core.plaintext import is_blank
from pipeline.download.records import Pairs, read_pairs, read_sentences
from pipeline.features.store import Features, read_features
from pipeline.index.documents import find_items
from pipeline.params.index import IndexParams
from pipeline.params.teacher import TeacherParams
from tests.conftest import TINY, read_default_params


def index_params(**changes) -> IndexParams:
    return IndexParams.model_validate(read_default_params()["index"] | changes)


@pytest.fixture(scope="module")
def corpus(tiny_run) -> tuple[Pairs, Features]:
    pairs = read_pairs(tiny_run / "data/pairs")
    teacher = TeacherParams(model=TINY["teacher"]["model"])
    return pairs, read_features(tiny_run / "data/features.h5", teacher, pairs.fingerprint())


def test_equal_texts_are_one_row_with_their_number(corpus):
    pairs, features = corpus
    captions = pairs.captions["caption"].tolist()
    sentences = [captions[3], "a sentence of its own", captions[3], captions[5]]
    params = index_params(items=["captions", "sentences"])
    items = find_items(params, pairs, features, sentences)
    counted = Counter(captions + sentences)
    assert dict(zip(items.texts["text"], items.texts["count"], strict=True)) == counted
    assert items.texts["text"].tolist() == list(dict.fromkeys(captions + sentences))
    alone = items.texts.iloc[-1]
    assert (alone["kind"], alone["id"], alone["member"]) == ("sentence", 1, "")
    assert items.images.empty


def test_a_caption_names_its_first_image(corpus):
    pairs, features = corpus
    items = find_items(index_params(), pairs, features, [])
    members = pairs.images.set_index("image_id")["member"]
    first = pairs.captions.drop_duplicates("caption").set_index("caption")
    for row in items.texts.itertuples():
        assert row.member == members[first.loc[row.text, "image_id"]]
        assert row.id == first.loc[row.text, "caption_id"]


def test_images_with_the_same_features_are_one_row(corpus):
    pairs, features = corpus
    doubled = np.array(features.images)
    doubled[7] = doubled[2]
    doubled[9] = doubled[2]
    twice = dataclasses.replace(features, images=doubled)
    items = find_items(index_params(), pairs, twice, [])
    before = find_items(index_params(), pairs, features, [])
    gone = set(before.images["id"]) - set(items.images["id"])
    assert gone == {features.image_ids[7], features.image_ids[9]}
    assert items.images.set_index("id").loc[features.image_ids[2], "count"] == 3
    np.testing.assert_array_equal(features.image_ids[items.features], items.images["id"].to_numpy())


def test_items_are_those_that_are_named(corpus, tiny_run):
    alone = find_items(index_params(items=["images"]), *corpus, [])
    assert alone.texts.empty
    assert len(alone.images)
    sentences = read_sentences(tiny_run / "data/text")
    items = find_items(index_params(items=["sentences"]), *corpus, sentences)
    assert items.texts["count"].sum() == len(sentences)
    assert [sentences[row] for row in items.texts["id"]] == items.texts["text"].tolist()
    assert items.images.empty


LINES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


@given(st.lists(LINES, max_size=20))
def test_own_texts_are_the_lines_that_are_not_empty(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("own") / "texts.txt"
    path.write_text("\n".join(lines), encoding="utf-8", newline="\n")
    params = index_params(items=["texts"], texts=str(path))
    written = re.split("\r\n|\r|\n", "\n".join(lines))
    bare = {number: line.replace("\ufeff", "") for number, line in enumerate(written, 1)}
    wanted = {number: line.strip() for number, line in bare.items() if not is_blank(line)}
    empty = Pairs(path, *(pd.DataFrame({name: [] for name in names}) for names in COLUMNS))
    none, ids = np.zeros((0, 2), np.float16), np.zeros(0, np.int64)
    features = Features(none, ids, none, ids, ids)
    if not wanted:
        with pytest.raises(InputError, match="holds no text"):
            find_items(params, empty, features, [])
        return
    texts = find_items(params, empty, features, []).texts
    assert dict(zip(texts["text"], texts["count"], strict=True)) == Counter(wanted.values())
    assert [wanted[number] for number in texts["id"]] == texts["text"].tolist()
    assert set(texts["kind"]) == {"text"}


COLUMNS = (
    ("image_id", "split", "archive", "member"),
    ("caption_id", "image_id", "caption"),
)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "own.txt does not exist"),
        (b"\xff\xfe\x00", "own.txt is UTF-16"),
        (b"ok\n\x80\n", "own.txt line 2 is not UTF-8"),
        (b"ok\na\0b\n", "own.txt line 2 holds NUL"),
    ],
)
def test_own_texts_that_are_no_text(corpus, tmp_path, content, words):
    path = tmp_path / "own.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=words):
        find_items(index_params(items=["texts"], texts=str(path)), *corpus, [])


def test_a_byte_order_mark_is_no_part_of_an_own_text(corpus, tmp_path):
    (tmp_path / "own.txt").write_bytes("\ufeffa dog\r\n\u2028\r\na dog\u2028a cat\n".encode())
    params = index_params(items=["texts"], texts=str(tmp_path / "own.txt"))
    found = find_items(params, *corpus, []).texts
    assert dict(zip(found["text"], found["id"], strict=True)) == {"a dog": 1, "a dog\u2028a cat": 3}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"items": ["texts"]}, "names a file where items has texts"),
        ({"texts": "own.txt"}, "names a file where items has texts"),
        ({"items": []}, "at least 1 item"),
        ({"items": ["captions", "captions"]}, "named twice"),
        ({"target_recall": 1.5}, "less than or equal to 1"),
        ({"kind": "faiss"}, "kind"),
    ],
)
def test_wrong_params_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        index_params(**changes)
