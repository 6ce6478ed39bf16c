"""Reading columns of other people's Parquet files, a few rows at a time."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.errors import InputError
from pipeline.core.files import refusal
from pipeline.core.redact import first_line, one_line

_BUFFER = 1 << 20
_LONGEST = 200
"""Characters of Arrow's message, or of names of columns, in a message."""
_SHOWN = 20


def has_text(kind: pa.DataType) -> bool:
    """Whether cells of this type are texts or lists of texts."""
    if _is_one_of(kind, "list", "large_list", "fixed_size_list", "list_view"):
        kind = kind.value_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return _is_one_of(kind, "string", "large_string", "string_view")


def has_images(kind: pa.DataType) -> bool:
    """Whether cells of this type are bytes, or {bytes, path} as `datasets` writes images."""
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return _is_one_of(kind, "binary", "large_binary", "binary_view")


def _is_one_of(kind: pa.DataType, *names: str) -> bool:
    return any(getattr(pa.types, f"is_{name}")(kind) for name in names)


class ParquetRows:
    """Columns of a Parquet file.

    Args:
        path: the file.
        name: of the file, in messages.

    Raises:
        InputError: it is damaged.
        ResourceError: it is not there, or cannot be read.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        with self._reports_damage():
            self._file = pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
            self._schema = self._file.schema_arrow
            self.columns: list[str] = self._schema.names
        self.count = int(self._file.metadata.num_rows)
        """Rows of the file."""

    def has(self, column: str | None, fits: Callable[[pa.DataType], bool]) -> bool:
        """Whether there is one column of this name, of a type that fits."""
        return self.columns.count(column or "") == 1 and fits(self._schema.field(column).type)

    def require(self, key: str, column: str, fits: Callable[[pa.DataType], bool]) -> None:
        """Refuse a file without a column, or with one of another type.

        Args:
            key: the param that names the column, such as `download.hub.image_column`.
            column: the name.
            fits: `has_text` or `has_images`.

        Raises:
            InputError: naming the columns there are, or the column's type.
        """
        require_column(self.name, self.columns, key, column)
        if not self.has(column, fits):
            kind = self._schema.field(column).type
            text, images = ("text", "text"), ("images", "bytes, or as {bytes, path}")
            what, stored = text if fits is has_text else images
            raise InputError(
                f"{self.name} has a column {column} of {one_line(str(kind), 120)}, not {what}.",
                f"name another column as {key}, or store it as {stored}.",
            )

    def rows(self, columns: Sequence[str], at_once: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """The cells of each row by column, with its number from 0; `at_once` are in memory.

        Raises:
            InputError: the file is damaged, or a text is not UTF-8.
            ResourceError: it can no longer be read.
        """
        start = 0
        names = list(dict.fromkeys(columns))
        batches = self._file.iter_batches(at_once, columns=names, use_threads=False)
        while (batch := self._next(batches)) is not None:
            yield from enumerate(self._cells(batch, start), start)
            start += batch.num_rows

    def _next(self, batches: Iterator[pa.RecordBatch]) -> pa.RecordBatch | None:
        with self._reports_damage():
            return next(batches, None)

    def _cells(self, batch: pa.RecordBatch, start: int) -> list[dict[str, Any]]:
        try:
            return list(batch.to_pylist())
        except UnicodeDecodeError:
            if batch.num_rows > 1:  # one by one, to name the row
                return [
                    cells
                    for row in range(batch.num_rows)
                    for cells in self._cells(batch.slice(row, 1), start + row)
                ]
            raise InputError(
                f"{self.name} row {start:,} holds text that is not UTF-8.",
                "write the file again with its text as UTF-8.",
            ) from None

    @contextlib.contextmanager
    def _reports_damage(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise refusal(self.name, error) from None
            raise InputError(
                f"{self.name} cannot be read as Parquet: {first_line(error, _LONGEST)}.",
                "get or write the file again.",
            ) from None


def require_column(
    table: str, columns: Sequence[str], key: str, wanted: str, hint: str = ""
) -> None:
    """Refuse a table without a column, or with several of its name.

    Args:
        table: its name in messages.
        columns: those it has.
        key: the param that names the column.
        wanted: the name.
        hint: what else may be wrong.

    Raises:
        InputError: naming the columns there are.
    """
    if columns.count(wanted) == 1:
        return
    problem = "has several columns" if wanted in columns else "has no column"
    shown = one_line(", ".join(repr(column)[:40] for column in columns[:_SHOWN]), _LONGEST)
    raise InputError(
        f"{table} {problem} {wanted!r:.60}; its columns are {shown or 'none'}.",
        f"set {key} to the right one{hint}.",
    )
