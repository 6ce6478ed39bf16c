"""Reader of a table of images and captions: separated fields, JSONL or Parquet, row by row.

Fields are read by Python's csv, not pyarrow.csv, which names rows but not lines, accepts text after
a closing quote and quotes that are never closed, and refuses rows that are longer than a block.
Objects are read by json, not pyarrow.json, which wants all captions to be of one type.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.core.errors import InputError
from pipeline.core.files import reports_unreadable
from pipeline.core.plaintext import LONGEST_LINE, is_blank, read_lines
from pipeline.core.redact import first_line
from pipeline.download.pairing import is_missing, read_captions
from pipeline.download.parquet import ParquetRows, has_text, require_column
from pipeline.params.download import FolderParams
from pipeline.params.places import why_missing

_BLOCK = "download.folder"
_SEPARATORS = ",\t;|"

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
    """The rows of the table whose columns `params` names, in order.

    A .csv, .tsv or .txt has a header and fields quoted as in CSV, separated by commas, tabs,
    semicolons or bars; .jsonl has an object a line. Errors count the lines of text files from 1,
    rows of Parquet from 0.
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


def _read_fields(path: Path, columns: Columns) -> Iterator[Cells]:
    csv.field_size_limit(LONGEST_LINE)  # for the whole process; a long caption exceeds the default
    separator = _separator(path, columns)
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


def _separator(path: Path, columns: Columns) -> str:
    """The separator by which the header has the columns that are read."""
    first = {one: next(_records(path, one, strict=False), None) for one in _SEPARATORS}
    headers = {one: record[1] if record else [] for one, record in first.items()}
    wanted = set(columns.values())
    fitting = (one for one, header in headers.items() if wanted <= set(header))
    separator = next(fitting, None) or max(headers, key=lambda one: len(headers[one]))
    table = f"{path}, separated by {separator!r}," if headers[separator] else f"{path}"
    hint = ", or write a first line with the names of the columns if there is none"
    for key, column in columns.items():
        require_column(table, headers[separator], key, column, hint)
    return separator


def _records(path: Path, separator: str, *, strict: bool = True) -> Iterator[tuple[int, list[str]]]:
    """The records that are not empty lines, each with the number of its first line."""
    reader = csv.reader((line for _, line in _lines(path)), delimiter=separator, strict=strict)
    fields: list[str] | None = []
    while fields is not None:
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise InputError(
                f"{path} line {line:,} is malformed: {first_line(error, 120)}.",
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
    problem = "an object"
    try:
        cells = json.loads(line)
        if isinstance(cells, dict):
            return cells
    except (ValueError, RecursionError) as error:
        problem = f"JSON: {first_line(error, 120)}"
    raise InputError(
        f"{where} is not {problem}.",
        "write one object a line, without a comma after it; `jq -c '.[]' OLD > NEW` makes that of "
        "one list of objects.",
    )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with reports_unreadable(path), path.open("rb") as stream:
        yield from read_lines(stream, str(path))


def _read_parquet(path: Path, columns: Columns) -> Iterator[Cells]:
    table = ParquetRows(path, str(path))
    for key, column in columns.items():
        table.require(key, column, has_text)
    for row, cells in table.rows(list(columns.values()), at_once=4096):
        yield f"{path} row {row:,}", cells


READERS: Mapping[str, Callable[[Path, Columns], Iterator[Cells]]] = {
    ".csv": _read_fields,
    ".tsv": _read_fields,
    ".txt": _read_fields,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
"""By the ending of the table."""
