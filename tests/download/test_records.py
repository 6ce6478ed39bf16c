"""The contract of the corpora: what reading refuses."""

import hashlib
import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from pipeline.core.checksums import CHECKSUMS
from pipeline.core.errors import InputError, MissingArtifactError
from pipeline.download import records
from pipeline.download.pairing import write_rows_to
from pipeline.download.records import (
    ARCHIVES,
    CAPTIONS,
    IMAGES,
    STS,
    TRANSFER,
    Pairs,
    count_pairs,
    open_table,
    read_pairs,
    read_sts,
    read_table,
    read_transfer,
    write_pairs,
    write_sts,
    write_table,
    write_transfer,
)
from tests.conftest import ROOT, unseal

Columns = dict[str, list]
STS_ROWS: Columns = {
    "task": ["STS-B"] * 3,
    "subset": ["news"] * 3,
    "split": ["train", "dev", "test"],
    "sentence1": ["a", "b", ""],
    "sentence2": ["c", "d", "e"],
    "score": [0.0, 2.5, 5.0],
}
TRANSFER_ROWS: Columns = {
    "task": ["CR", "MRPC", "CR", "MRPC"],
    "split": ["all", "train", "all", "test"],
    "sentence1": ["a", "b", "", "d"],
    "sentence2": [None, "x", None, "y"],
    "label": [0, 1, 5, 0],
}


def test_what_is_written_is_read(tmp_path):
    sts, transfer = pd.DataFrame(STS_ROWS), pd.DataFrame(TRANSFER_ROWS)
    write_sts(tmp_path, sts)
    write_transfer(tmp_path, transfer)
    pd.testing.assert_frame_equal(read_sts(tmp_path), sts)
    pd.testing.assert_frame_equal(read_transfer(tmp_path), transfer)
    assert list(read_transfer(tmp_path)["sentence2"].isna()) == [True, False, True, False]


