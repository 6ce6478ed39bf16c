"""YAML as data: plain values of bounded size, or one clear line on what is wrong."""

import itertools
import warnings
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning, YAMLError
from ruamel.yaml.nodes import Node, ScalarNode, SequenceNode

from pipeline.core.errors import ParamsError
from pipeline.core.files import reports_unreadable
from pipeline.core.redact import one_line

_LARGEST = 256 << 10
"""Bytes of a file; reading it takes a few seconds."""
_MOST = 100_000
"""Values, with every alias written out."""
_LONGEST_NUMBER = 100
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_OF_LIBRARY = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""Errors of the library where a value is not of the kind that it looks like."""


def read_yaml(path: Path) -> Any:
    """Read a small YAML file in UTF-8, with or without a byte order mark; see `parse_yaml`.

    Raises:
        ParamsError: the file does not exist, is not YAML, or is larger than 256 KiB.
        ResourceError: it cannot be read.
    """
    if not path.exists():
        raise ParamsError(f"{path} does not exist.", "run the command in the project's folder.")
    with reports_unreadable(path), path.open("rb") as stream:
        content = stream.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise ParamsError(f"{path} is larger than {_LARGEST:,} bytes.", "check the file.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"{path} cannot be read: byte {error.start} is not UTF-8."
        raise ParamsError(what, "save it as UTF-8.") from None
    return parse_yaml(text, path)


def parse_yaml(text: str, name: Path | str) -> Any:
    """The content of a YAML 1.2 document: `off` is a word, `1e-5` a number; aliases are followed.

    Returns:
        Its content; None where it is empty.

    Raises:
        ParamsError: naming the file: it is not YAML, declares another version of it, names a key
            or an anchor twice, has a tag of another language, a number that is not plain, or stands
            for more than 100,000 values.
    """
    reader = YAML(typ="safe", pure=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ReusedAnchorWarning)
            document = reader.compose(text)
            _check_version(reader)
            _count(document, {})
            return None if document is None else reader.constructor.construct_document(document)
    except RecursionError:
        reason = "it is nested too deep"
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = error.problem or error.context or "it is not YAML"
        reason = f"line {mark.line + 1}, column {mark.column + 1}: {reason}" if mark else reason
    except (YAMLError, ReusedAnchorWarning, *_OF_LIBRARY) as error:
        reason = str(error)
    reason = one_line(" ".join(reason.split()), 300)
    raise ParamsError(f"{name} cannot be read: {reason}.", "correct the YAML.")


def _check_version(reader: YAML) -> None:
    """Refuse YAML 1.1, in which the same text has other values."""
    if (version := reader.resolver.processing_version) != (1, 2):
        named = ".".join(map(str, version))
        raise YAMLError(f"it declares YAML {named}, and is read as YAML 1.2: delete its %YAML line")


def _count(node: Node | None, counted: dict[int, int]) -> int:
    """The values that a node stands for; refuses too many before anything is built of them."""
    if node is None or isinstance(node, ScalarNode):
        _check_number(node)
        return 1
    if id(node) not in counted:
        counted[id(node)] = _MOST  # for a node that contains itself
        parts = node.value if isinstance(node, SequenceNode) else itertools.chain(*node.value)
        counted[id(node)] = 1 + sum(_count(part, counted) for part in parts)
        if counted[id(node)] > _MOST:
            raise YAMLError(f"it stands for more than {_MOST:,} values")
    return counted[id(node)]


def _check_number(node: ScalarNode | None) -> None:
    """Refuse numbers that Python cannot hold, or that other readers of YAML take for text."""
    if node is None or node.tag not in _NUMBERS:
        return
    if len(node.value) > _LONGEST_NUMBER or "_" in node.value:
        raise MarkedYAMLError(
            problem=f"write numbers without _ and in at most {_LONGEST_NUMBER} digits",
            problem_mark=node.start_mark,
        )
