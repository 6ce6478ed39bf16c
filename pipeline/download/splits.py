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


def draw_split(content: str | bytes, shares: SplitsParams) -> str:
    """The split of an image whose source names none.

    It follows from the content alone, so that equal images are in one split, and an image stays
    where it is when others are added, or under another name.

    Args:
        content: the image's bytes; its name where it is not there.
        shares: of the splits.
    """
    return split_at(place_of(content), shares)


def place_of(content: str | bytes) -> float:
    """Where an image stands between 0 and 1: any place is as likely as any other."""
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") / 2**64


def split_at(place: float, shares: SplitsParams) -> str:
    """The split of a place.

    Val and test grow from two ends, so that another share of one does not move images of the other.
    """
    if place < shares.test:
        return "test"
    return "val" if place >= 1 - shares.val else "train"


def named_split(name: str | None, where: str) -> str:
    """The split that a cell of a table names.

    Raises:
        InputError: it names none, with the row that `where` tells.
    """
    split = SPLIT_OF_NAME.get((name or "").strip().lower())
    if split is None:
        raise InputError(
            f"{where} has the split {name!r:.60}, which is none of {', '.join(SPLIT_OF_NAME)}.",
            "mend the table, or set the split column to null to have the splits drawn.",
        )
    return split
