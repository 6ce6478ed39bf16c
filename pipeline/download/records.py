"""CONTRACT of the corpora: the Parquet tables that `download` writes and all later steps read.

    pairs/images.parquet       image_id, split (train | val | test), archive, member
    pairs/captions.parquet     caption_id, image_id, caption
    pairs/archives.parquet     archive, bytes, modified (ns since 1970); only of shards elsewhere
    pairs/<archive>            the images, packed as downloaded (zip or tar)
    */checksums.json           sha256 of the tables, which are verified when they are read
    text/sentences.parquet     sentence; no rows where `download.text` is none
    evaluation/sts.parquet     task, subset, split, sentence1, sentence2, score
    evaluation/transfer.parquet task, split, sentence1, sentence2 (or null), label

Rows keep the order of their source. `archive` names a file in the same folder, or a shard elsewhere
by its absolute path; `member` names a file inside it. A shard elsewhere is not an output of
`download`, so its size and time represent its content: other pictures under the same names then
give another table. A caption may be empty. An STS row whose source has no gold score is left out.
The split of a transfer sample is train | dev | test, or `all` where the task is scored by
cross-validation; its label is a class from 0 on; `sentence2` is null in all rows of a task or in
none, and no other cell is null.
"""

import contextlib
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike

from pipeline.core.checksums import hash_strings, verify_checksums, write_checksums
from pipeline.core.errors import InputError, MissingArtifactError
from pipeline.core.files import atomic_file
from pipeline.core.redact import first_line, one_line

ELSEWHERE = "archives.parquet"
"""The table of archives that are not in the folder."""
ROW_GROUP = 1 << 15
"""Rows of a table that are written, and kept in memory, together."""

_REDO = "run `dvc repro -f download`."

Rows = pd.DataFrame | Mapping[str, Sequence[Any]]
"""Columns by name."""

IMAGES = pa.schema(
    {"image_id": "int64", "split": "string", "archive": "string", "member": "string"}
)
CAPTIONS = pa.schema({"caption_id": "int64", "image_id": "int64", "caption": "string"})
ARCHIVES = pa.schema({"archive": "string", "bytes": "int64", "modified": "int64"})
SENTENCES = pa.schema({"sentence": "string"})
_STRINGS = dict.fromkeys(("split", "sentence1", "sentence2"), "string")
STS = pa.schema({"task": "string", "subset": "string"} | _STRINGS | {"score": "float64"})
TRANSFER = pa.schema({"task": "string"} | _STRINGS | {"label": "int64"})


@dataclass(frozen=True)
class Pairs:
    """Images with their captions; `folder` holds the archives that `images` names."""

    folder: Path
    images: pd.DataFrame
    captions: pd.DataFrame
    archives: pd.DataFrame = field(
        default_factory=lambda: ARCHIVES.empty_table().to_pandas(use_threads=False)
    )
    """Those elsewhere, as they were when the rows were made."""

    def fingerprint(self) -> str:
        """A hash of every row: which images, under which names, of which shards and captions."""
        tables = (
            self.images[["image_id", "archive", "member"]],
            self.captions[["caption_id", "image_id", "caption"]],
            self.archives[ARCHIVES.names],
        )
        columns = (table[name] for table in tables for name in table)
        return hash_strings(map(str, itertools.chain.from_iterable(columns)))

    def captions_of(self, split: str) -> pd.DataFrame:
        """The captions whose image is in `split`, in the table's order."""
        ids = self.images.loc[self.images["split"] == split, "image_id"]
        return self.captions[self.captions["image_id"].isin(ids)]


def write_pairs(folder: Path, images: pd.DataFrame, captions: pd.DataFrame) -> None:
    """Write both tables of the pairs; the archives are put into `folder` by the caller."""
    write_table(folder / "images.parquet", images, IMAGES)
    write_table(folder / "captions.parquet", captions, CAPTIONS)
    (folder / ELSEWHERE).unlink(missing_ok=True)  # from an earlier run


def read_pairs(folder: Path) -> Pairs:
    """Read the tables of the pairs; errors as `read_table`."""
    images = read_table(folder / "images.parquet", IMAGES)
    pairs = Pairs(folder, images, read_table(folder / "captions.parquet", CAPTIONS))
    elsewhere = folder / ELSEWHERE
    return replace(pairs, archives=read_table(elsewhere, ARCHIVES)) if elsewhere.exists() else pairs


def count_pairs(folder: Path) -> dict[str, int]:
    """The rows of both tables, and the images of each split, without reading more than that."""
    file = pq.ParquetFile(folder / "images.parquet", read_dictionary=["split"], pre_buffer=False)
    counted = pc.value_counts(file.read(columns=["split"], use_threads=False)["split"]).to_pylist()
    by_split = {entry["values"]: int(entry["counts"]) for entry in counted}
    captions = pq.read_metadata(folder / "captions.parquet").num_rows
    splits = {f"{split}_images": by_split.get(split, 0) for split in ("train", "val", "test")}
    return {"images": file.metadata.num_rows, "captions": captions, **splits}


def write_sentences(folder: Path, sentences: list[str]) -> None:
    """Write the text-only sentences."""
    write_table(folder / "sentences.parquet", {"sentence": sentences}, SENTENCES)


