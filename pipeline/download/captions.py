"""The captions of one cell, member or value, in whatever form a source has them.

A text is a caption, a list of texts are captions. Tools write lists into tables and files of text
as JSON (`["a", "b"]`) or as Python (`['a', 'b']`): those are read as the lists they are.
"""

import ast
import json
import math
import re
import warnings
from typing import Any

from pipeline.core.errors import InputError

_QUOTED = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|null|None|nan|NaN)"""
_LIST = re.compile(rf"[\[(]\s*(?:{_QUOTED}\s*,\s*)*(?:{_QUOTED}\s*)?[\])]", re.DOTALL)
_UNREADABLE = re.compile(r"""[\[(]\s*["'\[(]|\{\s*["']|array\(|\[[\s\d.,-]*\]""")
"""What begins like a list of texts, of lists or of objects, or is one of numbers."""
_MISSING = frozenset({"nan", "none", "null", "<na>", "n/a", "#n/a"})
_MEND = "write a text, or a list of texts as JSON, or remove the row."


def read_captions(cell: object, where: str) -> list[str]:
    """The captions that a value holds, one at least; "" stands for one that is missing.

    Args:
        cell: a text, a list of texts (also one that was written as text), or None or NaN.
        where: file, row and column, for messages.

    Raises:
        InputError: it holds something else, such as numbers, lists of lists, or a list that was
            written as text and cannot be read.
    """
    if isinstance(cell, str):
        cell = _unwritten(cell.strip(), where) or cell
    if not isinstance(cell, list):
        return [_caption(cell, where)]
    return [_caption(one, where) for one in cell] or [""]


def is_missing(value: object) -> bool:
    """Whether a value stands for none: null, NaN, or the words that tools write for them."""
    if isinstance(value, str):
        return value.strip().lower() in _MISSING
    return value is None or (isinstance(value, float) and math.isnan(value))


def _caption(value: object, where: str) -> str:
    if is_missing(value):
        return ""
    if isinstance(value, str):
        return value
    raise InputError(f"{where} is {value!r:.60}, no text.", "mend the row, or remove it.")


def _unwritten(text: str, where: str) -> list[Any] | None:
    """The list that a text is the written form of; None where it is none."""
    if not _LIST.fullmatch(text):
        if _UNREADABLE.match(text):
            raise InputError(f"{where} is {text!r:.60}, a list that cannot be read.", _MEND)
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            with warnings.catch_warnings(action="ignore"):  # of escapes that Python does not know
                found = read(text)
        except (ValueError, SyntaxError):
            continue
        if isinstance(found, list | tuple):
            return list(found) or [None]
    raise InputError(f"{where} is {text!r:.60}, a list that cannot be read.", _MEND)
