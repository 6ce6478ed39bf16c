"""The token store: what the tokenizer gives, once, and never stale or damaged."""

import os
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.student.encoder import SentenceEncoder
from pipeline.train import token_store
from pipeline.train.token_store import pack_tokens
from tests.conftest import read_default_params

KEPT = 8
"""Stores that stay on disk."""
TEXT = ["a red circle", "a small blue square above a green one", "", "x " * 100, "a red circle"]


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder.load(read_default_params()["student"]["encoder"], "mean")


@given(st.lists(st.text(max_size=60), min_size=1, max_size=12), st.integers(4, 32), st.data())
def test_a_batch_is_what_the_tokenizer_gives(encoder, sentences, max_length, data):
    packed = pack_tokens(encoder, sentences, max_length)
    places = st.lists(st.integers(0, len(sentences) - 1), min_size=1, max_size=8)
    rows = np.array(data.draw(places))
    expected = encoder.tokenize([sentences[row] for row in rows], max_length)
    batch = packed.batch(rows)
    for key, value in batch.items():
        torch.testing.assert_close(value, expected[key])
    assert packed.lengths[rows].tolist() == expected["attention_mask"].sum(dim=1).tolist()


def test_a_second_run_tokenises_nothing(encoder, tmp_path, monkeypatch):
    first = pack_tokens(encoder, TEXT, 16, tmp_path)

    def fail(*_args: object) -> None:
        raise AssertionError

    monkeypatch.setattr(SentenceEncoder, "tokenize_all", fail)
    again = pack_tokens(encoder, TEXT, 16, tmp_path)
    assert isinstance(again.ids, np.memmap)
    np.testing.assert_array_equal(first.ids, again.ids)
    np.testing.assert_array_equal(first.ends, again.ends)


def test_there_may_be_no_text(encoder, tmp_path):
    for folder in (None, tmp_path, tmp_path):
        packed = pack_tokens(encoder, [], 16, folder)
        assert (len(packed), len(packed.ids), packed.ids.dtype) == (0, 0, np.int32)


def test_other_text_or_another_cut_is_another_store(encoder, tmp_path):
    sizes = [
        len(pack_tokens(encoder, text, most, tmp_path).ids)
        for text, most in ((TEXT, 16), (TEXT, 8), (TEXT[1:], 16), ([*TEXT[1:], TEXT[0]], 16))
    ]
    assert len(list(tmp_path.iterdir())) == 4
    assert sizes[0] > sizes[1]


def test_another_version_of_the_tokenizers_library_is_another_store(encoder, tmp_path, monkeypatch):
    for _ in range(2):
        pack_tokens(encoder, TEXT, 16, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(token_store, "version", lambda name: f"a later {name}")
    pack_tokens(encoder, TEXT, 16, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["ids.npy", "ends.npy"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "empty"])
def test_a_damaged_store_is_made_again(encoder, tmp_path, caplog, name, damage):
    whole = pack_tokens(encoder, TEXT, 16, tmp_path)
    (path,) = tmp_path.glob(f"*/{name}")
    content = path.read_bytes()
    middle = len(content) - 5
    changed = {
        "cut": content[:-4],
        "flip": content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :],
        "gone": None,
        "empty": b"",
    }[damage]
    path.unlink() if changed is None else path.write_bytes(changed)
    again = pack_tokens(encoder, TEXT, 16, tmp_path)
    np.testing.assert_array_equal(whole.ids, again.ids)
    np.testing.assert_array_equal(whole.ends, again.ends)
    assert path.read_bytes() == content
    assert damage == "gone" or "tokenising again" in caplog.text


def test_only_the_stores_used_last_are_kept(encoder, tmp_path):
    pack_tokens(encoder, TEXT, 4, tmp_path)
    (old,) = tmp_path.iterdir()
    os.utime(old, (time.time() - 1000,) * 2)
    for most in range(5, 5 + KEPT):
        pack_tokens(encoder, TEXT, most, tmp_path)
    assert not old.exists()
    assert len(list(tmp_path.iterdir())) == KEPT