@pytest.mark.parametrize(
    ("name", "column", "cells", "words"),
    [
        ("sts", "task", ["STS-B", None, "STS-B"], "row 1 has no usable task"),
        ("sts", "sentence2", ["a", "b", None], "row 2 has no usable sentence2"),
        ("sts", "score", [1.0, None, 2.0], "row 1 has no usable score"),
        ("sts", "score", [1.0, 0.0, math.nan], "row 2 has no usable score"),
        ("sts", "score", [math.inf, 1.0, math.nan], "row 0 has no usable score"),
        ("transfer", "split", ["all", "train", None, "test"], "row 2 has no usable split"),
        ("transfer", "sentence1", [None, "b", "", "d"], "row 0 has no usable sentence1"),
        ("transfer", "label", [0, 1, 0, None], "row 3 has no usable label"),
        ("transfer", "label", [0, 1, -1, -2], "row 2 has a label below 0"),
        ("transfer", "sentence2", [None, "x", "z", "y"], "row 2 and the first of its task"),
        ("transfer", "sentence2", [None, "x", None, None], "row 3 and the first of its task"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path, name, column, cells, words):
    rows, schema, read = {
        "sts": (STS_ROWS, STS, read_sts),
        "transfer": (TRANSFER_ROWS, TRANSFER, read_transfer),
    }[name]
    with pytest.raises(MissingArtifactError) as missing:
        read(tmp_path)
    assert "dvc repro download" in missing.value.fix
    write_table(tmp_path / f"{name}.parquet", rows | {column: cells}, schema)
    with pytest.raises(InputError, match=words) as error:
        read(tmp_path)
    assert str(tmp_path / f"{name}.parquet") in error.value.what
    assert error.value.fix == "run `dvc repro -f download`."


def pair_rows(count: int) -> tuple[Columns, Columns]:
    """So many images, every third with two captions."""
    of = [row for row in range(count) for _ in range(1 + (row % 3 == 0))]
    images = {
        "image_id": list(range(count)),
        "split": ["train" if row % 5 else "val" for row in range(count)],
        "archive": [f"{row // 7}.tar" for row in range(count)],
        "member": [f"{row}.jpg" for row in range(count)],
    }
    captions = {
        "caption_id": list(range(len(of))),
        "image_id": of,
        "caption": [hashlib.sha256(b"%d" % row).hexdigest() for row in range(len(of))],
    }
    return images, captions


def write(folder: Path, images: Columns, captions: Columns) -> None:
    write_pairs(folder, pd.DataFrame(images), pd.DataFrame(captions))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_bytes_do_not_depend_on_how_rows_are_added(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "ROW_GROUP", 32)
    _, captions = pair_rows(100)
    write_table(tmp_path / "whole", captions, CAPTIONS)
    with open_table(tmp_path / "parts", CAPTIONS) as table:
        for row in zip(*captions.values(), strict=True):
            table.add(*row)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "parts").read_bytes()
    groups = pq.read_metadata(tmp_path / "parts")
    sizes = [groups.row_group(group).num_rows for group in range(groups.num_row_groups)]
    assert sizes == [32, 32, 32, 32, 6]
    assert read_table(tmp_path / "parts", CAPTIONS).to_dict("list") == captions


def test_empty_captions_are_rows_and_nulls_are_named(tmp_path):
    images, captions = pair_rows(2)
    write(tmp_path, images, captions | {"caption": ["", "x", ""]})
    assert read_pairs(tmp_path).captions["caption"].tolist() == ["", "x", ""]
    write_table(tmp_path / "images.parquet", images | {"member": ["a", None]}, IMAGES)
    with pytest.raises(InputError, match=r"images\.parquet row 1 has no usable member"):
        read_pairs(tmp_path)


@pytest.mark.parametrize("captions", [[], None])
def test_pairs_without_rows_are_refused_and_leave_nothing(tmp_path, captions):
    with (
        pytest.raises(InputError, match="no images or no captions"),
        write_rows_to(tmp_path / "pairs") as rows,
    ):
        if captions is not None:
            rows.add("train", "a.zip", "0.jpg", captions)
    assert files_of(tmp_path / "pairs") == {}


def test_a_failure_between_the_rows_leaves_what_was_there(tmp_path):
    write(tmp_path, *pair_rows(9))
    before = files_of(tmp_path)
    with pytest.raises(ZeroDivisionError), write_rows_to(tmp_path) as rows:
        for row in range(50):
            rows.add("train", str(Path(__file__)), f"{row}.jpg", ["x"])
        _ = 1 / 0
    assert files_of(tmp_path) == before


def test_rows_are_numbered_and_give_the_same_bytes_as_tables(tmp_path):
    images, captions = pair_rows(500)
    write(tmp_path / "tables", images, captions)
    texts = pd.DataFrame(captions).groupby("image_id")["caption"].agg(list)
    with write_rows_to(tmp_path / "rows") as rows:
        for row in range(500):
            split, archive, member = (images[name][row] for name in IMAGES.names[1:])
            rows.add(split, archive, member, texts[row])
    assert files_of(tmp_path / "rows") == files_of(tmp_path / "tables")
    splits = {"train_images": 400, "val_images": 100, "test_images": 0}
    assert count_pairs(tmp_path / "rows") == {"images": 500, "captions": 667, **splits}


READS_ALONE = """
import os, sys
from pathlib import Path
import pyarrow.parquet
from pipeline.download.parquet import ParquetRows
from pipeline.download.records import count_pairs, read_pairs
from pipeline.index.reader import RowTable

before, folder = len(os.listdir("/proc/self/task")), Path(sys.argv[1])
read_pairs(folder)
count_pairs(folder)
list(ParquetRows(folder / "captions.parquet", "").rows(["caption"], 1_000))
RowTable.open(folder / "texts.parquet").take([0])
assert len(os.listdir("/proc/self/task")) == before
"""


@pytest.mark.integration
def test_tables_are_read_by_one_thread(tmp_path):
    """Arrow's own threads hang or end the process where there is no memory for them."""
    from pipeline.index.reader import ROWS

    write(tmp_path, *pair_rows(5000))
    cells = {"int": 1, "str": "x", "flo": 0.5}
    rows = {field.name: [cells[str(field.type)[:3]]] * 5000 for field in ROWS}
    write_table(tmp_path / "texts.parquet", rows, ROWS)
    subprocess.run([sys.executable, "-c", READS_ALONE, str(tmp_path)], cwd=ROOT, check=True)


@pytest.mark.integration
def test_showing_pictures_needs_no_torch():
    code = "import pipeline.search.gallery, sys; assert not {'torch', 'h5py'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def archive_rows(*changes: tuple[str, int]) -> Columns:
    rows: Columns = {
        "archive": ["/a/1.tar", "/b/2.tar"],
        "bytes": [10, 20],
        "modified": [2**60, 2**60 + 1],
    }
    for column, row in changes:
        rows[column][row] = "/c/3.tar" if column == "archive" else rows[column][row] + 1
    return rows


def write_with_archives(folder: Path, archives: Columns) -> Pairs:
    write(folder, *pair_rows(5))
    write_table(folder / "archives.parquet", archives, ARCHIVES)
    return read_pairs(folder)


def digest(*tables: Columns) -> str:
    """Of every cell in order, whose length counts."""
    found = hashlib.sha256()
    for cell in [str(cell) for rows in tables for column in rows.values() for cell in column]:
        found.update(len(cell).to_bytes(8, "little") + cell.encode())
    return found.hexdigest()


def test_the_fingerprint_is_the_hash_of_every_cell_in_order(tmp_path):
    archives = archive_rows()
    pairs = write_with_archives(tmp_path, archives)
    assert pairs.archives.to_dict("list") == archives
    bare = Pairs(tmp_path, pairs.images, pairs.captions)
    images, captions = pair_rows(5)
    del images["split"]
    assert bare.fingerprint() == digest(images, captions)
    assert pairs.fingerprint() == digest(images, captions, archives)
    changes = [(name, row) for name in archives for row in (0, 1)]
    others = [write_with_archives(tmp_path, archive_rows(change)) for change in changes]
    assert len({one.fingerprint() for one in (bare, pairs, *others)}) == 8


def test_without_archives_elsewhere_there_is_no_table_of_them(tmp_path):
    """Nor one from an earlier run; the bytes of the folder and the fingerprint are as ever."""
    write_with_archives(tmp_path, archive_rows())
    write(tmp_path, *pair_rows(5))
    assert set(files_of(tmp_path)) == {"captions.parquet", "images.parquet", CHECKSUMS}
    assert read_pairs(tmp_path).archives.empty


def test_a_damaged_table_of_archives_is_named(tmp_path):
    write_with_archives(tmp_path, archive_rows())
    (tmp_path / "archives.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"archives\.parquet is damaged: its sha256"):
        read_pairs(tmp_path)
    unseal(tmp_path)
    with pytest.raises(InputError, match=r"archives\.parquet cannot be read"):
        read_pairs(tmp_path)
