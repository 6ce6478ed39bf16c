"""Captions in whatever form a source has them, cleaned.

A text is a caption; a list of texts is several. Tools write lists into tables and text files as
JSON (`["a", "b"]`) or as Python (`['a', 'b']`): those are read as the lists they are.
"""

import ast
import json
import math
import re
import warnings
from typing import Any

from pipeline.core.errors import InputError
from pipeline.core.plaintext import MARK, is_blank

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
