"""Reader of a table of images and captions: separated fields, JSONL or Parquet, row by row."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.core.errors import InputError
from pipeline.core.files import reports_unreadable
from pipeline.core.plaintext import LONGEST_LINE, is_blank, read_lines
from pipeline.core.redact import one_line
from pipeline.download.captions import is_missing, read_captions
from pipeline.download.parquet import ParquetRows, require_column
from pipeline.params.download import FolderParams
from pipeline.params.places import why_missing

_BLOCK = "download.folder"
_PARQUET_BATCH = 4096

Cells = tuple[str, Mapping[str, Any]]
"""Where a row stands, for messages, and its cells by column."""


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
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"{path} is none of {', '.join(_READERS)} by its ending.",
            f"name a table of one of these kinds, unpacked, as {_BLOCK}.captions.",
        )
    with reports_unreadable(path):
        is_there = path.is_file()
    if not is_there:
        raise InputError(*why_missing(str(path), f"{_BLOCK}.captions"))
    for where, cells in reader(path, params):
        yield _row(where, cells, params)


def _row(where: str, cells: Mapping[str, Any], params: FolderParams) -> Row:
    column, split = params.caption_column, params.split_column
    return Row(
        where,
        image=_text(cells[params.image_column], where, params.image_column),
        captions=read_captions(cells[column], f"{where}: {column}"),
        split=_text(cells[split], where, split) if split else None,
    )


def _text(value: object, where: str, column: str) -> str:
    if isinstance(value, str) and not is_blank(value):
        return value
    empty = is_missing(value) or isinstance(value, str)
    shown = "empty" if empty else f"{value!r:.60}, no text"
    raise InputError(f"{where}: {column} is {shown}.", "mend the row, or remove it.")


def _columns(params: FolderParams) -> dict[str, str]:
    """The columns that are read, by the param that names them."""
    names = ("image_column", "caption_column", "split_column")
    found = {f"{_BLOCK}.{name}": getattr(params, name) for name in names}
    return {key: column for key, column in found.items() if column is not None}


def _read_csv(path: Path, params: FolderParams) -> Iterator[Cells]:
    return _read_fields(path, params, ",\t;|")


def _read_tsv(path: Path, params: FolderParams) -> Iterator[Cells]:
    return _read_fields(path, params, "\t,;|")


def _read_fields(path: Path, params: FolderParams, separators: str) -> Iterator[Cells]:
    csv.field_size_limit(LONGEST_LINE)  # of the whole process; it starts below a long caption
    separator = _separator(path, params, separators)
    records = _Records(path, separator)
    header = _stripped(next(records)[1])
    for line, fields in records:
        where = f"{path} line {line:,}"
        if len(fields) != len(header):
            raise InputError(
                f"{where} has {len(fields)} fields, the header {len(header)}, separated by "
                f"{separator!r}.",
                f"complete the row, quote fields that hold {separator!r}, or use .jsonl.",
            )
        yield where, dict(zip(header, _stripped(fields), strict=True))


def _separator(path: Path, params: FolderParams, separators: str) -> str:
    """The first separator by which the header has the columns that are read.

    Raises:
        InputError: by none; the columns are named as the most frequent separator gives them.
    """
    columns = _columns(params)
    headers = {one: _header(path, one) for one in separators}
    fitting = [one for one in separators if set(columns.values()) <= set(headers[one])]
    separator = fitting[0] if fitting else max(separators, key=lambda one: len(headers[one]))
    next(_Records(path, separator), None)  # says what is wrong with the line itself, if it is
    table = f"{path}, separated by {separator!r}," if headers[separator] else f"{path}"
    for key, column in columns.items():
        require_column(table, headers[separator], key, column, _NO_HEADER)
    return separator


_NO_HEADER = ", or write a first line with the names of the columns where there is none"


def _header(path: Path, separator: str) -> list[str]:
    """The first line by one separator; none where it is not well-formed by that one."""
    try:
        return _stripped(next(_Records(path, separator), (0, []))[1])
    except _MalformedError:
        return []


class _MalformedError(InputError):
    """A record is not quoted as in CSV."""


def _stripped(fields: list[str]) -> list[str]:
    return [field.strip() for field in fields]


class _Records(Iterator[tuple[int, list[str]]]):
    """The records of a file of fields, each with the number of its first line."""

    def __init__(self, path: Path, separator: str) -> None:
        self._path = path
        lines = (line for _, line in _lines(path))
        self._reader = csv.reader(lines, delimiter=separator, strict=True)

    def __next__(self) -> tuple[int, list[str]]:
        fields: list[str] = []
        while not fields:  # an empty line
            line = self._reader.line_num + 1
            fields = self._next(line)
        return line, fields

    def _next(self, line: int) -> list[str]:
        try:
            return next(self._reader)
        except csv.Error as error:
            raise _MalformedError(
                f"{self._path} line {line:,} is malformed: {one_line(str(error), 120)}.",
                'close every quoted field, and double the quotes (") inside it.',
            ) from None


def _read_jsonl(path: Path, params: FolderParams) -> Iterator[Cells]:
    for number, line in _lines(path):
        if line.strip():
            where = f"{path} line {number:,}"
            yield where, _object(line, where, params)


def _object(line: str, where: str, params: FolderParams) -> Mapping[str, Any]:
    try:
        cells = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = one_line(" ".join(str(error).split()), 120)
        raise InputError(f"{where} is no JSON: {reason}.", _ONE_OBJECT) from None
    if not isinstance(cells, dict):
        raise InputError(f"{where} is no object.", _ONE_OBJECT)
    for key, column in _columns(params).items():
        require_column(where, list(cells), key, column)
    return cells


_ONE_OBJECT = (
    "write one object a line, without a comma behind it; `jq -c '.[]' OLD > NEW` makes that of one "
    "list of objects."
)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with reports_unreadable(path), path.open("rb") as stream:
        yield from read_lines(stream, str(path))


def _read_parquet(path: Path, params: FolderParams) -> Iterator[Cells]:
    columns = _columns(params)
    table = ParquetRows(path, columns)
    for key, column in columns.items():
        table.require_text(key, column)
    for start, cells in table.batches(_PARQUET_BATCH):
        for row, cell in enumerate(cells, start):
            yield f"{path} row {row:,}", cell


_READERS: Mapping[str, Callable[[Path, FolderParams], Iterator[Cells]]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".txt": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
