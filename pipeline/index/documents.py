"""What can be found: texts and images, each once, with how often it occurs."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int64

from pipeline.core.errors import InputError
from pipeline.core.files import reports_unreadable
from pipeline.core.plaintext import is_blank, read_lines
from pipeline.download.records import Pairs
from pipeline.features.rows import Features
from pipeline.features.store import blocks
from pipeline.index.format import ROWS
from pipeline.params.index import IndexParams
from pipeline.params.places import why_missing


@dataclass(frozen=True)
class Items:
    """The rows of an index, before they have vectors."""

    texts: pd.DataFrame
    """Columns of ROWS."""
    images: pd.DataFrame
    """Columns of ROWS."""
    features: Int64[np.ndarray, " images"]
    """The row of each image in the teacher's features."""


def find_items(
    params: IndexParams, pairs: Pairs, features: Features, sentences: list[str]
) -> Items:
    """Collect what `index.items` names, equal texts and equal images once.

    Args:
        params: the index block.
        pairs: captions and images.
        features: of the images that the teacher could see.
        sentences: the text-only ones; ignored if `items` does not name them.

    Raises:
        InputError: the file of own texts does not exist, is not a text, or holds none.
        ResourceError: it cannot be read.
    """
    tables: list[pd.DataFrame] = []
    if "captions" in params.items:
        tables.append(_caption_rows(pairs))
    if "sentences" in params.items:
        tables.append(_plain_rows("sentence", enumerate(sentences)))
    if params.texts is not None:
        with reports_unreadable(params.texts):
            is_there = Path(params.texts).is_file()
        if not is_there:
            raise InputError(*why_missing(params.texts, "index.texts"))
        tables.append(_plain_rows("text", _read_texts(Path(params.texts))))
    images, rows = _image_rows(pairs, features)
    if "images" not in params.items:
        images, rows = images[:0], rows[:0]
    return Items(_merge_equal(tables), images, rows)


def _merge_equal(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """One row for all equal texts: the first, with the number of them."""
    if not tables:
        return pd.DataFrame(ROWS.empty_table().to_pandas(use_threads=False))
    table = pd.concat(tables, ignore_index=True)
    table["count"] = table.groupby("text", sort=False)["text"].transform("size")
    return pd.DataFrame(table.drop_duplicates("text")[ROWS.names].reset_index(drop=True))


def _caption_rows(pairs: Pairs) -> pd.DataFrame:
    table = pairs.captions.merge(pairs.images, on="image_id", how="left", validate="many_to_one")
    table = table.rename(columns={"caption": "text", "caption_id": "id"})
    return table.assign(kind="caption", count=1)


def _plain_rows(kind: str, texts: Iterator[tuple[int, str]]) -> pd.DataFrame:
    table = pd.DataFrame(texts, columns=["id", "text"])
    return table.assign(kind=kind, count=1, archive="", member="")


def _image_rows(
    pairs: Pairs, features: Features
) -> tuple[pd.DataFrame, Int64[np.ndarray, " images"]]:
    """The images that differ for the teacher, and their rows in its features."""
    first = pairs.captions.drop_duplicates("image_id")[["image_id", "caption"]]
    images = pairs.images.set_index("image_id").loc[features.image_ids].reset_index()
    table = images.merge(first, on="image_id", how="left").assign(kind="image")
    table = table.rename(columns={"caption": "text", "image_id": "id"})
    table["text"] = table["text"].fillna("")
    table["feature"] = _hash_features(features)
    table["count"] = table.groupby("feature", sort=False)["feature"].transform("size")
    table = table.drop_duplicates("feature")
    return table[ROWS.names].reset_index(drop=True), table.index.to_numpy(dtype=np.int64)


def _hash_features(features: Features) -> list[bytes]:
    return [
        hashlib.blake2b(row.tobytes(), digest_size=16).digest()
        for _, block in blocks(features.images)
        for row in block
    ]


def _read_texts(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of the user's file that are not blank, with their numbers from 1."""
    empty = True
    with reports_unreadable(path), path.open("rb") as stream:
        for number, line in read_lines(stream, str(path)):
            if not is_blank(line):
                empty = False
                yield number, line.strip()
    if empty:
        raise InputError(f"{path} holds no text.", "give one text a line.")
