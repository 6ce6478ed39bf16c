"""From one's own images and captions to rows: numbered from 0, split, cleaned, counted."""

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.core.errors import InputError
from pipeline.core.files import reports_unreadable
from pipeline.download.captions import clean_caption
from pipeline.download.records import (
    ARCHIVES,
    CAPTIONS,
    ELSEWHERE,
    IMAGES,
    TableWriter,
    open_table,
    write_table,
)
from pipeline.params.download import SplitsParams

MOST_CHARACTERS = 10_000
"""A longer caption is cut: teachers and students read some hundred tokens."""

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
    """The split of an image whose source names none, by its bytes, or by its name if it is missing.

    It follows from the content alone, so that equal images are in one split, and an image keeps
    its split when others are added, or under another name. Val and test grow from two ends, so
    that another fraction of one does not move images of the other.
    """
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogatepass")
    place = int.from_bytes(hashlib.sha256(content).digest()[:8], "big") / 2**64
    if place < splits.test:
        return "test"
    return "val" if place >= 1 - splits.val else "train"


def named_split(name: object, where: str) -> str:
    """The split that a cell of a table names."""
    split = SPLIT_OF_NAME.get(name.strip().lower() if isinstance(name, str) else "")
    if split is None:
        raise InputError(
            f"{where} has the split {name!r:.60}, which is none of {', '.join(SPLIT_OF_NAME)}.",
            "fix the table, or set the split column to null to have the splits drawn.",
        )
    return split


class PairRows:
    """Numbers images and captions in the order of their source, on their way to the tables."""

    def __init__(self, images: TableWriter, captions: TableWriter) -> None:
        self.left_out: Counter[str] = Counter(captions_empty=0, captions_cut=0)
        """What was left out of the tables or changed, by name of the metric."""
        self.images = self.captions = 0
        self.archives: dict[str, tuple[int, int]] = {}
        """Bytes and time of archives that are not in the folder of the tables."""
        self._image_table = images
        self._caption_table = captions

    def add(self, split: str, archive: str, member: str, captions: Iterable[str] = ()) -> int:
        """Add an image, with captions; returns its id."""
        if archive not in self.archives and Path(archive).is_absolute():
            with reports_unreadable(archive):
                found = Path(archive).stat()
            self.archives[archive] = (found.st_size, found.st_mtime_ns)
        image_id = self.images
        self._image_table.add(image_id, split, archive, member)
        self.images += 1
        self.add_captions(image_id, captions)
        return image_id

    def add_captions(self, image_id: int, captions: Iterable[str]) -> None:
        """Add captions of an image; empty ones too, for `features` to account for."""
        for caption in captions:
            text = clean_caption(caption)
            self.left_out["captions_empty"] += not text
            self.left_out["captions_cut"] += len(text) > MOST_CHARACTERS
            text = text[:MOST_CHARACTERS].rstrip()
            self._caption_table.add(self.captions, image_id, text)
            self.captions += 1


@contextlib.contextmanager
def write_rows_to(folder: Path) -> Iterator[PairRows]:
    """Write the tables of the pairs in a block, row by row; when it fails, nothing is left."""
    with (
        open_table(folder / "images.parquet", IMAGES) as images,
        open_table(folder / "captions.parquet", CAPTIONS) as captions,
    ):
        rows = PairRows(images, captions)
        yield rows
        if not (rows.images and rows.captions):
            raise InputError(
                "the pairs have no images or no captions.", "check what `download.pairs` names."
            )
        (folder / ELSEWHERE).unlink(missing_ok=True)  # from an earlier run
        if rows.archives:
            cells = [(name, *stat) for name, stat in rows.archives.items()]
            columns = dict(zip(ARCHIVES.names, zip(*cells, strict=True), strict=True))
            write_table(folder / ELSEWHERE, columns, ARCHIVES)
