"""Presets: read them by name, see what they change, lay them over the text of params.yaml."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from pipeline.core.errors import ParamsError
from pipeline.params.block import dotted
from pipeline.params.changes import Changes, apply_changes
from pipeline.params.schema import Params

Data = Literal["demo", "flickr8k", "flickr30k", "coco"]
Method = Literal["paper", "released", "mcse", "simcse", "default"]
Span = tuple[int, int]
"""Where something stands in a text: its first character, and the one behind its last."""

_FILE = Path(__file__).with_name("presets.yaml")
_SMALL = 0.01
"""Numbers below are written as in `3e-5`."""


def read_preset(data: Data, method: Method) -> Changes:
    """All keys that a preset owns, with its values; those of the data win over the method's."""
    content = _load(_FILE.read_text(encoding="utf-8"))
    return {**content["shared"], **content["methods"][method], **content["data"][data]}


def changed_values(params: Params, preset: Changes) -> dict[str, tuple[Any, Any]]:
    """What a preset changes: old and new value by dotted key, in the order of the blocks.

    Values are compared as they are read, so that `0.001` and `1e-3` are equal.
    """
    before = params.model_dump()
    after = Params.model_validate(apply_changes(before, preset)).model_dump()
    old, new = dict(dotted(before)), dict(dotted(after))
    return {key: (old[key], value) for key, value in new.items() if old[key] != value}


def edit_params(text: str, changes: Changes) -> str:
    """The text of params.yaml with other values; all else stays as it is, character by character.

    Values are replaced in the text, because writing the parsed file anew would lay it out anew and
    can lose comments below a list. Only comments inside a list of several lines go with it.

    Args:
        text: a valid params.yaml.
        changes: values by dotted key; keys that are not named keep theirs.

    Raises:
        ParamsError: a value does not stand plainly at its key.
    """
    spans = _value_spans(YAML().compose(text))
    found = {spans[key]: value for key, value in changes.items() if key in spans}
    edited = text
    for span in sorted(found, reverse=True):
        edited = _replace(edited, span, _written(found[span]))
    if not _reads_as(edited, apply_changes(_load(text), changes)):
        raise ParamsError(
            "params.yaml has values that cannot be replaced in their place, such as YAML aliases.",
            "write every value in plain YAML on the line of its key.",
        )
    return edited


def _value_spans(block: Node, prefix: str = "") -> dict[str, Span]:
    """Where values stand by dotted key, each from behind the colon of its key."""
    spans: dict[str, Span] = {}
    for key, value in block.value:
        start = key.end_mark.index + 1
        if isinstance(value, MappingNode):
            spans |= _value_spans(value, f"{prefix}{key.value}.")
        else:
            spans[prefix + key.value] = (start, max(start, _end(value, empty=start)))
    return spans


def _end(value: Node, empty: int) -> int:
    """The end of a value; the marks of nothing and of a list of several lines are further down.

    Args:
        value: a scalar or a list.
        empty: the end of a scalar of no characters.
    """
    if isinstance(value, ScalarNode) and value.start_mark.index == value.end_mark.index:
        return empty
    is_block = isinstance(value, SequenceNode) and not value.flow_style
    end: int = (value.value[-1] if is_block else value).end_mark.index
    return end


def _replace(text: str, span: Span, value: str) -> str:
    """Put a value into its place; a comment behind it keeps its column where there is room."""
    start, end = span
    gap = re.match(r" +(?=#)", text[end:])
    if gap is None:
        return text[:start] + value + text[end:]
    width = end - start + len(gap[0])
    return text[:start] + value.ljust(width - 1) + " " + text[end + len(gap[0]) :]


def _written(value: Any) -> str:
    """A value as it stands behind a colon; nothing for null."""
    if value is None:
        return ""
    if isinstance(value, list):
        return f" [{','.join(map(_written, value)).strip()}]"
    if isinstance(value, float) and 0 < abs(value) < _SMALL:
        return " " + np.format_float_scientific(value, trim="-", exp_digits=1)
    return " " + (value if isinstance(value, str) else json.dumps(value))


def _reads_as(text: str, content: Mapping[str, Any]) -> bool:
    try:
        return bool(_load(text) == content)
    except YAMLError:
        return False


def _load(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)