def read_sentences(folder: Path) -> list[str]:
    """Read the text-only sentences, in order, which may be none; errors as `read_table`."""
    path = folder / "sentences.parquet"
    return list(read_table(path, SENTENCES, may_be_empty=True)["sentence"])


def write_sts(folder: Path, rows: pd.DataFrame) -> None:
    """Write the sentence pairs of all STS tasks."""
    write_table(folder / "sts.parquet", rows, STS)


def read_sts(folder: Path) -> pd.DataFrame:
    """Read the sentence pairs of all STS tasks; errors as `read_table`."""
    return read_table(folder / "sts.parquet", STS)


def write_transfer(folder: Path, rows: pd.DataFrame) -> None:
    """Write the samples of the transfer tasks."""
    write_table(folder / "transfer.parquet", rows, TRANSFER)


def read_transfer(folder: Path) -> pd.DataFrame:
    """Read the samples of the transfer tasks; `sentence2` is null where a task has one sentence.

    Raises:
        InputError: as `read_table`; or a label is below 0; or `sentence2` is null in some rows of
            a task and not in others.
    """
    path = folder / "transfer.parquet"
    rows = read_table(path, TRANSFER, optional=("sentence2",))
    alone = rows["sentence2"].isna()
    mixed = alone != alone.groupby(rows["task"]).transform("first")
    _refuse_rows(path, rows["label"] < 0, "has a label below 0")
    _refuse_rows(path, mixed, "and the first of its task are not alike: only one has a sentence2")
    return rows


def write_table(path: Path, rows: Rows, schema: pa.Schema) -> None:
    """Write rows in the schema's column order; equal rows give equal bytes."""
    columns = {field.name: pa.array(rows[field.name], field.type) for field in schema}
    with open_table(path, schema) as table:
        table.write(pa.table(columns, schema=schema))


@contextlib.contextmanager
def open_table(path: Path, schema: pa.Schema) -> Iterator["TableWriter"]:
    """Write a table in a block, with its checksum; it is whole or not there.

    Equal rows give equal bytes, whether they are added one by one or written at once.
    """
    # Without dictionaries: out of memory, Arrow's would loop looking for space.
    with (
        atomic_file(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd", use_dictionary=False) as file,
    ):
        writer = TableWriter(file, schema)
        yield writer
        writer.flush()
    write_checksums(path.parent, path.name)


class TableWriter:
    """Writes rows in row groups; see `open_table`."""

    def __init__(self, file: pq.ParquetWriter, schema: pa.Schema) -> None:
        self._file = file
        self._schema = schema
        self._rows: list[tuple[Any, ...]] = []

    def add(self, *cells: Any) -> None:
        """Add one row; it is kept in memory until a row group is full."""
        self._rows.append(cells)
        if len(self._rows) == ROW_GROUP:
            self.flush()

    def flush(self) -> None:
        """Write the rows that were added."""
        if self._rows:
            columns = zip(self._schema, zip(*self._rows, strict=True), strict=True)
            arrays = [pa.array(cells, field.type) for field, cells in columns]
            self.write(pa.table(arrays, schema=self._schema))
            self._rows.clear()

    def write(self, rows: pa.Table) -> None:
        """Write all rows of a table."""
        self._file.write_table(rows.combine_chunks(), row_group_size=ROW_GROUP)


def read_table(
    path: Path, schema: pa.Schema, optional: Collection[str] = (), *, may_be_empty: bool = False
) -> pd.DataFrame:
    """Read a table and verify its checksum, schema and cells, which may be null if `optional`.

    Raises:
        MissingArtifactError: the table is not there.
        InputError: it is unreadable, empty, has other columns, or a cell is null or not a finite
            number; the row is named, counted from 0.
    """
    if not path.is_file():
        raise MissingArtifactError(path, made_by="download")
    table = _load(path)
    if not table.schema.equals(schema) or (table.num_rows == 0 and not may_be_empty):
        found = "no rows" if table.num_rows == 0 else f"columns {_describe(table.schema)}"
        raise InputError(
            f"{path} has {found}, expected {_describe(schema)} and at least one row.", _REDO
        )
    for name in (name for name in schema.names if name not in optional):
        _refuse_rows(path, _is_unusable(table[name]), f"has no usable {name}")
    return pd.DataFrame(table.to_pandas(use_threads=False))


def _load(path: Path) -> pa.Table:
    """All rows, by this thread alone: Arrow's own threads hang or abort when out of memory."""
    verify_checksums(path.parent, path.name, fix=_REDO)
    try:
        table = pq.ParquetFile(path, pre_buffer=False).read(use_threads=False)
        table.validate(full=True)  # else text that is not UTF-8 fails much later
        _describe(table.schema)  # and so do such names of columns
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}.", _REDO) from None
    return table


def _is_unusable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Which cells are null, or not a finite number where they should be one."""
    if pa.types.is_floating(column.type):
        return pc.invert(pc.fill_null(pc.is_finite(column), fill_value=False))
    return pc.is_null(column)


def _refuse_rows(path: Path, refused: ArrayLike, what: str) -> None:
    """Name the first of the refused rows, if there is one."""
    rows = np.flatnonzero(refused)
    if rows.size:
        raise InputError(f"{path} row {rows[0]:,} {what}.", _REDO)


def _describe(schema: pa.Schema) -> str:
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
    return one_line(columns, longest=300)
