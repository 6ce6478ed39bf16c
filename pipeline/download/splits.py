"""Which split an image is in: as its source names it, or drawn by the image's bytes."""

import hashlib

from pipeline.core.errors import InputError
from pipeline.params.download import SplitsParams

SPLIT_OF_NAME = {
    "train": "train",
    "restval": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}
"""Ours by the names in use; COCO's `restval` images are training images by convention."""


def draw_split(content: str | bytes, splits: SplitsParams) -> str:
    """The split of an image whose source names none.

    It follows from the content alone, so that equal images are in one split, and an image keeps
    its split when others are added, or under another name. Val and test grow from two ends, so
    that another fraction of one does not move images of the other.

    Args:
        content: the image's bytes; its name where the image is missing.
        splits: the fractions of the splits.
    """
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogatepass")
    place = int.from_bytes(hashlib.sha256(content).digest()[:8], "big") / 2**64
    if place < splits.test:
        return "test"
    return "val" if place >= 1 - splits.val else "train"


def named_split(name: object, where: str) -> str:
    """The split that a cell of a table names.

    Args:
        name: the cell.
        where: file and row, for the message.

    Raises:
        InputError: it names none.
    """
    split = SPLIT_OF_NAME.get(name.strip().lower() if isinstance(name, str) else "")
    if split is None:
        raise InputError(
            f"{where} has the split {name!r:.60}, which is none of {', '.join(SPLIT_OF_NAME)}.",
            "fix the table, or set the split column to null to have the splits drawn.",
        )
    return split
