"""Reader of tables: separated fields, JSON, JSONL or Parquet, row by row.

Fields are read by Python's csv, not pyarrow.csv, which names rows but not lines, accepts text after
a closing quote and quotes that are never closed, and refuses rows that are longer than a block.
Objects are read by json, not pyarrow.json, which wants all captions to be of one type.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from pipeline.core.errors import InputError
from pipeline.core.files import reports_unreadable
from pipeline.core.plaintext import LONGEST_LINE, decode, is_blank, read_lines
from pipeline.core.redact import first_fault, first_line, one_line
from pipeline.download.pairing import is_missing, read_captions
from pipeline.download.parquet import Columns, ParquetRows, find_columns, has_text
from pipeline.params.download import FolderParams
from pipeline.params.places import why_missing

_BLOCK = "download.folder"
_SEPARATORS = (",", "\t", ";", "|")
_TOKEN = re.compile(r"([^\t]*[^\t\s])#\d+\t(.*)", re.DOTALL)
"""A line of Flickr8k.token.txt: name of the image, number, caption."""

_Rows = Iterator[tuple[str, Mapping[str, Any]]]
"""Where each row is, for messages, and its cells by column."""


class Row(NamedTuple):
    """One row of a table of captions."""

    where: str
    """File and line, or row, for messages."""
    image: str
    """Path of the image as it is written."""
    captions: list[str]
    """One or more; "" where there is none."""
    split: str | None
    """The name of its split as it is written; None where the table names none."""


def read_rows(path: Path, params: FolderParams) -> Iterator[Row]:
    """The rows of the table of captions whose columns `params` names, in order."""
    image, caption, split = (f"{_BLOCK}.{of}_column" for of in ("image", "caption", "split"))
    columns: Columns = {image: params.image_column, caption: as_list(params.caption_column)}
    if params.split_column is not None:
        columns = {**columns, split: params.split_column}
    separator = "\t" if params.separator == "tab" else params.separator
    for where, cells in read_cells(path, f"{_BLOCK}.captions", columns, separator):
        yield Row(
            where,
            image=_text(cells[image], where),
            captions=join_captions(cells[caption], where),
            split=_text(cells[split], where) if split in cells else None,
        )


def as_list(columns: str | list[str]) -> list[str]:
    """Columns that may be several."""
    return [columns] if isinstance(columns, str) else columns


def join_captions(cells: Mapping[str, Any], where: str) -> list[str]:
    """The captions of one column, or of several without empty cells; [""] where all are empty."""
    found = [
        text for name, cell in cells.items() for text in read_captions(cell, f"{where}: {name}")
    ]
    return found if len(cells) == 1 else [text for text in found if not is_blank(text)] or [""]


def read_cells(
    path: Path, file: str, columns: Columns, separator: str | None = None
) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """The rows of a table, which the param `file` names: where each is, and its cells by param.

    A .csv, .tsv or .txt has a header and fields quoted as in CSV, separated by commas, tabs,
    semicolons or bars (None: recognised), or lines as in Flickr8k.token.txt; .jsonl has an object
    a line; .json has a list of objects, or is COCO's. Flickr8k's and COCO's have the columns
    `image` and `caption`. Errors count the lines of text files from 1, rows of Parquet and entries
    of lists from 0.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"{path} is none of {', '.join(READERS)} by its ending.",
            f"name an uncompressed table of one of these formats as {file}.",
        )
    require_file(path, file)
    for where, row in reader(path, columns, separator):
        found = find_columns(where, list(row), columns)
        yield where, {key: {one: row[one] for one in several} for key, several in found.items()}


def require_file(path: Path, key: str) -> None:
    """Refuse a path, named by a param, at which there is no file."""
    with reports_unreadable(path):
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise InputError(*why_missing(str(path), key, what))


def _text(cells: Mapping[str, Any], where: str) -> str:
    ((column, value),) = cells.items()
    if isinstance(value, str) and not is_blank(value):
        return value
    empty = is_missing(value) or isinstance(value, str)
    shown = "empty" if empty else f"{value!r:.60}, not text"
    raise InputError(f"{where}: {column} is {shown}.", "fix the row, or remove it.")


def _read_fields(path: Path, columns: Columns, separator: str | None) -> _Rows:
    csv.field_size_limit(LONGEST_LINE)  # for the whole process; a long caption exceeds the default
    first = next((line for _, line in _lines(path) if line.strip()), "")
    if separator in {None, "\t"} and _TOKEN.fullmatch(first.rstrip("\n")):
        yield from _read_tokens(path)
        return
    separator = _separator(path, columns, [separator] if separator else _SEPARATORS)
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


