"""Reader of a table of images and captions: CSV, TSV, JSONL or Parquet, row by row."""

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.download.archives import reports_unreadable
from pipeline.download.parquet import ParquetRows, require_column
from pipeline.errors import InputError
from pipeline.params.download import FolderParams
from pipeline.redact import one_line

_BLOCK = "download.folder"
_LONGEST_LINE = 1 << 26
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
    """The rows of the table, in order; text is UTF-8, with or without a byte order mark.

    Args:
        path: .csv and .tsv have a header and fields quoted as in CSV; .jsonl has an object a line.
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
            f"name a table of one of these kinds as {_BLOCK}.captions.",
        )
    with reports_unreadable(path):
        is_there = path.is_file()
    if not is_there:
        raise InputError(f"{path} does not exist.", f"check {_BLOCK}.captions.")
    for where, cells in reader(path, params):
        yield _row(where, cells, params)


def _row(where: str, cells: Mapping[str, Any], params: FolderParams) -> Row:
    captions = list(_texts(cells[params.caption_column], where, params.caption_column))
    split = params.split_column
    return Row(
        where,
        image=_text(cells[params.image_column], where, params.image_column),
        captions=captions or [""],
        split=_text(cells[split], where, split) if split else None,
    )


def _text(value: object, where: str, column: str) -> str:
    if isinstance(value, str) and value.strip():
        return value
    shown = "empty" if _is_missing(value) or value == "" else f"{value!r:.60}, no text"
    raise InputError(f"{where}: {column} is {shown}.", "mend the row, or remove it.")


def _texts(value: object, where: str, column: str) -> Iterator[str]:
    """The captions of a cell, which is a text, a list of texts, or missing."""
    if isinstance(value, list):
        for one in value:
            yield "" if _is_missing(one) else _caption(one, where, column)
    else:
        yield "" if _is_missing(value) else _caption(value, where, column)


def _caption(value: object, where: str, column: str) -> str:
    if isinstance(value, str):
        return value
    raise InputError(f"{where}: {column} is {value!r:.60}, no text.", "mend the row, or remove it.")


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _columns(params: FolderParams) -> dict[str, str]:
    """The columns that are read, by the param that names them."""
    names = ("image_column", "caption_column", "split_column")
    found = {f"{_BLOCK}.{name}": getattr(params, name) for name in names}
    return {key: column for key, column in found.items() if column is not None}


def _read_csv(path: Path, params: FolderParams) -> Iterator[Cells]:
    return _read_fields(path, params, ",")


def _read_tsv(path: Path, params: FolderParams) -> Iterator[Cells]:
    return _read_fields(path, params, "\t")


def _read_fields(path: Path, params: FolderParams, delimiter: str) -> Iterator[Cells]:
    csv.field_size_limit(_LONGEST_LINE)  # of the whole process; it starts below a long caption
    records = _Records(path, delimiter)
    header = next(records, (0, []))[1]
    for key, column in _columns(params).items():
        require_column(str(path), header, key, column)
    for line, fields in records:
        where = f"{path} line {line:,}"
        if len(fields) != len(header):
            raise InputError(
                f"{where} has {len(fields)} fields, the header {len(header)}.",
                f"quote fields that contain the separator {delimiter!r}, or use .jsonl.",
            )
        yield where, dict(zip(header, fields, strict=True))


class _Records(Iterator[tuple[int, list[str]]]):
    """The records of a file of fields, each with the number of its first line."""

    def __init__(self, path: Path, delimiter: str) -> None:
        self._path = path
        lines = (line for _, line in _lines(path))
        self._reader = csv.reader(lines, delimiter=delimiter, strict=True)

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
            raise InputError(
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
        raise InputError(
            f"{where} is no JSON: {' '.join(str(error).split())}.", "write one object a line."
        ) from None
    if not isinstance(cells, dict):
        raise InputError(f"{where} is no object.", "write one object a line, such as {...}.")
    for key, column in _columns(params).items():
        require_column(where, list(cells), key, column)
    return cells


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file, numbered from 1, with their ends."""
    number = 0
    with reports_unreadable(path), path.open("rb") as stream:
        while raw := stream.readline(_LONGEST_LINE + 1):
            number += 1
            yield number, _decode(raw, f"{path} line {number:,}", first=number == 1)


def _decode(raw: bytes, where: str, *, first: bool) -> str:
    if len(raw) > _LONGEST_LINE:
        raise InputError(f"{where} is longer than {_LONGEST_LINE:,} bytes.", "check the file.")
    try:
        return raw.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where} is no UTF-8 at byte {error.start:,}.", "save the file as UTF-8."
        ) from None


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
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
