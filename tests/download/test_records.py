"""The contract of the corpora: what reading refuses."""

import hashlib
import math
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.checksums import CHECKSUMS
from pipeline.core.errors import InputError, MissingArtifactError
from pipeline.download import records
from pipeline.download.records import (
    CAPTIONS,
    IMAGES,
    STS,
    TRANSFER,
    Pairs,
    count_pairs,
    read_pairs,
    read_sts,
    read_transfer,
    write_pairs,
    write_pairs_to,
    write_sts,
    write_table,
    write_transfer,
)
from tests.conftest import ROOT, unseal


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


def pair_rows(count: int) -> tuple[dict[str, list], dict[str, list]]:
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
        "caption": [f"caption {hashlib.md5(b'%d' % row).hexdigest()}" for row in range(len(of))],  # noqa: S324
    }
    return images, captions


def part(rows: dict[str, list], start: int, stop: int) -> dict[str, list]:
    return {name: column[start:stop] for name, column in rows.items()}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@given(st.lists(st.integers(0, 130), max_size=6))
def test_the_bytes_do_not_depend_on_how_rows_are_added(tmp_path_factory, cuts):
    images, captions = pair_rows(100)
    folder = tmp_path_factory.mktemp("pairs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "ROW_GROUP", 32)
        write_pairs(folder / "whole", pd.DataFrame(images), pd.DataFrame(captions))
        with write_pairs_to(folder / "parts") as writer:
            for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 134], strict=True):
                writer.add(part(images, start, stop), part(captions, start, stop))
    assert files_of(folder / "whole") == files_of(folder / "parts")
    groups = pq.read_metadata(folder / "parts/captions.parquet")
    sizes = [groups.row_group(group).num_rows for group in range(groups.num_row_groups)]
    assert sizes == [32, 32, 32, 32, 6]
    assert read_pairs(folder / "parts").captions.to_dict("list") == captions


def test_a_small_table_is_what_arrow_writes_at_once(tmp_path):
    images, captions = pair_rows(2000)
    write_pairs(tmp_path, pd.DataFrame(images), pd.DataFrame(captions))
    for name, rows, schema in (("images", images, IMAGES), ("captions", captions, CAPTIONS)):
        pq.write_table(
            pa.table(rows, schema=schema),
            tmp_path / "at-once",
            compression="zstd",
            use_dictionary=False,
        )
        assert (tmp_path / f"{name}.parquet").read_bytes() == (tmp_path / "at-once").read_bytes()


@pytest.mark.parametrize("rows", [(0, 0), (1, 0), (0, 1)])
def test_pairs_without_rows_are_refused_and_leave_nothing(tmp_path, rows):
    images, captions = pair_rows(3)
    with (
        pytest.raises(InputError, match="no images or no captions"),
        write_pairs_to(tmp_path / "pairs") as writer,
    ):
        writer.add(part(images, 0, rows[0]), part(captions, 0, rows[1]))
    assert files_of(tmp_path / "pairs") == {}


def test_a_failure_between_the_rows_leaves_what_was_there(tmp_path):
    images, captions = pair_rows(records.ROW_GROUP + 1)
    write_pairs(tmp_path, pd.DataFrame(part(images, 0, 9)), pd.DataFrame(part(captions, 0, 9)))
    before = files_of(tmp_path)
    with pytest.raises(ZeroDivisionError), write_pairs_to(tmp_path) as writer:
        writer.add(images, captions)
        _ = 1 / 0
    assert files_of(tmp_path) == before


READS_ALONE = """
import os
from pathlib import Path
import pyarrow.parquet
from pipeline.download.parquet import ParquetRows
from pipeline.download.records import count_pairs, read_pairs
from pipeline.index.reader import RowTable

before = len(os.listdir("/proc/self/task"))
read_pairs(Path("data/pairs"))
count_pairs(Path("data/pairs"))
list(ParquetRows(Path("data/pairs/captions.parquet"), "").rows(["caption"], 1_000))
RowTable.open(Path("data/index/texts.parquet")).take([0])
assert len(os.listdir("/proc/self/task")) == before
"""


