"""What `download` would read of one's own data: the first rows, counts and warnings; no copy."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.core.progress import log
from pipeline.download.archives import Packer
from pipeline.download.corpora import Metrics, add_own_pairs
from pipeline.download.pairing import PairRows
from pipeline.download.sentences import read_own_sentences
from pipeline.download.sources import BY_NAME, OWN_KINDS
from pipeline.params.download import DownloadParams, SplitsParams

SHOWN = 10
"""Rows that are shown."""

Rows = list[dict[str, str]]
"""Cells by column."""
Show = Callable[[Rows], None]


@dataclass
class Part:
    """What is read of one part of the corpora."""

    source: str
    is_read: bool = False
    """Whether it is one's own; what is public or rendered is not read for this."""
    rows: Rows = field(default_factory=list)
    counts: Metrics = field(default_factory=dict)
    """As `download` counts them; of a public source, those of its release."""
    warnings: list[str] = field(default_factory=list)


def preview(params: DownloadParams, downloads: Path, show: Show) -> dict[str, Part]:
    """Read all of one's own pairs and text as `download` does, and write nothing.

    Of shards and Parquet files that must be fetched, the first is, to where `download` keeps it.

    Args:
        params: the block.
        downloads: where fetched files are kept.
        show: takes the first rows of a part as soon as they were read.

    Raises:
        InputError, DownloadError, ResourceError: as `download`.
    """
    parts = {"pairs": Part(params.pairs), "text": Part(params.text)}
    for name, read in (("pairs", _read_pairs), ("text", _read_text)):
        part = parts[name]
        if part.source in OWN_KINDS:
            part.is_read = True
            with _collects_warnings(part.warnings):
                part.rows, part.counts = read(params, downloads, show)
        elif part.source in BY_NAME:
            part.counts = dict(BY_NAME[part.source].counts)
    return parts


def _read_pairs(params: DownloadParams, downloads: Path, show: Show) -> tuple[Rows, Metrics]:
    rows = _FirstRows(params.splits, show)
    add_own_pairs(rows, params, downloads)
    if rows.captions < SHOWN:
        show(rows.first)
    counts = {"images": rows.images, "captions": rows.captions}
    splits = {f"{split}_images": count for split, count in rows.in_split.items()}
    return rows.first, counts | splits | rows.left_out


def _read_text(params: DownloadParams, _downloads: Path, show: Show) -> tuple[Rows, Metrics]:
    sentences, left_out = read_own_sentences(params)
    first = [{"sentence": sentence} for sentence in sentences[:SHOWN]]
    show(first)
    return first, {"sentences": len(sentences), **left_out}


class _FirstRows(PairRows):
    """Counts all rows, keeps the first captions with their images, and writes nothing."""

    def __init__(self, splits: SplitsParams, show: Show) -> None:
        super().__init__(Path(), splits, self._keep_image, self._keep_caption)
        self.first: Rows = []
        self._show = show
        self._images: dict[int, dict[str, str]] = {}

    def _keep_image(self, image_id: int, split: str, _archive: str, member: str) -> None:
        if len(self.first) < SHOWN:
            self._images[image_id] = {"image": member, "split": split}

    def _keep_caption(self, _caption_id: int, image_id: int, text: str) -> None:
        if len(self.first) < SHOWN:
            self.first.append(self._images[image_id] | {"caption": text})
            if len(self.first) == SHOWN:
                self._show(self.first)

    @contextlib.contextmanager
    def pack(self, name: str) -> Iterator[Packer]:  # noqa: ARG002
        """Count what would be packed."""
        yield Packer(None)

    def to_fetch(self, files: Sequence[str]) -> Sequence[str]:
        """The first."""
        if len(files) > 1:
            log.warning("only the first of %d files is fetched, and counted", len(files))
        return files[:1]


@contextlib.contextmanager
def _collects_warnings(into: list[str]) -> Iterator[None]:
    """Keep the warnings of a block as texts; they are not logged."""

    def passes(record: logging.LogRecord) -> bool:
        is_warning = record.levelno >= logging.WARNING
        if is_warning:
            into.append(record.getMessage())
        return not is_warning

    log.addFilter(passes)
    try:
        yield
    finally:
        log.removeFilter(passes)
