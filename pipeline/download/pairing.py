"""From one's own images and captions to rows: numbered from 0, cleaned, counted."""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.core.errors import InputError
from pipeline.core.files import reports_unreadable
from pipeline.download.captions import clean_caption
from pipeline.download.records import ARCHIVES, CAPTIONS, ELSEWHERE, IMAGES, TableWriter, open_table

MOST_CHARACTERS = 10_000
"""A longer caption is cut: teachers and students read some hundred tokens."""

_BATCH = 4096


class PairRows:
    """Numbers images and captions in the order of their source, on their way to the tables.

    Args:
        folder: gets the tables.
        stack: closes them.
    """

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.left_out: Counter[str] = Counter(captions_empty=0, captions_cut=0)
        """What was left out of the tables or changed, by name of the metric."""
        self.has_captions = False
        """Whether any caption is not empty."""
        self._folder = folder
        self._stack = stack
        self._image_table = self._open("images.parquet", IMAGES)
        self._caption_table = self._open("captions.parquet", CAPTIONS)
        self._archive_table: TableWriter | None = None
        self._image_count = self._caption_count = 0
        self._known: set[str] = set()
        self._images: list[tuple[int, str, str, str]] = []
        self._captions: list[tuple[int, int, str]] = []
        self._archives: list[tuple[str, int, int]] = []

    def _open(self, name: str, schema: pa.Schema) -> TableWriter:
        return self._stack.enter_context(open_table(self._folder / name, schema))

    def add(self, split: str, archive: str, member: str, captions: Iterable[str] = ()) -> int:
        """Add an image, with captions; returns its id.

        Raises:
            ResourceError: its archive is elsewhere, and cannot be read.
        """
        if archive not in self._known:
            self._known.add(archive)
            if Path(archive).is_absolute():  # those in the folder are outputs themselves
                with reports_unreadable(archive):
                    found = Path(archive).stat()
                self._archives.append((archive, found.st_size, found.st_mtime_ns))
        image_id = self._image_count
        self._images.append((image_id, split, archive, member))
        self._image_count += 1
        self.add_captions(image_id, captions)
        return image_id

    def add_captions(self, image_id: int, captions: Iterable[str]) -> None:
        """Add captions of an image; empty ones too, for `features` to account for."""
        for caption in captions:
            text = clean_caption(caption)
            self.left_out["captions_empty"] += not text
            self.has_captions |= bool(text)
            self.left_out["captions_cut"] += len(text) > MOST_CHARACTERS
            text = text[:MOST_CHARACTERS].rstrip()
            self._captions.append((self._caption_count, image_id, text))
            self._caption_count += 1
        if len(self._captions) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        """Write the rows that are waiting."""
        self._image_table.add(_by_column(self._images, IMAGES))
        self._caption_table.add(_by_column(self._captions, CAPTIONS))
        if self._archives:
            self._archive_table = self._archive_table or self._open(ELSEWHERE, ARCHIVES)
            self._archive_table.add(_by_column(self._archives, ARCHIVES))
        for rows in (self._images, self._captions, self._archives):
            rows.clear()

    def finish(self) -> None:
        """Write what is left; errors as `write_rows_to`."""
        self.flush()
        if not (self._image_count and self._caption_count):
            raise InputError(
                "the pairs have no images or no captions.", "check what `download.pairs` names."
            )
        if self._archive_table is None:
            (self._folder / ELSEWHERE).unlink(missing_ok=True)  # from an earlier run


def _by_column(rows: Sequence[Sequence[Any]], schema: pa.Schema) -> dict[str, list[Any]]:
    return {name: [row[column] for row in rows] for column, name in enumerate(schema.names)}


@contextlib.contextmanager
def write_rows_to(folder: Path) -> Iterator[PairRows]:
    """Write the tables of the pairs in a block, row by row; when it fails, nothing is left.

    Raises:
        InputError: at the end of the block, there are no images or no captions.
        ResourceError: the disk is full, or the place cannot be written.
    """
    with contextlib.ExitStack() as stack:
        rows = PairRows(folder, stack)
        yield rows
        rows.finish()
