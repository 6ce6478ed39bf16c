"""Strict, typed parameter blocks, and one message for all faults of params.yaml."""

import difflib
import math
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import ParamsError

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
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


Number = Annotated[float, BeforeValidator(_number)]
"""A float that may stand in YAML as an integer or in scientific notation."""


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
    content = _read_yaml(path)
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        faults = [_describe(fault, schema) for fault in error.errors(include_url=False)]
        raise ParamsError(
            f"{path}: " + "; ".join(faults) + ".",
            f"mend {path}, or pass another value with `dvc exp run -S KEY=VALUE`.",
        ) from None


def _read_yaml(path: Path) -> object:
    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(
            f"{path} does not exist.", "run the command in the project's folder."
        ) from None
    except (YAMLError, UnicodeDecodeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ParamsError(f"{path} cannot be read: {reason}.", "mend the YAML.") from None


def _describe(fault: ErrorDetails, schema: type[Block]) -> str:
    location = [part for part in fault["loc"] if isinstance(part, str)]
    key = ".".join(_without_union_tags(location, schema)) or "the file"
    if fault["type"] == "extra_forbidden":
        return f"unknown key {key}{_did_you_mean(location, schema)}"
    if fault["type"] == "missing":
        return f"{key} is missing"
    reason = fault["msg"].removeprefix("Value error, ")
    return f"{key}: {reason[0].lower()}{reason[1:]}, got {_shorten(fault['input'])}"


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


def _did_you_mean(location: list[str], schema: type[Block]) -> str:
    block: type[Block] | None = schema
    for part in location[:-1]:
        block = _inner_block(block, part) if block else None
    known = list(block.model_fields) if block else []
    close = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else f" (known: {', '.join(known)})"


def _shorten(value: object) -> str:
    text = "nan" if isinstance(value, float) and math.isnan(value) else repr(value)
    return textwrap.shorten(text, 60, placeholder="...")
