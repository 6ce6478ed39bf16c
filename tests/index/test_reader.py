"""Opening an index: what does not belong together, or is damaged, is refused by name."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest

from pipeline.core.checksums import write_checksums
from pipeline.core.errors import (
    InputError,
    MissingArtifactError,
    StaleArtifactError,
)
from pipeline.download.records import write_table
from pipeline.index.format import ROWS, Window
from pipeline.index.reader import RowTable
from pipeline.search.searcher import Searcher, require_corpus
from tests.conftest import unseal


@pytest.fixture
def copied(tiny_run, tmp_path):
    shutil.copytree(tiny_run / "data/models/0", tmp_path / "model")
    shutil.copytree(tiny_run / "data/index", tmp_path / "index")
    return tmp_path


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_an_index_of_another_model_is_refused(copied):
    change(copied / "model/config.json", layer_norm_eps=1e-6)
    with pytest.raises(StaleArtifactError, match="another student") as error:
        Searcher.open(copied / "model", copied / "index")
    assert "dvc repro -f index" in error.value.fix


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"schema": 2}, StaleArtifactError, "index was built by another version of the project"),
        ({"spaces": "texts"}, InputError, "names no spaces"),
    ],
)
def test_a_manifest_of_another_version_or_type_is_refused(copied, changes, error, words):
    unseal(copied / "index")
    change(copied / "index/manifest.json", **changes)
    with pytest.raises(error, match=words):
        Searcher.open(copied / "model", copied / "index")


def test_other_pairs_are_refused(tiny_run, copied):
    require_corpus(
        tiny_run / "data/pairs", Searcher.open(copied / "model", copied / "index").corpus
    )
    with pytest.raises(StaleArtifactError, match="other pairs") as error:
        require_corpus(tiny_run / "data/pairs", "another")
    assert "dvc repro index" in error.value.fix


FILES = [
    "texts.faiss", "grounded.faiss", "images.faiss", "texts.parquet", "images.parquet",
    "manifest.json", "query.onnx", "tokenizer.json",
]  # fmt: skip


def assert_refused(folder, name):
    with pytest.raises((InputError, MissingArtifactError), match=name) as error:
        Searcher.open(folder / "model", folder / "index")
    assert "`dvc repro" in error.value.fix


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_named(copied, name):
    """Because of their checksums, and without those by the library that reads them."""
    path = copied / "index" / name
    content = path.read_bytes()
    for is_sealed in (True, False):
        for damaged in (b"rot", content[: len(content) // 2], b""):
            path.write_bytes(damaged)
            assert_refused(copied, name)
        path.unlink()
        assert_refused(copied, name)
        if is_sealed:
            unseal(copied / "index")


@pytest.mark.parametrize("name", [*FILES, "checksums.json"])
def test_a_flipped_bit_is_noticed_when_the_index_is_opened(copied, name):
    path = copied / "index" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.write_bytes(content)
    assert_refused(copied, name)


@pytest.mark.parametrize("name", ["texts.faiss", "texts.parquet", "query.onnx", "tokenizer.json"])
def test_what_a_library_says_of_a_file_that_is_whole_is_passed_on(copied, name):
    (copied / "index" / name).write_bytes(b"rot")
    write_checksums(copied / "index", name)
    with pytest.raises(InputError, match=rf"{name} cannot be used: .{{8,}}") as error:
        Searcher.open(copied / "model", copied / "index")
    assert "damaged" not in error.value.what


def test_files_that_do_not_belong_together_are_refused(copied):
    rows = pd.read_parquet(copied / "index/texts.parquet")
    write_table(copied / "index/texts.parquet", rows.iloc[:-3], ROWS)
    with pytest.raises(InputError, match=r"texts.faiss does not fit its texts.parquet"):
        Searcher.open(copied / "model", copied / "index")


def test_a_table_of_other_columns_is_refused(copied):
    rows = pd.read_parquet(copied / "index/images.parquet")
    unseal(copied / "index")
    rows.drop(columns="count").to_parquet(copied / "index/images.parquet")
    with pytest.raises(InputError, match=r"images.parquet has other columns"):
        Searcher.open(copied / "model", copied / "index")


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """A table of three row groups in which row n is n."""
    rows = 70_000
    table = {name: [""] * rows for name in ("kind", "archive", "member")}
    numbers = list(range(rows))
    table |= {"id": numbers, "count": numbers, "text": [str(number) for number in numbers]}
    path = tmp_path_factory.mktemp("numbered") / "texts.parquet"
    write_table(path, table, ROWS)
    return RowTable.open(path)


def require_rows(table, wanted):
    found = table.take(wanted)
    assert {row: (one["id"], one["text"]) for row, one in found.items()} == {
        row: (row, str(row)) for row in wanted
    }


def test_rows_are_found_whatever_their_row_group(numbered):
    drawn = np.random.default_rng(0).integers(0, len(numbered), 50).tolist()
    require_rows(numbered, [*drawn, 0, len(numbered) - 1, 32_768, 32_767])
    assert numbered.take([]) == {}


@pytest.mark.integration
def test_many_threads_may_read_one_table(numbered):
    """Arrow's reader is of one thread: two at once found "no matching cache entry"."""
    drawn = np.random.default_rng(0).integers(0, len(numbered), (400, 3)).tolist()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda wanted: require_rows(numbered, wanted), drawn))


def test_a_text_only_student_answers_no_pictures(tiny_run):
    searcher = Searcher.open(tiny_run / "data/models/0", tiny_run / "data/index")
    blind = type(searcher.index)(
        {"texts": searcher.index.searchers["texts"]}, {"texts": searcher.index.tables["texts"]}
    )
    query = np.ones((1, 128), dtype=np.float32)
    assert blind.search("texts", query, Window(1))[0]
    with pytest.raises(InputError, match="no images"):
        blind.search("images", query, Window(1))