def _read_tokens(path: Path) -> _Rows:
    for number, line in _lines(path):
        where, found = f"{path} line {number:,}", _TOKEN.fullmatch(line.rstrip("\n"))
        if found:
            yield where, {"image": found[1], "caption": found[2]}
        elif line.strip():
            raise InputError(
                f"{where} is not NAME#NUMBER, a tab and a caption, as the first line is.",
                "fix the line, or remove it.",
            )


def _separator(path: Path, columns: Columns, separators: Sequence[str]) -> str:
    """The one by which the header has the columns that are read."""
    hint = ", or write a first line with the names of the columns if there is none"
    refusals: list[tuple[int, InputError]] = []
    for one in separators:
        record = next(_records(path, one, strict=False), None)
        header = record[1] if record else []
        table = f"{path}, separated by {one!r}," if header else f"{path}"
        try:
            find_columns(table, header, columns, hint)
        except InputError as error:
            refusals.append((len(header), error))
        else:
            return one
    raise max(refusals, key=lambda refusal: refusal[0])[1]


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


def _read_jsonl(path: Path, *_: object) -> _Rows:
    for number, line in _lines(path):
        if line.strip():
            where = f"{path} line {number:,}"
            yield where, _object(_parse(line, where), where)


def _read_json(path: Path, *_: object) -> _Rows:
    with reports_unreadable(path):
        content = path.read_bytes()
    found = _parse(decode(content, str(path)), str(path))
    if isinstance(found, dict) and {"images", "annotations"} <= found.keys():
        yield from _read_coco(found, path)
        return
    if not isinstance(found, list):
        keys = one_line(", ".join(map(str, found)), 120) if isinstance(found, dict) else "no keys"
        raise InputError(
            f"{path} is neither a list of objects nor COCO's images and annotations; it "
            f"has {keys}.",
            "write a list of objects, or one object a line as .jsonl.",
        )
    for number, cells in enumerate(found):
        where = f"{path} entry {number:,}"
        yield where, _object(cells, where)


class _CocoImage(BaseModel):
    id: int | str
    file_name: str


class _CocoCaption(BaseModel):
    image_id: int | str
    caption: str


class _Coco(BaseModel):
    images: list[_CocoImage]
    annotations: list[_CocoCaption]


def _read_coco(content: Mapping[str, Any], path: Path) -> _Rows:
    """The captions of a file such as captions_train2014.json, each with the name of its image."""
    try:
        coco = _Coco.model_validate(content, strict=True)
    except ValidationError as error:
        raise InputError(
            f"{path} has no usable {first_fault(error)}.",
            "name one of COCO's files of captions, such as captions_train2014.json.",
        ) from None
    names = {image.id: image.file_name for image in coco.images}
    for number, one in enumerate(coco.annotations):
        where = f"{path} annotation {number:,}"
        if one.image_id not in names:
            raise InputError(
                f"{where} is of the image {one.image_id!r:.60}, which is none of its images.",
                "add the image, or remove the annotation.",
            )
        yield where, {"image": names[one.image_id], "caption": one.caption}


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _malformed(where, f"JSON: {first_line(error, 120)}") from None


def _object(cells: Any, where: str) -> Mapping[str, Any]:
    if isinstance(cells, dict):
        return cells
    raise _malformed(where, "an object")


def _malformed(where: str, problem: str) -> InputError:
    return InputError(
        f"{where} is not {problem}.",
        "write .jsonl as one object a line, without a comma after it, and .json as one list of "
        "objects; `jq -c '.[]' OLD > NEW` makes the first of the second.",
    )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with reports_unreadable(path), path.open("rb") as stream:
        yield from read_lines(stream, str(path))


def _read_parquet(path: Path, columns: Columns, _: object) -> _Rows:
    table = ParquetRows(path, str(path))
    found = table.find(columns, has_text)
    names = [name for several in found.values() for name in several]
    for row, cells in table.rows(names, at_once=4096):
        yield f"{path} row {row:,}", cells


READERS: Mapping[str, Callable[[Path, Columns, str | None], _Rows]] = {
    ".csv": _read_fields,
    ".tsv": _read_fields,
    ".txt": _read_fields,
    ".token": _read_fields,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
"""By the ending of the table."""
