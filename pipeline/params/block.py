"""Strict, typed parameter blocks, and one message for all faults of params.yaml."""

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo

from pipeline.core.errors import ParamsError
from pipeline.core.redact import one_line

B = TypeVar("B", bound="Block")
T = TypeVar("T")

NUMBER_TEXT = r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?"
"""Text that stands for a number: digits, a point, an exponent."""

RENAMED: dict[str, str] = {
    "index.recall": "index.target_recall",
    "loss.weight": "loss.grounding_weight",
    "train.accumulate": "train.gradient_accumulation_steps",
    "train.buckets": "train.length_buckets",
    "train.chunk": "train.mini_batch_size",
    "train.track": "train.report_to",
}
"""Old dotted keys of params.yaml, each with its new one, which the error names."""

REMOVED: dict[str, str] = {
    "loss.combine": "grounded losses are added; halve loss.grounding_weight for their average",
    "features.layout": "features.h5 always holds all features; delete the line",
}
"""Keys of params.yaml that are gone, each with the reason and what to do."""

_REASONS = {
    "model_type": "input should be keys with values",
    "string_pattern_mismatch": "input should be text without NUL",
}
"""Better words than those of the library."""
_MOST_FAULTS = 40
_LONGEST = 60
"""Characters of a key or value in a message."""


class Block(BaseModel):
    """A block of params.yaml: unknown keys, wrong types, NaN and infinity are faults."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        serialize_by_alias=True,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _read_number(cls, value: object, info: Any) -> object:
        """Read text such as `1e-5`, which YAML 1.1 writers leave as a string, as its number."""
        is_number = cls.model_fields[info.field_name or ""].annotation is Number
        if is_number and isinstance(value, str) and re.fullmatch(NUMBER_TEXT, value, re.ASCII):
            return float(value)
        return value


Number = float
"""A number that may stand in YAML as an integer or in scientific notation."""

Text = Annotated[str, Field(min_length=1, max_length=8192, pattern=r"^[^\x00]*$")]
"""A name, path or address that the operating system accepts."""

UNIQUE = Field(json_schema_extra={"uniqueItems": True})
"""The rule of `distinct` in JSON schema."""


def distinct(values: list[T]) -> list[T]:
    """A validator of lists that may name a value only once."""
    if len(set(values)) < len(values):
        msg = "a value is named twice"
        raise ValueError(msg)
    return values


def dotted(block: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested blocks by dotted key, such as `loss.filter.kind`."""
    for key, value in block.items():
        if isinstance(value, Mapping):
            yield from dotted(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def load_params(path: Path, schema: type[B]) -> B:
    """Read and check a whole params file, whose top-level keys are the fields of `schema`.

    Raises:
        ParamsError: naming every fault of the file at once.
        ResourceError: the file cannot be read.
    """
    from pipeline.params.yaml import read_yaml

    content = read_yaml(path)
    if content is None:
        raise ParamsError(f"{path}: the file is empty.", "run `git checkout params.yaml`.")
    if faults := _find_faults(content, schema):
        raise ParamsError(
            f"{path}: {'; '.join(faults)}.",
            f"correct {path}, or pass another value with `dvc exp run -S KEY=VALUE`.",
        )
    return schema.model_validate(content)


def _find_faults(content: object, schema: type[Block]) -> list[str]:
    """Every fault of the content of a params file, in words; empty where it is valid.

    Blocks have defaults for users of the library, but a file has to name every key of its blocks,
    so that DVC sees every value.
    """
    faults: list[str] = []
    try:
        schema.model_validate(content)
    except ValidationError as error:
        faults = [_describe(fault, schema) for fault in error.errors(include_url=False)]
    faults = list(dict.fromkeys([*faults, *_find_missing(content, schema)]))
    more = len(faults) - _MOST_FAULTS
    return [*faults[:_MOST_FAULTS], f"and {more:,} more"] if more > 0 else faults


def _find_missing(content: object, schema: type[Block], above: str = "") -> Iterator[str]:
    if not isinstance(content, Mapping):
        return
    for name in _fields(schema):
        inner = _inner_block(schema, name)
        if name not in content and (above or inner):
            yield f"{above}{name} is missing"
        elif inner:
            yield from _find_missing(content[name], inner, f"{above}{name}.")


def _fields(block: type[Block]) -> dict[str, FieldInfo]:
    """The fields by their key in the file, which may be a word that Python keeps for itself."""
    return {field.alias or name: field for name, field in block.model_fields.items()}


def _inner_block(block: type[Block], name: str) -> type[Block] | None:
    field = _fields(block).get(name)
    annotation: Any = field.annotation if field else None
    is_block = isinstance(annotation, type) and issubclass(annotation, Block)
    return annotation if is_block else None


def _describe(fault: Mapping[str, Any], schema: type[Block]) -> str:
    keys, known = _locate(fault["loc"], schema)
    shown = one_line(".".join(keys), _LONGEST) or "the file"
    value = one_line(repr(fault["input"]), _LONGEST)
    if fault["type"] == "extra_forbidden":
        return f"unknown key {shown} ({_hint(keys, known)})"
    if fault["type"] == "missing":
        return f"{shown} is missing"
    if fault["type"] == "invalid_key":
        return f"a key is {value}, which is not text"
    reason = _REASONS.get(fault["type"]) or fault["msg"].removeprefix("Value error, ")
    hint = ""
    if fault["type"] == "literal_error" and isinstance(fault["input"], str):
        hint = _did_you_mean(fault["input"], re.findall("'([^']*)'", fault["ctx"]["expected"]))
    return f"{shown}: {reason[0].lower()}{reason[1:]}, got {value}" + (f" ({hint})" if hint else "")


def _locate(location: tuple[int | str, ...], schema: type[Block]) -> tuple[list[str], list[str]]:
    """The keys that lead to a fault, and the known keys of the block that holds the last one.

    The location that pydantic gives ends with its own names of list items and of union members.
    """
    keys: list[str] = []
    known: list[str] = []
    block: type[Block] | None = schema
    for part in map(str, location):
        if block is None:
            break
        keys.append(part)
        known = list(_fields(block))
        block = _inner_block(block, part)
    return keys, known


def _hint(keys: list[str], known: list[str]) -> str:
    """What to write instead of an unknown key."""
    key = ".".join(keys)
    if key in RENAMED:
        return f"did you mean {RENAMED[key]}? It was renamed"
    if key in REMOVED:
        return f"it was removed: {REMOVED[key]}"
    return _did_you_mean(keys[-1], known) or f"known: {', '.join(known)}"


def _did_you_mean(written: str, known: list[str]) -> str:
    close = difflib.get_close_matches(written[:_LONGEST], known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else ""
