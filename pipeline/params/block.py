"""Strict, typed parameter blocks, and one message for all faults of params.yaml."""

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from pipeline.core.errors import ParamsError
from pipeline.core.redact import one_line

B = TypeVar("B", bound="Block")
T = TypeVar("T")


class Block(BaseModel):
    """A block of params.yaml: unknown keys, wrong types, NaN and infinity are faults."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


def _number(value: object) -> object:
    """Read text such as `1e-5`, which YAML 1.1 writers leave as a string, as its number."""
    if isinstance(value, str) and re.fullmatch(NUMBER_TEXT, value, re.ASCII):
        return float(value)
    return value


NUMBER_TEXT = r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?"
"""Text that stands for a number: digits, a point, an exponent."""

Number = Annotated[float, BeforeValidator(_number)]
"""A float that may stand in YAML as an integer or in scientific notation."""

Text = Annotated[str, Field(min_length=1, max_length=8192, pattern=r"^[^\x00]*$")]
"""A name, path or address, for which the operating system can be asked."""


UNIQUE = Field(json_schema_extra={"uniqueItems": True})
"""What `distinct` asks for, in the words of JSON schema."""


def distinct(values: list[T]) -> list[T]:
    """A validator of lists whose values may come once only."""
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
    """Read and check a whole params file.

    Args:
        path: the YAML file (YAML 1.2, so `off` is a word and `1e-5` a number).
        schema: the block whose fields are the file's top-level keys.

    Returns:
        The checked parameters.

    Raises:
        ParamsError: naming every fault of the file at once.
    """
    from pipeline.params.yaml import read_plain_yaml

    content = read_plain_yaml(path)
    if content is None:
        raise ParamsError(f"{path}: the file is empty.", "run `git checkout params.yaml`.")
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise ParamsError(
            f"{path}: {_list_faults(error, schema)}.",
            f"mend {path}, or pass another value with `dvc exp run -S KEY=VALUE`.",
        ) from None


_MOST_FAULTS = 40


def _list_faults(error: ValidationError, schema: type[Block]) -> str:
    faults = error.errors(include_url=False)
    shown = [_describe(fault, schema) for fault in faults[:_MOST_FAULTS]]
    more = [f"and {len(faults) - _MOST_FAULTS:,} more"] if len(faults) > _MOST_FAULTS else []
    return "; ".join(shown + more)


def _describe(fault: ErrorDetails, schema: type[Block]) -> str:
    location = [part for part in fault["loc"] if isinstance(part, str)]
    shown = one_line(".".join(_without_union_tags(location, schema)), _LONGEST) or "the file"
    if fault["type"] == "extra_forbidden":
        return f"unknown key {shown} ({_hint(location, schema)})"
    if fault["type"] == "missing":
        return f"{shown} is missing"
    if fault["type"] == "invalid_key":
        return f"a key is {_shorten(fault['input'])}, which is no text"
    return f"{shown}: {_reason(fault)}, got {_shorten(fault['input'])}{_did_you_mean_value(fault)}"


def _reason(fault: ErrorDetails) -> str:
    if fault["type"] in _REASONS:
        return _REASONS[fault["type"]]
    reason = fault["msg"].removeprefix("Value error, ")
    return f"{reason[0].lower()}{reason[1:]}"


_REASONS = {
    "model_type": "input should be keys with values",
    "string_pattern_mismatch": "input should be text without NUL",
}
"""Reasons that the library words for programmers."""


def _did_you_mean_value(fault: ErrorDetails) -> str:
    if fault["type"] != "literal_error" or not isinstance(fault["input"], str):
        return ""
    known = re.findall("'([^']*)'", fault["ctx"]["expected"])
    close = difflib.get_close_matches(fault["input"][:_LONGEST], known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


def _without_union_tags(location: list[str], schema: type[Block]) -> list[str]:
    """Drop the member names that pydantic appends to the location of a union's fault."""
    kept: list[str] = []
    block: type[Block] | None = schema
    for part in location:
        if block is None:
            break
        kept.append(part)
        block = _inner_block(block, part)
    return kept


def _inner_block(block: type[Block], name: str) -> type[Block] | None:
    field = block.model_fields.get(name)
    annotation: Any = field.annotation if field else None
    if isinstance(annotation, type) and issubclass(annotation, Block):
        return annotation
    return None


def _hint(location: list[str], schema: type[Block]) -> str:
    """What to write instead of an unknown key."""
    key = ".".join(location)
    if key in RENAMED:
        return f"did you mean {RENAMED[key]}? It was renamed"
    if key in REMOVED:
        return f"it was removed: {REMOVED[key]}"
    block: type[Block] | None = schema
    for part in location[:-1]:
        block = _inner_block(block, part) if block else None
    known = list(block.model_fields) if block else []
    close = difflib.get_close_matches(location[-1][:_LONGEST], known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"


def _shorten(value: object) -> str:
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    return one_line(repr(value), _LONGEST)


_LONGEST = 60
"""Characters of a key or value in a message."""

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
    "features.layout": "features.h5 always holds all features; delete the line",
}
"""Keys of params.yaml that are gone, each with the reason and what to do."""
