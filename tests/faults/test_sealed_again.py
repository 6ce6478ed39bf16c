"""A checksum that fits, and content that does not: what mutated bytes came to, kept as tests."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.core.errors import InputError
from pipeline.download.records import read_sentences
from pipeline.index.format import ROWS
from pipeline.index.queries import ExportedQueries
from pipeline.index.reader import RowTable

ROW = {"kind": "text", "id": 1, "text": "a dog", "count": 1, "archive": "", "member": ""}
NO_UTF8 = pa.array([b"\xff"], pa.binary()).view(pa.string())


def table(tmp_path, **changes) -> RowTable:
    columns = [changes.get(name, pa.array([ROW[name]], ROWS.field(name).type)) for name in ROW]
    pq.write_table(pa.table(columns, schema=ROWS), tmp_path / "texts.parquet")
    return RowTable.open(tmp_path / "texts.parquet")


def test_a_sound_row_is_read(tmp_path):
    assert table(tmp_path).take([0]) == {0: ROW}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text": NO_UTF8}, "texts.parquet cannot be used: .*utf-8"),
        ({"kind": pa.array([None], pa.string())}, "texts.parquet has a row without kind"),
        ({"count": pa.array([None], pa.int64())}, "texts.parquet has a row without count"),
    ],
)
def test_a_row_without_a_usable_value_is_refused(tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        table(tmp_path, **changes).take([0])


def sentences(folder, column: str, text: pa.Array) -> list[str]:
    pq.write_table(pa.table({column: text}), folder / "sentences.parquet")
    return read_sentences(folder)


def test_a_table_of_ours_is_text_under_names_that_a_terminal_shows(tmp_path):
    sound = pa.array(["a caf\u00e9"])
    assert sentences(tmp_path, "sentence", sound) == ["a caf\u00e9"]
    with pytest.raises(InputError, match=r"sentences.parquet cannot be read: .*UTF8") as refused:
        sentences(tmp_path, "sentence", NO_UTF8)
    assert refused.value.what.isprintable()
    with pytest.raises(InputError, match=r"has columns sen\\x00tence") as refused:
        sentences(tmp_path, "sen\0tence", sound)
    assert refused.value.what.isprintable()


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf])
def test_a_vector_of_a_query_is_finite(value):
    """Nothing is near one that is not, and nothing would be found without a word."""
    tokenizer = SimpleNamespace(encode_batch=lambda texts: [SimpleNamespace(ids=[1, 2])])
    vectors = np.full((1, 4), value, np.float32)
    queries = ExportedQueries(SimpleNamespace(run=lambda names, tokens: [vectors]), tokenizer)
    if np.isfinite(value):
        assert np.array_equal(queries.embed(["a dog"], "texts"), vectors)
    else:
        with pytest.raises(InputError, match=r"query\.onnx gave a vector that is not finite"):
            queries.embed(["a dog"], "texts")
