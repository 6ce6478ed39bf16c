"""Text of users' files: one rule for the encoding and for where a line ends.

Text is UTF-8. A line ends at LF, CR LF or CR, and at nothing else. Byte order marks are removed
anywhere, since concatenated files have them inside too. UTF-16 is refused, and so is NUL, which
binary files contain.
"""

import io
import re
from collections.abc import Iterator
from typing import BinaryIO, cast

from pipeline.core.errors import InputError

LONGEST_LINE = 1 << 26
"""Most characters of a line."""
MARK = "\ufeff"
"""The byte order mark, as a character."""

_WIDE = ("\udcff\udcfe", "\udcfe\udcff", "\0\0\udcfe\udcff")
"""Byte order marks of UTF-16 and UTF-32, read as UTF-8 with surrogates."""
_NO_UTF8 = re.compile("[\udc80-\udcff]")
_INVISIBLE = re.compile("[\\s\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]*")


def is_blank(text: str) -> bool:
    """Whether a text is only white space and characters without width."""
    return bool(_INVISIBLE.fullmatch(text))


def read_lines(stream: io.BufferedIOBase, name: str) -> Iterator[tuple[int, str]]:
    """The lines of a text, numbered from 1, each with its end, if any, as LF; closes the stream.

    Raises:
        InputError: naming file and line: it is UTF-16, not UTF-8, too long, or contains NUL.
    """
    number = 0
    binary = cast(BinaryIO, stream)
    with io.TextIOWrapper(binary, "utf-8", errors="surrogateescape", newline=None) as text:
        while line := text.readline(LONGEST_LINE + 1):
            number += 1
            if number == 1 and line.startswith(_WIDE):
                raise InputError(
                    f"{name} is UTF-16 or UTF-32 text.",
                    "save it as UTF-8; `iconv -f UTF-16 -t UTF-8 OLD > NEW` does so.",
                )
            _check(line, f"{name} line {number:,}")
            yield number, line.replace(MARK, "")


def decode(content: bytes, name: str) -> str:
    """A whole text, by the same rule; errors as `read_lines`."""
    return "".join(line for _, line in read_lines(io.BytesIO(content), name))


def _check(line: str, where: str) -> None:
    if len(line) > LONGEST_LINE:
        raise InputError(f"{where} is longer than {LONGEST_LINE:,} characters.", "check the file.")
    if wrong := _NO_UTF8.search(line):
        place = len(line[: wrong.start()].encode("utf-8", "surrogateescape"))
        raise InputError(f"{where} is not UTF-8 at byte {place:,}.", "save the file as UTF-8.")
    if "\0" in line:
        raise InputError(
            f"{where} holds NUL, as UTF-16 and binary files do.",
            "check that it is a text file, and save it as UTF-8.",
        )