def test_tables_are_read_by_one_thread(tiny_run):
    """Arrow's own threads hang or end the process where there is no memory for them."""
    subprocess.run(
        [sys.executable, "-c", READS_ALONE],
        cwd=tiny_run,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
    )


def test_counts_are_those_of_the_rows(tmp_path):
    images, captions = pair_rows(50)
    write_pairs(tmp_path, pd.DataFrame(images), pd.DataFrame(captions))
    assert count_pairs(tmp_path) == {
        "images": 50,
        "captions": 67,
        "train_images": 40,
        "val_images": 10,
        "test_images": 0,
    }


def cells_in_order(images: dict[str, list], captions: dict[str, list]) -> list[str]:
    columns = [images[name] for name in ("image_id", "archive", "member")]
    columns += [captions[name] for name in ("caption_id", "image_id", "caption")]
    return [str(cell) for column in columns for cell in column]


CELLS_OF_FIVE = cells_in_order(*pair_rows(5))


def test_the_fingerprint_is_the_hash_of_every_cell_in_order(tmp_path):
    images, captions = pair_rows(5)
    write_pairs(tmp_path, pd.DataFrame(images), pd.DataFrame(captions))
    digest = hashlib.sha256()
    for cell in CELLS_OF_FIVE:
        digest.update(len(cell).to_bytes(8, "little") + cell.encode())
    assert read_pairs(tmp_path).fingerprint() == digest.hexdigest()


def archive_rows(*changes: tuple[str, int]) -> dict[str, list]:
    rows = {"archive": ["/a/1.tar", "/b/2.tar"], "bytes": [10, 20], "modified": [2**60, 2**60 + 1]}
    for column, row in changes:
        rows[column][row] = "/c/3.tar" if column == "archive" else rows[column][row] + 1
    return rows


def write_with_archives(folder: Path, archives: dict[str, list], cut: int = 1) -> Pairs:
    images, captions = pair_rows(5)
    with write_pairs_to(folder) as writer:
        writer.add(images, captions, part(archives, 0, cut))
        writer.add(part(images, 0, 0), part(captions, 0, 0), part(archives, cut, 9))
    return read_pairs(folder)


def test_archives_elsewhere_are_part_of_the_pairs(tmp_path):
    archives = archive_rows()
    pairs = write_with_archives(tmp_path, archives)
    assert pairs.archives.to_dict("list") == archives
    bare = Pairs(tmp_path, pairs.images, pairs.captions)
    cells = [str(cell) for name in ("archive", "bytes", "modified") for cell in archives[name]]
    changes = [(name, row) for name in archives for row in (0, 1)]
    others = [write_with_archives(tmp_path, archive_rows(change), cut=2) for change in changes]
    prints = {one.fingerprint() for one in (bare, pairs, *others)}
    assert len(prints) == 8
    digest = hashlib.sha256()
    for cell in [*CELLS_OF_FIVE, *cells]:
        digest.update(len(cell).to_bytes(8, "little") + cell.encode())
    assert pairs.fingerprint() == digest.hexdigest()


def test_without_archives_elsewhere_there_is_no_table_of_them(tmp_path):
    """Nor one that was there before; the bytes of the folder and the fingerprint are as ever."""
    write_with_archives(tmp_path, archive_rows())
    images, captions = pair_rows(5)
    write_pairs(tmp_path, pd.DataFrame(images), pd.DataFrame(captions))
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


def test_a_failure_between_archives_leaves_nothing(tmp_path):
    images, captions = pair_rows(5)
    with pytest.raises(ZeroDivisionError), write_pairs_to(tmp_path) as writer:
        writer.add(images, captions, archive_rows())
        _ = 1 / 0
    assert files_of(tmp_path) == {}


def test_empty_captions_are_rows_like_others(tmp_path):
    images, captions = pair_rows(2)
    write_pairs(tmp_path, pd.DataFrame(images), pd.DataFrame(captions | {"caption": ["", "x", ""]}))
    assert read_pairs(tmp_path).captions["caption"].tolist() == ["", "x", ""]
