"""The contract of the corpora: what reading refuses."""

import math

import pandas as pd
import pytest

from pipeline.download.records import (
    IMAGES,
    STS,
    TRANSFER,
    read_pairs,
    read_sts,
    read_transfer,
    write_pairs,
    write_sts,
    write_table,
    write_transfer,
)
from pipeline.errors import InputError, MissingArtifactError


def sts_rows(**changes) -> pd.DataFrame:
    rows = {
        "task": ["STS-B"] * 3,
        "subset": ["news"] * 3,
        "split": ["train", "dev", "test"],
        "sentence1": ["a", "b", ""],
        "sentence2": ["c", "d", "e"],
        "score": [0.0, 2.5, 5.0],
    }
    return pd.DataFrame(rows | changes)


def transfer_rows(**changes) -> pd.DataFrame:
    rows = {
        "task": ["CR", "MRPC", "CR", "MRPC"],
        "split": ["all", "train", "all", "test"],
        "sentence1": ["a", "b", "", "d"],
        "sentence2": [None, "x", None, "y"],
        "label": [0, 1, 5, 0],
    }
    return pd.DataFrame(rows | changes)


def test_what_is_written_is_read(tmp_path):
    write_sts(tmp_path, sts_rows())
    write_transfer(tmp_path, transfer_rows())
    pd.testing.assert_frame_equal(read_sts(tmp_path), sts_rows())
    pd.testing.assert_frame_equal(read_transfer(tmp_path), transfer_rows())
    assert list(read_transfer(tmp_path)["sentence2"].isna()) == [True, False, True, False]


@pytest.mark.parametrize(
    ("column", "cells", "words"),
    [
        ("task", ["STS-B", None, "STS-B"], "row 1 has no usable task"),
        ("subset", [None, "news", "news"], "row 0 has no usable subset"),
        ("split", ["train", "dev", None], "row 2 has no usable split"),
        ("sentence1", ["a", None, None], "row 1 has no usable sentence1"),
        ("sentence2", ["a", "b", None], "row 2 has no usable sentence2"),
        ("score", [1.0, None, 2.0], "row 1 has no usable score"),
        ("score", [1.0, 0.0, math.nan], "row 2 has no usable score"),
        ("score", [math.inf, 1.0, math.nan], "row 0 has no usable score"),
        ("score", [1.0, -math.inf, 1.0], "row 1 has no usable score"),
    ],
)
def test_an_sts_row_without_a_cell_is_named(tmp_path, column, cells, words):
    rows = sts_rows().to_dict("list") | {column: cells}  # a list keeps null and NaN apart
    write_table(tmp_path / "sts.parquet", rows, STS)
    with pytest.raises(InputError, match=words) as error:
        read_sts(tmp_path)
    assert str(tmp_path / "sts.parquet") in error.value.what
    assert error.value.fix == "run `dvc repro -f download`."


@pytest.mark.parametrize(
    ("column", "cells", "words"),
    [
        ("task", ["CR", None, "CR", "MRPC"], "row 1 has no usable task"),
        ("split", ["all", "train", None, "test"], "row 2 has no usable split"),
        ("sentence1", [None, "b", "", "d"], "row 0 has no usable sentence1"),
        ("label", [0, 1, 0, None], "row 3 has no usable label"),
        ("label", [0, 1, -1, -2], "row 2 has a label below 0"),
        ("sentence2", [None, "x", "z", "y"], "row 2 and the first of its task are not alike"),
        ("sentence2", [None, "x", None, None], "row 3 and the first of its task are not alike"),
    ],
)
def test_a_transfer_row_that_cannot_be_used_is_named(tmp_path, column, cells, words):
    rows = transfer_rows().to_dict("list")
    rows["sentence2"] = [None, "x", None, "y"]
    write_table(tmp_path / "transfer.parquet", rows | {column: cells}, TRANSFER)
    with pytest.raises(InputError, match=words) as error:
        read_transfer(tmp_path)
    assert str(tmp_path / "transfer.parquet") in error.value.what
    assert error.value.fix == "run `dvc repro -f download`."


def test_nulls_of_the_other_tables_are_named_too(tmp_path):
    images = pd.DataFrame({"image_id": [0], "split": ["val"], "archive": ["a"], "member": ["m"]})
    captions = pd.DataFrame({"caption_id": [0, 1], "image_id": [0, 0], "caption": ["x", "y"]})
    write_pairs(tmp_path, images, captions)
    assert len(read_pairs(tmp_path).captions) == 2
    write_table(tmp_path / "images.parquet", images.to_dict("list") | {"member": [None]}, IMAGES)
    with pytest.raises(InputError, match=r"images\.parquet row 0 has no usable member"):
        read_pairs(tmp_path)


@pytest.mark.parametrize("read", [read_sts, read_transfer])
def test_a_missing_table_says_which_stage_makes_it(tmp_path, read):
    with pytest.raises(MissingArtifactError) as error:
        read(tmp_path)
    assert "dvc repro download" in error.value.fix
