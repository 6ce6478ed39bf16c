"""What a card and its provenance say of pairs that the publisher brought."""

import pytest

from pipeline.params.block import dotted
from pipeline.publish.collect import _corpora, _public, _unused_blocks
from tests.conftest import merge, read_default_params

PARTS = {"text": "wiki1m", "evaluation": "senteval"}


def parameters(pairs: str, **blocks) -> dict:
    changes = {"download": PARTS | {"pairs": pairs} | blocks}
    return dict(dotted(merge(read_default_params(), changes)))


@pytest.mark.parametrize(
    ("value", "public"),
    [
        ("/home/me/photos", "photos"),
        ("photos/here", "photos/here"),
        ("/data/cc/{00000..00331}.tar", "{00000..00331}.tar"),
        (["/data/a/{0..9}.tar", "b.tar"], ["{0..9}.tar", "b.tar"]),
        ("https://me:secret@host/a/{0..9}.tar?token=x#y", "https://host/a/{0..9}.tar"),
        ("http://host:80/a.tar", "http://host:80/a.tar"),
        ("local-dir:/home/me/clip", "local-dir:clip"),
        ("transformers:/home/me/clip", "transformers:clip"),
        ("transformers:org/clip", "transformers:org/clip"),
        (None, None),
        (0.1, 0.1),
    ],
)
def test_of_a_place_only_what_others_may_know_is_kept(value, public):
    assert _public(value) == public


@pytest.mark.parametrize(
    ("pairs", "name"), [("folder", "own pairs (folder)"), ("webdataset", "own pairs (webdataset)")]
)
def test_own_pairs_have_no_source_but_a_kind(pairs, name):
    corpus = _corpora(parameters(pairs))[0]
    assert (corpus.part, corpus.name, corpus.addresses) == ("pairs", name, ())
    assert corpus.licence == "as its owner states"
    assert corpus.hub_datasets == []


def test_a_data_set_of_the_hub_is_named_and_linked():
    corpus = _corpora(parameters("hub", hub={"dataset": "org/photos"}))[0]
    assert (corpus.name, corpus.hub_datasets) == ("org/photos", ["org/photos"])


@pytest.mark.parametrize(
    ("pairs", "kept"),
    [
        ("flickr30k", set()),
        ("scenes", {"scenes"}),
        ("folder", {"folder", "splits"}),
        ("webdataset", {"webdataset", "splits"}),
        ("hub", {"hub", "splits"}),
    ],
)
def test_only_the_blocks_that_were_used_are_told(pairs, kept):
    values = parameters(pairs)
    blocks = {key.split(".")[1] for key in values if key.count(".") == 2 and "download" in key}
    assert blocks == {"scenes", "folder", "webdataset", "hub", "splits"}
    unused = _unused_blocks(values)
    assert {block for block in blocks if not f"download.{block}.x".startswith(unused)} == kept
