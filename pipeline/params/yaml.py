"""The text of params.yaml: plain YAML 1.2 of sane size and depth, or one clear line."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    ScalarEvent,
)

from pipeline.core.errors import ParamsError
from pipeline.core.redact import one_line

LARGEST = 256 << 10
"""Bytes of the file; reading takes a few seconds then."""
DEEPEST = 32
"""Blocks and lists within each other."""
MOST = 100_000
"""Values, with every alias written out."""

_LONGEST_NUMBER = 100
_DIGITS = re.compile(r"[-+]?(0[xob])?[0-9a-fA-F_]*\.?[0-9_]*([eE][-+]?[0-9_]*)?")
_GROUPED = re.compile(r"[-+]?[0-9][0-9_]*\.?[0-9_]*([eE][-+]?[0-9]+)?")


def read_plain_yaml(path: Path) -> object:
    """Read a small YAML file that consists of plain blocks, lists and values.

    Args:
        path: the file, YAML 1.2, UTF-8 with or without a byte order mark. Aliases are followed.

    Returns:
        Its content; None for an empty file.

    Raises:
        ParamsError: the file is not there, is no YAML, names a key or an anchor twice, has a tag or
            a directive, is larger than `LARGEST`, deeper than `DEEPEST`, or stands for more than
            `MOST` values.
    """
    text = _read_text(path)
    try:
        _check(_yaml().parse(text))
        return _yaml().load(text)
    except _PlainTextError as error:
        raise _unreadable(path, str(error)) from None
    except MarkedYAMLError as error:
        raise _unreadable(path, _describe(error)) from None
    except (YAMLError, RecursionError, *_OF_CONSTRUCTORS) as error:
        raise _unreadable(path, str(error)) from None


_OF_CONSTRUCTORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What the library lets pass where a value is not of the kind that it looks like."""


class _PlainTextError(Exception):
    """The text is YAML, but not plain."""


def _yaml() -> YAML:
    return YAML(typ="safe", pure=True)


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            content = stream.read(LARGEST + 1)
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise ParamsError(
            f"{path} does not exist.", "run the command in the project's folder."
        ) from None
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is no UTF-8 text"
        raise ParamsError(f"{path} cannot be read: {reason}.", "save it as UTF-8.") from None
    except OSError as error:
        raise ParamsError(
            f"{path} cannot be read: {error.strerror}.", "make it a readable file."
        ) from None
    if len(content) > LARGEST:
        raise _unreadable(path, f"it is larger than {LARGEST:,} bytes")
    return text


def _unreadable(path: Path, reason: str) -> ParamsError:
    return ParamsError(
        f"{path} cannot be read: {one_line(' '.join(reason.split()), 300)}.", "mend the YAML."
    )


def _describe(error: MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    reason = error.problem or error.context or "it is no YAML"
    return f"{_place(mark.line, mark.column)}: {reason}" if mark else reason


def _place(line: int, column: int) -> str:
    return f"line {line + 1}, column {column + 1}"


def _check(events: Iterable[Event]) -> None:
    """Refuse, before anything is built of it, what plain parameters do not need."""
    total = 0
    named: set[str] = set()
    opened: list[tuple[str | None, int]] = []
    sizes: dict[str | None, int] = {}
    for event in events:
        for reason in _foreign(event):
            mark = event.start_mark
            raise _PlainTextError(f"{_place(mark.line, mark.column)}: {reason}")
        _name(event, named)
        if isinstance(event, CollectionStartEvent):
            opened.append((event.anchor, total))
        elif isinstance(event, CollectionEndEvent):
            anchor, before = opened.pop()
            sizes[anchor] = total - before
        total += _size(event, sizes)
        _check_size(total, len(opened))


def _name(event: Event, named: set[str]) -> None:
    """Note the anchor of a value; a second of its name would take its place unseen."""
    anchor = getattr(event, "anchor", None)
    if anchor is None or isinstance(event, AliasEvent):
        return
    if anchor in named:
        mark = event.start_mark
        reason = f"the anchor &{anchor} is given a second time"
        raise _PlainTextError(f"{_place(mark.line, mark.column)}: {reason}")
    named.add(anchor)


def _size(event: Event, sizes: dict[str | None, int]) -> int:
    """How many values an event adds; it notes the size of a value with an anchor."""
    if isinstance(event, AliasEvent):
        if event.anchor not in sizes:
            raise _PlainTextError(f"*{event.anchor} stands for no whole value before it")
        return sizes[event.anchor]
    if isinstance(event, ScalarEvent):
        sizes[event.anchor] = 1
    return 1


def _check_size(values: int, depth: int) -> None:
    if depth > DEEPEST:
        raise _PlainTextError(f"blocks are nested deeper than {DEEPEST}")
    if values > MOST:
        raise _PlainTextError(f"it stands for more than {MOST:,} values")


def _foreign(event: Event) -> Iterator[str]:
    """Why an event is not of plain YAML 1.2, if it is not."""
    if isinstance(event, DocumentStartEvent) and (event.version or event.tags):
        yield "directives such as %YAML are not read"
    if isinstance(event, ScalarEvent | CollectionStartEvent) and event.ctag is not None:
        yield f"tags such as {event.tag} are not read"
    if isinstance(event, ScalarEvent) and event.style is None:
        yield from _foreign_number(event.value)


def _foreign_number(value: str) -> Iterator[str]:
    if len(value) > _LONGEST_NUMBER and _DIGITS.fullmatch(value):
        yield f"a number of {len(value):,} digits"
    if "_" in value and _GROUPED.fullmatch(value):
        yield f"{value} is no number of YAML 1.2, write {value.replace('_', '')}"
