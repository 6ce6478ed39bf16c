"""Reading columns of other people's Parquet files, a few rows at a time."""

import contextlib
import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.errors import InputError
from pipeline.core.files import refusal
from pipeline.core.redact import first_line, one_line

Columns = Mapping[str, str | list[str]]
"""The columns that are read, by the param that names them; in a list, captions_* is a pattern."""


def has_text(kind: pa.DataType) -> bool:
    """Whether cells of this type are texts or lists of texts."""
    if pa.types.is_nested(kind):
        kind = getattr(kind, "value_type", kind)
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return str(kind) in {"string", "large_string", "string_view"}


def has_images(kind: pa.DataType) -> bool:
    """Whether cells of this type are bytes, or {bytes, path} as `datasets` writes images."""
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return str(kind) in {"binary", "large_binary", "binary_view"}


def has_names(kind: pa.DataType) -> bool:
    """Whether cells of this type are texts or whole numbers."""
    return pa.types.is_integer(kind) or (has_text(kind) and not pa.types.is_nested(kind))


def has_vectors(kind: pa.DataType) -> bool:
    """Whether cells of this type are lists of floats."""
    is_list = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(check(kind) for check in is_list) and pa.types.is_floating(kind.value_type)


_WORDS: dict[Callable[[pa.DataType], bool], tuple[str, str]] = {
    has_text: ("text", "text"),
    has_images: ("images", "bytes, or as {bytes, path}"),
    has_names: ("text or whole numbers", "text"),
    has_vectors: ("vectors", "lists of floats"),
}
"""What cells are, and how to store them."""


class ParquetRows:
    """Columns of a Parquet file, which messages call `name`."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        with self._reports_damage():
            self._file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
            self._schema = self._file.schema_arrow
            self.columns: list[str] = self._schema.names
        self.count = int(self._file.metadata.num_rows)
        """Rows of the file."""

    def has(self, column: str | None, fits: Callable[[pa.DataType], bool]) -> bool:
        """Whether there is one column of this name, of a type that fits."""
        return self.columns.count(column or "") == 1 and fits(self._schema.field(column).type)

    def find(self, wanted: Columns, fits: Callable[[pa.DataType], bool]) -> dict[str, list[str]]:
        """The columns of each param, which must fit (one of the functions above); see below."""
        found = find_columns(self.name, self.columns, wanted)
        for key, column in ((key, column) for key, columns in found.items() for column in columns):
            if not self.has(column, fits):
                kind = one_line(str(self._schema.field(column).type), 120)
                what, stored = _WORDS[fits]
                raise InputError(
                    f"{self.name} has a column {column} of {kind}, not {what}.",
                    f"name another column as {key}, or store it as {stored}.",
                )
        return found

    def rows(self, columns: Sequence[str], at_once: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """The cells of each row by column, with its number from 0; `at_once` are in memory."""
        row = 0
        for batch in self.batches(columns, at_once):
            for cells in zip(*batch.columns, strict=True):
                try:
                    values = [cell.as_py() for cell in cells]
                except UnicodeDecodeError:
                    raise InputError(
                        f"{self.name} row {row:,} holds text that is not UTF-8.",
                        "write the file again with its text as UTF-8.",
                    ) from None
                yield row, dict(zip(batch.schema.names, values, strict=True))
                row += 1

    def batches(self, columns: Sequence[str], at_once: int) -> Iterator[pa.RecordBatch]:
        """The rows, `at_once` at a time, by column."""
        names = list(dict.fromkeys(columns))
        batches = self._file.iter_batches(at_once, columns=names, use_threads=False)
        while True:
            with self._reports_damage():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    @contextlib.contextmanager
    def _reports_damage(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise refusal(self.name, error) from None
            raise InputError(
                f"{self.name} cannot be read as Parquet: {first_line(error, 200)}.",
                "get or write the file again.",
            ) from None


def find_columns(
    table: str, columns: Sequence[str], wanted: Columns, hint: str = ""
) -> dict[str, list[str]]:
    """The columns of each param; a table without one, or with several of its name, is refused."""
    found = {}
    for key, names in wanted.items():
        found[key] = [names] if isinstance(names, str) else _matching(columns, names)
        for column in found[key]:
            if columns.count(column) != 1:
                problem = "has several columns" if column in columns else "has no column"
                shown = one_line(", ".join(repr(one)[:40] for one in columns[:20]), 200)
                several = "" if isinstance(names, str) else ", or to several, such as caption_*"
                raise InputError(
                    f"{table} {problem} {column!r:.60}; its columns are {shown or 'none'}.",
                    f"set {key} to the right one{several}{hint}.",
                )
    return found


def _matching(columns: Sequence[str], names: Sequence[str]) -> list[str]:
    """The columns of these names, or of the patterns among them; unknown names stay as they are."""
    several = (
        [name] if name in columns else fnmatch.filter(columns, name) or [name] for name in names
    )
    return list(dict.fromkeys(column for found in several for column in found))
