"""What can be found: texts and images, each once, with how often it occurs."""

import hashlib
from collections.abc import Iterable
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
    """The rows of an index, with the columns of ROWS, before they have vectors."""

    texts: pd.DataFrame
    images: pd.DataFrame
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
    tables = [pd.DataFrame(ROWS.empty_table().to_pandas(use_threads=False))]
    if "captions" in params.items:
        captions = pairs.captions.merge(pairs.images, "left", "image_id", validate="many_to_one")
        captions = captions.rename(columns={"caption": "text", "caption_id": "id"})
        tables.append(captions.assign(kind="caption"))
    if "sentences" in params.items:
        tables.append(_plain_rows("sentence", enumerate(sentences)))
    if params.texts is not None:
        tables.append(_plain_rows("text", _read_texts(params.texts)))
    images = _image_rows(pairs, features)
    if "images" not in params.items:
        images = images[:0]
    texts = _merge_equal(pd.concat(tables, ignore_index=True), "text")
    rows = images.index.to_numpy(dtype=np.int64)
    return Items(texts.reset_index(drop=True), images.reset_index(drop=True), rows)


def _plain_rows(kind: str, texts: Iterable[tuple[int, str]]) -> pd.DataFrame:
    table = pd.DataFrame(texts, columns=["id", "text"])
    return table.assign(kind=kind, archive="", member="")


def _image_rows(pairs: Pairs, features: Features) -> pd.DataFrame:
    """The images that differ for the teacher; the row's name is its number in the features."""
    first = pairs.captions.drop_duplicates("image_id")[["image_id", "caption"]]
    images = pairs.images.set_index("image_id").loc[features.image_ids].reset_index()
    table = images.merge(first, on="image_id", how="left").assign(kind="image")
    table = table.rename(columns={"caption": "text", "image_id": "id"})
    table["text"] = table["text"].fillna("")
    table["feature"] = [
        hashlib.blake2b(row.tobytes(), digest_size=16).digest()
        for _, block in blocks(features.images)
        for row in block
    ]
    return _merge_equal(table, "feature")


def _merge_equal(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Of all rows with the same value, the first, with the number of them."""
    table["count"] = table.groupby(column, sort=False)[column].transform("size")
    return pd.DataFrame(table.drop_duplicates(column)[ROWS.names])


def _read_texts(written: str) -> list[tuple[int, str]]:
    """The lines of the user's file that are not blank, with their numbers from 1."""
    with reports_unreadable(written):
        if not Path(written).is_file():
            raise InputError(*why_missing(written, "index.texts"))
        with Path(written).open("rb") as stream:
            lines = read_lines(stream, written)
            texts = [(number, line.strip()) for number, line in lines if not is_blank(line)]
    if not texts:
        raise InputError(f"{written} holds no text.", "give one text a line.")
    return texts
