"""Text-only sentences of one's own: files of every kind, several files, none."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.core.errors import InputError
from pipeline.download.corpora import Fetcher, make_text
from pipeline.download.records import read_sentences
from tests.download.conftest import download_params

CELLS = ["One, two.", "", "  a\tb\u001b[31m ", None, "nan", '["Three", "Four"]']
READ = ["One, two.", "a b [31m", "Three", "Four"]


def write(path: Path, column: str) -> Path:
    cells = [{column: cell, "n": 1} for cell in CELLS]
    match path.suffix:
        case ".csv":
            quoted = ['"' + (cell or "").replace('"', '""') + '"' for cell in CELLS]
            path.write_text(f"n;{column}\n" + "".join(f"1;{cell}\n" for cell in quoted))
        case ".tsv":
            lines = [(cell or "").replace("\t", " ").replace('"', '""') for cell in CELLS]
            path.write_text(f"{column}\tn\n" + "".join(f'"{line}"\t1\n' for line in lines))
        case ".jsonl":
            path.write_text("\n".join(map(json.dumps, cells)))
        case ".json":
            path.write_text(json.dumps(cells))
        case ".parquet":
            pq.write_table(pa.table({column: CELLS, "n": [1] * len(CELLS)}), path)
    return path


def make(folder: Path, **changes: object) -> tuple[list[str], dict[str, int]]:
    params = download_params(**{"text": "file"} | changes)
    counts = make_text(folder / "text", params, Fetcher(folder / "downloads", None))
    return read_sentences(folder / "text"), counts


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_a_column_of_every_kind_of_table_gives_the_same_sentences(tmp_path, ending):
    table = write(tmp_path / f"t.{ending}", "sentence text")
    found, counts = make(tmp_path, text_file=str(table), text_column="sentence text")
    assert found == READ
    assert counts == {"sentences": 4, "sentences_empty": 3}


def test_a_text_file_is_read_as_the_public_one_is(tmp_path):
    (tmp_path / "wiki1m_for_simcse.txt").write_bytes(
        b"\xef\xbb\xbf One.\r\n\r\nnan\nTwo  x \xc3\xa9"
    )
    mirrored = Fetcher(tmp_path / "downloads", str(tmp_path))
    make_text(tmp_path / "public", download_params(text="wiki1m"), mirrored)
    found, counts = make(tmp_path, text_file=str(tmp_path / "wiki1m_for_simcse.txt"))
    assert found == read_sentences(tmp_path / "public") == ["One.", "nan", "Two  x \u00e9"]
    assert counts == {"sentences": 3, "sentences_empty": 0}


def test_several_files_are_read_in_their_order(tmp_path):
    (tmp_path / "b.txt").write_text("Last.")
    files = [str(write(tmp_path / "a.csv", "text")), str(tmp_path / "b.txt")]
    assert make(tmp_path, text_file=files[::-1])[0] == ["Last.", *READ]


def test_there_may_be_no_text(tmp_path):
    assert make(tmp_path, text="none") == ([], {"sentences": 0})


@pytest.mark.parametrize(
    ("name", "content", "words", "fix"),
    [
        ("none.txt", None, r"none\.txt does not exist", "download.text_file"),
        ("folder.txt", "", r"folder\.txt is a folder", "download.text_file"),
        ("empty.txt", "\n \n", "holds no sentence", "one a line"),
        ("empty.csv", "text\n\n", "holds no sentence", "download.text_column"),
        ("t.csv", "sentence,n\nx,1\n", "has no column 'text'", "set download.text_column"),
        ("t.jsonl", '{"text": 7}', "line 1: text is 7, not text", "fix the row"),
        ("t.xlsx", "x", r"none of \.csv, ", "download.text_file"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, name, content, words, fix):
    if content:
        (tmp_path / name).write_text(content)
    elif content is not None:
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=words) as error:
        make(tmp_path, text_file=str(tmp_path / name))
    assert fix in error.value.fix
    assert not (tmp_path / "text").exists()


@pytest.mark.parametrize("changes", [{"text": "file"}, {"text_file": "a.txt"}])
def test_a_file_is_named_where_it_is_read_and_only_there(changes):
    with pytest.raises(ValueError, match="text_file` names a file where text is `file`"):
        download_params(**changes)
