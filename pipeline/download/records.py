"""CONTRACT of the corpora: the Parquet tables that `download` writes and all later steps read.

    pairs/images.parquet       image_id, split (train | val | test), archive, member
    pairs/captions.parquet     caption_id, image_id, caption
    pairs/<archive>            the images, packed as downloaded (zip or tar)
    text/sentences.parquet     sentence
    evaluation/sts.parquet     task, subset, split, sentence1, sentence2, score
    evaluation/transfer.parquet task, split, sentence1, sentence2 (or null), label

Rows keep the order of their source. `archive` names a file in the same folder, `member` a file
inside it. An STS row whose source has no gold score is not in the table. The split of a transfer
sample is train | dev | test, or `all` where the task is scored by cross-validation; its label is a
class from 0 on; `sentence2` is null in all rows of a task or in none, and no other cell is null.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike

from pipeline.errors import InputError, MissingArtifactError
from pipeline.runtime import atomic_file, hash_strings

SPLITS = ("train", "val", "test")

IMAGES = pa.schema(
    [
        ("image_id", pa.int64()),
        ("split", pa.string()),
        ("archive", pa.string()),
        ("member", pa.string()),
    ]
)
CAPTIONS = pa.schema(
    [("caption_id", pa.int64()), ("image_id", pa.int64()), ("caption", pa.string())]
)
SENTENCES = pa.schema([("sentence", pa.string())])
STS = pa.schema(
    [
        ("task", pa.string()),
        ("subset", pa.string()),
        ("split", pa.string()),
        ("sentence1", pa.string()),
        ("sentence2", pa.string()),
        ("score", pa.float64()),
    ]
)
TRANSFER = pa.schema(
    [
        ("task", pa.string()),
        ("split", pa.string()),
        ("sentence1", pa.string()),
        ("sentence2", pa.string()),
        ("label", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Pairs:
    """Images with their captions; `folder` holds the archives that `images` names."""

    folder: Path
    images: pd.DataFrame
    captions: pd.DataFrame

    def fingerprint(self) -> str:
        """A hash of every row: which images, under which names, with which captions."""
        images, captions = self.images, self.captions
        return hash_strings(
            [
                *images["image_id"].astype(str),
                *images["archive"],
                *images["member"],
                *captions["caption_id"].astype(str),
                *captions["image_id"].astype(str),
                *captions["caption"],
            ]
        )

    def captions_of(self, split: str) -> pd.DataFrame:
        """The captions whose image is in `split`, in the table's order."""
        ids = self.images.loc[self.images["split"] == split, "image_id"]
        return self.captions[self.captions["image_id"].isin(ids)]


def write_pairs(folder: Path, images: pd.DataFrame, captions: pd.DataFrame) -> None:
    """Write both tables of the pairs; the archives are put into `folder` by the caller."""
    write_table(folder / "images.parquet", images, IMAGES)
    write_table(folder / "captions.parquet", captions, CAPTIONS)


def read_pairs(folder: Path) -> Pairs:
    """Read the tables of the pairs.

    Raises:
        MissingArtifactError: a table is not there.
        InputError: a table is unreadable, empty, has other columns, or a cell is null or no
            finite number; the row is named, counted from 0.
    """
    images = read_table(folder / "images.parquet", IMAGES)
    captions = read_table(folder / "captions.parquet", CAPTIONS)
    return Pairs(folder, images, captions)


def write_sentences(folder: Path, sentences: list[str]) -> None:
    """Write the text-only sentences."""
    write_table(folder / "sentences.parquet", {"sentence": sentences}, SENTENCES)


def read_sentences(folder: Path) -> list[str]:
    """Read the text-only sentences, in order; errors as `read_pairs`."""
    return list(read_table(folder / "sentences.parquet", SENTENCES)["sentence"])


def write_sts(folder: Path, rows: pd.DataFrame) -> None:
    """Write the STS pairs of all tasks."""
    write_table(folder / "sts.parquet", rows, STS)


def read_sts(folder: Path) -> pd.DataFrame:
    """Read the STS pairs of all tasks; errors as `read_pairs`."""
    return read_table(folder / "sts.parquet", STS)


def write_transfer(folder: Path, rows: pd.DataFrame) -> None:
    """Write the samples of the transfer tasks."""
    write_table(folder / "transfer.parquet", rows, TRANSFER)


def read_transfer(folder: Path) -> pd.DataFrame:
    """Read the samples of the transfer tasks; `sentence2` is null where a task has one sentence.

    Raises:
        MissingArtifactError: the table is not there.
        InputError: as `read_pairs`; or a label is below 0; or `sentence2` is null in some rows of
            a task and not in others.
    """
    path = folder / "transfer.parquet"
    rows = read_table(path, TRANSFER, optional=("sentence2",))
    _refuse_rows(path, rows["label"] < 0, "has a label below 0", _redo("download"))
    alone = rows["sentence2"].isna()
    mixed = alone != alone.groupby(rows["task"]).transform("first")
    problem = "and the first of its task are not alike: only one has a sentence2"
    _refuse_rows(path, mixed, problem, _redo("download"))
    return rows


def write_table(
    path: Path, rows: pd.DataFrame | Mapping[str, list[object] | list[str]], schema: pa.Schema
) -> None:
    """Write rows in the schema's column order; equal rows give equal bytes."""
    columns = {name: pa.array(rows[name], schema.field(name).type) for name in schema.names}
    with atomic_file(path) as temporary:
        pq.write_table(pa.table(columns, schema=schema), temporary, compression="zstd")


def read_table(
    path: Path, schema: pa.Schema, made_by: str = "download", optional: Collection[str] = ()
) -> pd.DataFrame:
    """Read a table and hold it against its schema; errors as `read_pairs`.

    Args:
        path: the Parquet file.
        schema: the columns it must have.
        made_by: the stage that makes it, for the remedy.
        optional: the columns whose cells may be null.
    """
    if not path.is_file():
        raise MissingArtifactError(path, made_by)
    table = _load(path, _redo(made_by))
    if not table.schema.equals(schema) or table.num_rows == 0:
        found = "no rows" if table.num_rows == 0 else f"columns {_describe(table.schema)}"
        raise InputError(
            f"{path} has {found}, expected {_describe(schema)} and at least one row.",
            _redo(made_by),
        )
    for name in (name for name in schema.names if name not in optional):
        _refuse_rows(path, _is_unusable(table[name]), f"has no usable {name}", _redo(made_by))
    return pd.DataFrame(table.to_pandas())


def _load(path: Path, redo: str) -> pa.Table:
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} cannot be read: {reason}.", redo) from None


def _is_unusable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Which cells are null, or no finite number where they should be one."""
    if pa.types.is_floating(column.type):
        return pc.invert(pc.fill_null(pc.is_finite(column), fill_value=False))
    return pc.is_null(column)


def _refuse_rows(path: Path, refused: ArrayLike, problem: str, redo: str) -> None:
    """Name the first of the refused rows, if there is one."""
    rows = np.flatnonzero(refused)
    if rows.size:
        raise InputError(f"{path} row {rows[0]:,} {problem}.", redo)


def _redo(made_by: str) -> str:
    return f"run `dvc repro -f {made_by}`."


def _describe(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)
