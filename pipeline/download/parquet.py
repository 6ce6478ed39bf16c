"""Reading columns of a Parquet file that somebody else made, a few rows at a time."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.errors import InputError, PipelineError
from pipeline.core.files import refusal
from pipeline.core.redact import one_line

_BUFFER = 1 << 20
_FAULTS = (pa.ArrowException, OSError, UnicodeDecodeError)
_LONGEST = 200
"""Characters of what Arrow says, in a message."""


def has_text(kind: pa.DataType) -> bool:
    """Whether cells of this type are texts or lists of texts."""
    if _is_one_of(kind, "list", "large_list", "fixed_size_list", "list_view"):
        kind = kind.value_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return _is_one_of(kind, "string", "large_string", "string_view")


def has_bytes(kind: pa.DataType) -> bool:
    """Whether cells of this type are bytes, or {bytes, path} as `datasets` writes images."""
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return _is_one_of(kind, "binary", "large_binary", "binary_view")


def _is_one_of(kind: pa.DataType, *names: str) -> bool:
    return any(getattr(pa.types, f"is_{name}")(kind) for name in names)


class ParquetRows:
    """Chosen columns of a Parquet file.

    Args:
        path: the file.
        keys: the columns by the params that name them, such as `download.hub.image_column`.
        name: of the file in messages; None: its path.

    Raises:
        InputError: it is damaged, or has no such column.
        ResourceError: it is not there, or cannot be read.
    """

    def __init__(self, path: Path, keys: dict[str, str], name: str | None = None) -> None:
        self.name = name or str(path)
        self._columns = list(dict.fromkeys(keys.values()))
        try:
            self._file = pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
            self.schema = self._file.schema_arrow
            names = self.schema.names
        except _FAULTS as error:
            raise self._fault(error) from None
        for key, column in keys.items():
            require_column(self.name, names, key, column)

    @property
    def count(self) -> int:
        """Rows of the file."""
        return int(self._file.metadata.num_rows)

    def require_text(self, key: str, column: str) -> None:
        """Refuse a column of numbers or the like.

        Raises:
            InputError: its cells are no texts.
        """
        kind = self.schema.field(column).type
        if not has_text(kind):
            raise InputError(
                f"{self.name} has a column {column} of {one_line(str(kind), 120)}, no text.",
                f"name another column as {key}, or store it as text.",
            )

    def batches(self, rows: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """The cells by column, `rows` rows at a time, each time with the number of the first.

        Raises:
            InputError: the file is damaged, or a text is no UTF-8.
            ResourceError: it cannot be read any more.
        """
        start = 0
        batches = self._file.iter_batches(rows, columns=self._columns, use_threads=False)
        while (batch := self._next(batches)) is not None:
            yield start, self._cells(batch, start)
            start += batch.num_rows

    def _next(self, batches: Iterator[pa.RecordBatch]) -> pa.RecordBatch | None:
        try:
            return next(batches, None)
        except _FAULTS as error:
            raise self._fault(error) from None

    def _cells(self, batch: pa.RecordBatch, start: int) -> list[dict[str, Any]]:
        try:
            return list(batch.to_pylist())
        except UnicodeDecodeError:
            row = next(
                row for row in range(batch.num_rows) if not _is_readable(batch.slice(row, 1))
            )
            raise InputError(
                f"{self.name} row {start + row:,} holds text that is no UTF-8.",
                "write the file again with its text as UTF-8.",
            ) from None

    def _fault(self, error: Exception) -> PipelineError:
        if isinstance(error, OSError) and error.errno is not None:
            return refusal(self.name, error)
        first = (str(error).splitlines() or [type(error).__name__])[0]
        reason = one_line(first, _LONGEST).rstrip(".")
        return InputError(
            f"{self.name} cannot be read as Parquet: {reason}.", "get or write the file again."
        )


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


_SHOWN = 20


def _is_readable(row: pa.RecordBatch) -> bool:
    try:
        row.to_pylist()
    except UnicodeDecodeError:
        return False
    return True
