"""Source `folder`: images and their captions in a table, beside them, or in one Parquet file."""

import difflib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pipeline.core.errors import InputError
from pipeline.core.files import reports_unreadable
from pipeline.core.plaintext import decode
from pipeline.core.progress import log, progress
from pipeline.download.archives import MAX_MEMBER_BYTES, Packer
from pipeline.download.caption_table import Row, read_rows
from pipeline.download.image_tables import PARQUET, add_tables, local_files, require_one_config
from pipeline.download.packed_images import IMAGE_ENDINGS
from pipeline.download.pairing import PairRows, draw_split, named_split, read_caption_lines
from pipeline.download.parquet import ParquetRows
from pipeline.params.download import FolderParams
from pipeline.params.places import why_missing

ARCHIVE = "images.zip"

_KEY = "download.folder.images"
_TABLE = "download.folder.captions"
_WARNINGS = 5
_COMPARED = 1000
"""Images of the folder that are compared with a path that leads nowhere."""


def write_folder_pairs(rows: PairRows, params: FolderParams) -> None:
    """Pack the images that the table names, in its order, and add its rows.

    A missing image is kept with its name as member; `features` rejects it. Where the table has no
    splits, they are drawn. Without a table, an image's captions are the lines of the .txt beside
    it; without a folder, the table holds the images.
    """
    if params.images is None:
        _add_parquet(rows, params)
        return
    folder = Path(params.images)
    with reports_unreadable(folder):
        is_there = folder.is_dir()
    if not is_there:
        raise InputError(*why_missing(params.images, _KEY, "is not a folder"))
    found = read_rows(Path(params.captions), params) if params.captions else _read_beside(folder)
    with rows.pack(ARCHIVE) as packer:
        images = _Images(folder, packer, rows)
        for row in progress(found, what="captions and images", unit="row"):
            rows.add_captions(images.take(row), row.captions)
        images.finish(params.captions)


def _add_parquet(rows: PairRows, params: FolderParams) -> None:
    root, files = local_files(params.captions or "", _TABLE)
    tables = [file for file in files if file.lower().endswith(PARQUET)]
    if not tables:
        raise InputError(
            f"{params.captions} holds no .parquet file, and {_KEY} is null.",
            f"set {_KEY} to the folder of the images.",
        )
    require_one_config(tables, f"{params.captions}", f"name one of these folders as {_TABLE}.")
    add_tables(rows, (ParquetRows(root / file, file) for file in tables), params)


def _read_beside(folder: Path) -> Iterator[Row]:
    """The images that have a .txt of their name beside them, in the order of their names."""
    for image in sorted(_image_files(folder)):
        text = (folder / image).with_suffix(".txt")
        with reports_unreadable(text):
            if not text.is_file():
                continue
            written = decode(text.read_bytes(), str(text))
        yield Row(str(text), image, read_caption_lines(written, str(text)) or [""], split=None)


class _Images:
    """Numbers and packs the images that rows name, each once."""

    def __init__(self, folder: Path, packer: Packer, rows: PairRows) -> None:
        self._folder = folder
        self._root = Path(os.path.realpath(folder))
        self._packer = packer
        self._rows = rows
        self._known: dict[str, tuple[int, str]] = {}
        """Id and split by member."""

    def take(self, row: Row) -> int:
        """The id of a row's image, which is packed where it is new."""
        member = _member(row)
        split = None if row.split is None else named_split(row.split, row.where)
        if member not in self._known:
            self._known[member] = self._add(member, row.where, split)
        image_id, known = self._known[member]
        if split not in (None, known):
            raise InputError(
                f"{row.where} has {member} in split {row.split}, an earlier row in {known}.",
                "give all rows of an image one split.",
            )
        return image_id

    def finish(self, table: str | None) -> None:
        """Count what was left out; refuse a table without rows or without any image."""
        if not self._known:
            what = (
                f"{table} has no rows"
                if table
                else f"no image of {self._folder} has a .txt beside it"
            )
            raise InputError(
                f"{what}.", f"check {_TABLE}; null: captions are in DOGS.txt beside DOGS.jpg."
            )
        if not self._packer.members:
            first = next(iter(self._known))
            names = list(itertools.islice(_image_files(self._folder), _COMPARED))
            alike = difflib.get_close_matches(first[:200], names, n=1, cutoff=0.0)
            raise InputError(
                f"{self._folder} holds none of the {len(self._known):,} images of {table}; the "
                f"first is {first}, the folder has {alike[0] if alike else 'no images'}.",
                f"check {_KEY}; paths in the table are relative to it, with / and with their "
                "ending, in the same case.",
            )
        unnamed = sum(name not in self._known for name in _image_files(self._folder))
        self._rows.left_out["images_missing"] = len(self._known) - self._packer.members
        self._rows.left_out["images_unnamed"] = unnamed

    def _add(self, member: str, where: str, split: str | None) -> tuple[int, str]:
        content = self._read(member)
        if isinstance(content, bytes):
            self._packer.add(member, content)
        elif len(self._known) - self._packer.members < _WARNINGS:
            log.warning("%s names %s, which %s", where, member, content)
        if split is None:
            split = draw_split(content if isinstance(content, bytes) else member, self._rows.splits)
        return self._rows.add(split, ARCHIVE, member), split

    def _read(self, member: str) -> bytes | str:
        """The bytes of an image, or why there are none."""
        path = Path(os.path.realpath(self._root / member))
        if not path.is_relative_to(self._root):
            return "is a link that leads out of the folder"
        try:
            if not path.is_file():
                return "is not a file of the folder"
            if path.stat().st_size > MAX_MEMBER_BYTES:
                return f"has more than {MAX_MEMBER_BYTES:,} bytes"
            return path.read_bytes()
        except OSError as error:
            return f"cannot be read ({error.strerror})"


def _member(row: Row) -> str:
    """The path of a row's image, seen from the folder, in one spelling."""
    path = PurePosixPath(row.image)
    # No file is called by NUL or by half a character, which JSON may hold (RFC 8259, 8.2).
    is_name = row.image == row.image.replace("\0", "").encode("utf-8", "ignore").decode()
    if not is_name or path.is_absolute() or ".." in path.parts or not path.parts:
        raise InputError(
            f"{row.where} names the image {row.image!r:.80}, which is not a path inside the "
            "folder.",
            f"write paths relative to {_KEY}, without '..'.",
        )
    return str(path)


def _image_files(folder: Path) -> Iterator[str]:
    """The images of a folder and of those below it, by their path from there."""
    for where, _, names in os.walk(folder):
        for name in names:
            if name.rpartition(".")[2].lower() in IMAGE_ENDINGS:
                yield (Path(where) / name).relative_to(folder).as_posix()
