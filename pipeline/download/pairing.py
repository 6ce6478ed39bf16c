"""From images and captions in whatever form a source has them to rows: cleaned, split, numbered.

A text is a caption; a list of texts is several. Tools write lists into tables and text files as
JSON (`["a", "b"]`) or as Python (`['a', 'b']`): those are read as the lists they are.
"""

import ast
import contextlib
import hashlib
import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pipeline.core.errors import InputError
from pipeline.core.files import reports_unreadable
from pipeline.core.plaintext import MARK, is_blank
from pipeline.download.archives import Packer, pack
from pipeline.download.records import ARCHIVES, CAPTIONS, ELSEWHERE, IMAGES, open_table
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

_QUOTED = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|null|None|nan|NaN)"""
_LIST = re.compile(rf"[\[(]\s*(?:{_QUOTED}\s*,\s*)*(?:{_QUOTED}\s*)?[\])]", re.DOTALL)
_UNREADABLE = re.compile(r"""[\[(]\s*["'\[(]|\{\s*["']|array\(|\[[\s\d.,-]*\]""")
"""What begins like a list of texts, of lists or of objects, or is one of numbers."""
_MISSING = frozenset({"nan", "none", "null", "<na>", "n/a", "#n/a"})
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""Those of Unicode's category Cc, of which terminals take some for commands."""


def read_captions(cell: object, where: str) -> list[str]:
    """The captions that a value holds, at least one; "" stands for a missing one.

    A value is a text, a list of texts (also one that was written as text), or None or NaN. All else
    is refused, such as numbers, lists of lists, or a list that was written as text and cannot be
    read; `where` names file, row and column.
    """
    if isinstance(cell, str):
        cell = _parse_list(cell.strip(), where) or cell
    captions = []
    for caption in (cell or [""]) if isinstance(cell, list) else [cell]:
        if not (isinstance(caption, str) or is_missing(caption)):
            raise InputError(f"{where} is {caption!r:.60}, not text.", "fix the row, or remove it.")
        captions.append("" if is_missing(caption) else str(caption))
    return captions


def read_caption_lines(text: str, where: str) -> list[str]:
    """The captions of a text: one a line that is not empty, or a list of captions."""
    captions = read_captions(text.strip(), where)
    lines = (line for caption in captions for line in caption.split("\n"))
    return [line for line in lines if not (is_blank(line) or is_missing(line))]


def is_missing(value: object) -> bool:
    """Whether a value stands for none: null, NaN, or the words that tools write for them."""
    if isinstance(value, str):
        return value.strip().lower() in _MISSING
    return value is None or (isinstance(value, float) and math.isnan(value))


def _parse_list(text: str, where: str) -> list[Any] | None:
    """The list that a text is the written form of; None where it is not one."""
    if _LIST.fullmatch(text):
        for read in (json.loads, ast.literal_eval):
            try:
                with warnings.catch_warnings(action="ignore"):  # of escapes unknown to Python
                    found = read(text)
            except (ValueError, SyntaxError):
                continue
            if isinstance(found, list | tuple):
                return list(found) or [None]
    elif not _UNREADABLE.match(text):
        return None
    raise InputError(
        f"{where} is {text!r:.60}, a list that cannot be read.",
        "write a text, or a list of texts as JSON, or remove the row.",
    )


def clean_caption(text: str) -> str:
    """A caption on one line without control characters; "" where nothing of it can be seen.

    Halves of a character, which JSON may hold, become a question mark.
    """
    shown = _CONTROLS.sub(" ", text.replace(MARK, "")).encode("utf-8", "replace").decode("utf-8")
    return "" if is_blank(shown) else " ".join(shown.split())


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


AddRow = Callable[..., None]
"""Takes the cells of a row."""


class PairRows:
    """Numbers images and captions in the order of their source, on their way to the tables.

    `folder` gets the archives that are made of the images; `splits` draws the splits of images
    whose source names none.
    """

    def __init__(
        self, folder: Path, splits: SplitsParams, add_image: AddRow, add_caption: AddRow
    ) -> None:
        self.folder = folder
        self.splits = splits
        self.left_out: Counter[str] = Counter(captions_empty=0, captions_cut=0)
        """What was left out of the tables or changed, by name of the metric."""
        self.images = self.captions = 0
        self.in_split: Counter[str] = Counter(train=0, val=0, test=0)
        """Images of each split."""
        self.archives: dict[str, tuple[int, int]] = {}
        """Bytes and time of archives that are not in the folder of the tables."""
        self._add_image, self._add_caption = add_image, add_caption

    def add(self, split: str, archive: str, member: str, captions: Iterable[str] = ()) -> int:
        """Add an image, with captions; returns its id."""
        if archive not in self.archives and Path(archive).is_absolute():
            with reports_unreadable(archive):
                found = Path(archive).stat()
            self.archives[archive] = (found.st_size, found.st_mtime_ns)
        image_id = self.images
        self._add_image(image_id, split, archive, member)
        self.images += 1
        self.in_split[split] += 1
        self.add_captions(image_id, captions)
        return image_id

    def pack(self, name: str) -> AbstractContextManager[Packer]:
        """Write a zip of images into the folder."""
        return pack(self.folder / name)

    def to_fetch(self, files: Sequence[str]) -> Sequence[str]:
        """Which of the files that have to be fetched are read: all."""
        return files

    def add_captions(self, image_id: int, captions: Iterable[str]) -> None:
        """Add captions of an image; empty ones too, for `features` to account for."""
        for caption in captions:
            text = clean_caption(caption)
            self.left_out["captions_empty"] += not text
            self.left_out["captions_cut"] += len(text) > MOST_CHARACTERS
            text = text[:MOST_CHARACTERS].rstrip()
            self._add_caption(self.captions, image_id, text)
            self.captions += 1


@contextlib.contextmanager
def write_rows_to(folder: Path, splits: SplitsParams | None = None) -> Iterator[PairRows]:
    """Write the tables of the pairs in a block, row by row; when it fails, nothing is left."""
    with (
        open_table(folder / "images.parquet", IMAGES) as images,
        open_table(folder / "captions.parquet", CAPTIONS) as captions,
    ):
        rows = PairRows(folder, splits or SplitsParams(), images.add, captions.add)
        yield rows
        if not (rows.images and rows.captions):
            raise InputError(
                "the pairs have no images or no captions.", "check what `download.pairs` names."
            )
        (folder / ELSEWHERE).unlink(missing_ok=True)  # from an earlier run
        if rows.archives:
            with open_table(folder / ELSEWHERE, ARCHIVES) as archives:
                for name, stat in rows.archives.items():
                    archives.add(name, *stat)
