"""From images and captions of one's own to rows: numbered from 0, cleaned, counted."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.core.files import reports_unreadable
from pipeline.core.plaintext import MARK, is_blank
from pipeline.download.records import ARCHIVES, CAPTIONS, IMAGES, PairsWriter

MOST_CHARACTERS = 10_000
"""A caption is cut behind so many: teachers and students read some hundred tokens."""

_BATCH = 4096


def clean_caption(text: str) -> str:
    """A caption on one line, as UTF-8 can hold it, without characters that are no text.

    "" where nothing of it can be seen.
    """
    shown = _CONTROLS.sub(" ", text.replace(MARK, "")).encode("utf-8", "replace").decode("utf-8")
    return "" if is_blank(shown) else " ".join(shown.split())


_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""Those of Unicode's category Cc, of which terminals take some for commands."""


class PairRows:
    """Numbers images and captions in the order of their source, on their way to the tables.

    Args:
        writer: gets the rows, some thousand at a time; those left at the end of the block.
    """

    def __init__(self, writer: PairsWriter) -> None:
        self.left_out: Counter[str] = Counter(captions_empty=0, captions_cut=0)
        """What the tables lack of the source, or have otherwise, by name of the metric."""
        self._writer = writer
        self._images = self._captions = 0
        self.has_captions = False
        """Whether one of them is a text."""
        self._known: set[str] = set()
        self._empty()

    def __enter__(self) -> "PairRows":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._flush()

    def add_image(self, split: str, archive: str, member: str) -> int:
        """Add an image; returns its id.

        Raises:
            ResourceError: its archive is elsewhere, and cannot be looked at.
        """
        if archive not in self._known:
            self._add_archive(archive)
        image_id = self._images
        self._image_rows.append((image_id, split, archive, member))
        self._images += 1
        return image_id

    def add_captions(self, image_id: int, captions: Iterable[str]) -> None:
        """Add the captions of an image; empty ones too, for `features` to account for."""
        for caption in captions:
            self._caption_rows.append((self._captions, image_id, self._cleaned(caption)))
            self._captions += 1
        if len(self._caption_rows) >= _BATCH:
            self._flush()

    def _add_archive(self, archive: str) -> None:
        """Record one that is elsewhere as it is now; those in the folder are outputs themselves."""
        self._known.add(archive)
        if Path(archive).is_absolute():
            with reports_unreadable(archive):
                found = Path(archive).stat()
            self._archive_rows.append((archive, found.st_size, found.st_mtime_ns))

    def _cleaned(self, caption: str) -> str:
        text = clean_caption(caption)
        self.left_out["captions_empty"] += not text
        self.has_captions |= bool(text)
        self.left_out["captions_cut"] += len(text) > MOST_CHARACTERS
        return text[:MOST_CHARACTERS].rstrip()

    def _flush(self) -> None:
        self._writer.add(
            _by_column(self._image_rows, IMAGES.names),
            _by_column(self._caption_rows, CAPTIONS.names),
            _by_column(self._archive_rows, ARCHIVES.names),
        )
        self._empty()

    def _empty(self) -> None:
        self._image_rows: list[tuple[int, str, str, str]] = []
        self._caption_rows: list[tuple[int, int, str]] = []
        self._archive_rows: list[tuple[str, int, int]] = []


def _by_column(rows: Sequence[Sequence[Any]], names: Sequence[str]) -> dict[str, list[Any]]:
    return {name: [row[column] for row in rows] for column, name in enumerate(names)}
