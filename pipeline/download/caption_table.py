"""Reader of a table of images and captions: separated fields, JSONL or Parquet, row by row.

Fields are read by Python's csv, not pyarrow.csv, which names rows but not lines, accepts text after
a closing quote and quotes that are never closed, and refuses rows that are longer than a block.
Objects are read by json, not pyarrow.json, which wants all captions to be of one type.
"""

import csv
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.core.errors import InputError
from pipeline.core.files import reports_unreadable
from pipeline.core.plaintext import LONGEST_LINE, is_blank, read_lines
from pipeline.core.redact import first_line
from pipeline.download.captions import is_missing, read_captions
from pipeline.download.parquet import ParquetRows, has_text, require_column
from pipeline.params.download import FolderParams
from pipeline.params.places import why_missing

_BLOCK = "download.folder"
_PARQUET_BATCH = 4096
_LONGEST = 120
"""Characters of what a library says, in a message."""

Cells = tuple[str, Mapping[str, Any]]
"""Where a row is, for messages, and its cells by column."""

Columns = Mapping[str, str]
"""The columns that are read, by the param that names them."""


class Row(NamedTuple):
    """One row of the table."""

    where: str
    """File and line, or row, for messages."""
    image: str
    """Path of the image as it is written."""
    captions: list[str]
    """One or more; "" where there is none."""
    split: str | None
    """The name of its split as it is written; None where the table names none."""


def read_rows(path: Path, params: FolderParams) -> Iterator[Row]:
    """The rows of the table, in order.

    Args:
        path: .csv, .tsv and .txt have a header and fields quoted as in CSV, separated by commas,
            tabs, semicolons or bars; .jsonl has an object a line.
        params: names the columns.

    Raises:
        InputError: it is not there, lacks a column, or a row is malformed. Lines of text files
            are counted from 1, rows of Parquet from 0.
        ResourceError: it cannot be read.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"{path} is none of {', '.join(READERS)} by its ending.",
            f"name an uncompressed table of one of these formats as {_BLOCK}.captions.",
        )
    with reports_unreadable(path):
        is_there = path.is_file()
    if not is_there:
        raise InputError(*why_missing(str(path), f"{_BLOCK}.captions"))
    image, caption, split = params.image_column, params.caption_column, params.split_column
    columns = {f"{_BLOCK}.image_column": image, f"{_BLOCK}.caption_column": caption}
    if split is not None:
        columns[f"{_BLOCK}.split_column"] = split
    for where, cells in reader(path, columns):
        yield Row(
            where,
            image=_text(cells[image], f"{where}: {image}"),
            captions=read_captions(cells[caption], f"{where}: {caption}"),
            split=_text(cells[split], f"{where}: {split}") if split else None,
        )


def _text(value: object, where: str) -> str:
    if isinstance(value, str) and not is_blank(value):
        return value
    empty = is_missing(value) or isinstance(value, str)
    shown = "empty" if empty else f"{value!r:.60}, not text"
    raise InputError(f"{where} is {shown}.", "fix the row, or remove it.")


def _read_fields(path: Path, columns: Columns, separators: str) -> Iterator[Cells]:
    csv.field_size_limit(LONGEST_LINE)  # for the whole process; a long caption exceeds the default
    separator = _separator(path, columns, separators)
    records = _records(path, separator)
    _, header = next(records)
    for line, fields in records:
        where = f"{path} line {line:,}"
        if len(fields) != len(header):
            raise InputError(
                f"{where} has {len(fields)} fields, the header {len(header)}, separated by "
                f"{separator!r}.",
                f"complete the row, quote fields that hold {separator!r}, or use .jsonl.",
            )
        yield where, dict(zip(header, fields, strict=True))


def _separator(path: Path, columns: Columns, separators: str) -> str:
    """The first separator by which the header has the columns that are read.

    Raises:
        InputError: none; the columns are named as the most frequent separator gives them.
    """
    wanted = set(columns.values())
    headers = {one: _header(path, one) for one in separators}
    fitting = (one for one in separators if wanted <= set(headers[one]))
    separator = next(fitting, None) or max(separators, key=lambda one: len(headers[one]))
    next(_records(path, separator), None)  # raises if the line itself is malformed
    table = f"{path}, separated by {separator!r}," if headers[separator] else f"{path}"
    hint = ", or write a first line with the names of the columns if there is none"
    for key, column in columns.items():
        require_column(table, headers[separator], key, column, hint)
    return separator


def _header(path: Path, separator: str) -> list[str]:
    """The first line by one separator; empty where it is not well-formed by that one."""
    try:
        return next(_records(path, separator), (0, []))[1]
    except _MalformedError:
        return []


class _MalformedError(InputError):
    """A record is not quoted as in CSV."""


def _records(path: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The records that are not empty lines, each with the number of its first line."""
    lines = (line for _, line in _lines(path))
    reader = csv.reader(lines, delimiter=separator, strict=True)
    fields: list[str] | None = []
    while fields is not None:
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise _MalformedError(
                f"{path} line {line:,} is malformed: {first_line(error, _LONGEST)}.",
                'close every quoted field, and double the quotes (") inside it.',
            ) from None
        if fields:
            yield line, [field.strip() for field in fields]


def _read_jsonl(path: Path, columns: Columns) -> Iterator[Cells]:
    for number, line in _lines(path):
        if line.strip():
            where = f"{path} line {number:,}"
            cells = _object(line, where)
            for key, column in columns.items():
                require_column(where, list(cells), key, column)
            yield where, cells


def _object(line: str, where: str) -> Mapping[str, Any]:
    fix = (
        "write one object a line, without a comma after it; `jq -c '.[]' OLD > NEW` makes that of "
        "one list of objects."
    )
    try:
        cells = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {first_line(error, _LONGEST)}.", fix) from None
    if not isinstance(cells, dict):
        raise InputError(f"{where} is not an object.", fix)
    return cells


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with reports_unreadable(path), path.open("rb") as stream:
        yield from read_lines(stream, str(path))


def _read_parquet(path: Path, columns: Columns) -> Iterator[Cells]:
    table = ParquetRows(path, str(path))
    for key, column in columns.items():
        table.require(key, column, has_text)
    for row, cells in table.rows(list(columns.values()), _PARQUET_BATCH):
        yield f"{path} row {row:,}", cells


_read_csv = functools.partial(_read_fields, separators=",\t;|")
_read_tsv = functools.partial(_read_fields, separators="\t,;|")

READERS: Mapping[str, Callable[[Path, Columns], Iterator[Cells]]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".txt": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
"""By the ending of the table."""
