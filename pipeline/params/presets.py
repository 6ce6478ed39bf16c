"""Presets: read them by name, see what they change, write them into params.yaml."""

import io
import re
from functools import cache, reduce
from operator import getitem
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq
from ruamel.yaml.util import load_yaml_guess_indent

from pipeline.params.block import dotted
from pipeline.params.changes import Changes, apply_changes
from pipeline.params.schema import Params

Data = Literal["demo", "flickr8k", "flickr30k", "coco"]
Method = Literal["paper", "released", "mcse", "simcse", "dalr", "rankcse", "best"]
TeacherName = Literal["openai", "siglip2", "dfn", "mobileclip2"]

FILE = Path(__file__).with_name("presets.yaml")


def read_preset(data: Data, method: Method, teacher: TeacherName | None = None) -> Changes:
    """All keys that a preset owns, with its values; those of the data win over the method's.

    `teacher` replaces the teacher that these name.

    Values know how they are written in the file of presets, such as `3e-5`.
    """
    content = _presets()
    preset = {**content["shared"], **content["methods"][method], **content["data"][data]}
    if (data, method) == ("demo", "best"):
        preset |= content["best_on_demo"]
    return preset | content["teachers"][teacher] if teacher else preset


@cache
def _presets() -> Any:
    return YAML().load(FILE.read_text(encoding="utf-8"))


def changed_values(params: Params, preset: Changes) -> dict[str, tuple[Any, Any]]:
    """What a preset changes: old and new value by dotted key, in the order of the blocks.

    Values are compared as they are read, so that `0.001` and `1e-3` are equal.
    """
    before = params.model_dump()
    after = Params.model_validate(apply_changes(before, preset)).model_dump()
    old, new = dict(dotted(before)), dict(dotted(after))
    return {key: (old[key], value) for key, value in new.items() if old[key] != value}


def edit_params(text: str, changes: Changes) -> str:
    """The text of a valid params.yaml with other values by dotted key.

    Comments, order and quotes of the rest stay.
    """
    editor = YAML()
    editor.preserve_quotes, editor.width = True, 1 << 16
    content, indent, offset = load_yaml_guess_indent(text, yaml=editor)
    if first := re.search(r"^( +)\w", text, re.MULTILINE):
        editor.map_indent = len(first[1])
    if offset is not None:
        editor.sequence_indent, editor.sequence_dash_offset = indent, offset
    for key, value in changes.items():
        *blocks, name = key.split(".")
        block = reduce(getitem, blocks, content)
        if block[name] != value:
            _replace(block, name, value)
    stream = io.StringIO()
    editor.dump(content, stream)
    return stream.getvalue()


def _replace(block: Any, name: str, value: Any) -> None:
    """Set a value; the comment below a list of several lines, which it would take along, stays."""
    old = block[name]
    if isinstance(value, list):
        value = CommentedSeq(value)
        value.fa.set_flow_style()
    block[name] = value
    if isinstance(old, CommentedSeq) and (last := old.ca.items.get(len(old) - 1)):
        block.ca.items[name] = [None, None, last[0], None]
