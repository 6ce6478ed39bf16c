"""The JSON schema of params.yaml: complete, the one that is kept, never stricter than the code."""

import copy
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, get_args

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.params.changes import apply_changes
from pipeline.params.presets import Data, Method, read_preset
from pipeline.params.schema import Params
from tests.conftest import ROOT, invoke, merge, read_default_params

SCHEMA = json.loads((ROOT / "params.schema.json").read_text())
CHECK = jsonschema.Draft202012Validator(SCHEMA)
NO_BOUNDS_NEEDED: dict[str, str] = {}
"""Numeric keys that have no bound on one side, by dotted key, each with the reason."""
UNITS = (
    "batches",
    "bytes",
    "captions",
    "cosine",
    "dimensions",
    "images",
    "neighbours",
    "no other unit",
    "no unit",
    "pairs",
    "passes",
    "radians",
    "rows",
    "samples",
    "sentences",
    "share",
    "steps",
    "texts",
    "threads",
    "tokens",
)


def leaves(node: dict, above: str = "") -> Iterator[tuple[str, dict]]:
    """Every key that has a value of its own, by dotted key, with its part of the schema."""
    for name, field in node["properties"].items():
        if "$ref" in field:
            yield from leaves(SCHEMA["$defs"][field["$ref"].split("/")[-1]], f"{above}{name}.")
        else:
            yield above + name, field


LEAVES = dict(leaves(SCHEMA))


def kinds(field: dict) -> Iterator[dict]:
    """The plain kinds that a key may be of, those of a list's items too."""
    for part in field.get("anyOf", [field]):
        if part.get("type") == "array":
            yield from kinds(part["items"])
        else:
            yield part


def numeric(field: dict) -> list[dict]:
    return [kind for kind in kinds(field) if kind.get("type") in {"integer", "number"}]


def test_every_key_of_the_default_file_is_a_leaf():
    def keys(block: dict, above: str = "") -> Iterator[str]:
        for key, value in block.items():
            yield from keys(value, f"{above}{key}.") if isinstance(value, dict) else [above + key]

    assert set(keys(read_default_params())) == set(LEAVES)


@pytest.mark.parametrize("key", LEAVES)
def test_every_key_is_described(key):
    assert len(LEAVES[key]["description"]) > 10
    assert "\n" not in LEAVES[key]["description"]


@pytest.mark.parametrize("key", LEAVES)
def test_every_key_has_a_type(key):
    for kind in kinds(LEAVES[key]):
        assert kind["type"] in {"integer", "number", "string", "boolean", "null"}


@pytest.mark.parametrize("key", [key for key in LEAVES if numeric(LEAVES[key])])
def test_every_number_has_two_bounds_and_a_unit(key):
    for kind in numeric(LEAVES[key]):
        low = kind.get("minimum", kind.get("exclusiveMinimum"))
        high = kind.get("maximum", kind.get("exclusiveMaximum"))
        if key not in NO_BOUNDS_NEEDED:
            assert math.isfinite(low)
            assert math.isfinite(high)
            assert low < high
    assert any(unit in LEAVES[key]["description"].lower() for unit in UNITS)


@pytest.mark.parametrize("key", LEAVES)
def test_every_text_is_a_choice_or_has_a_longest_length(key):
    for kind in kinds(LEAVES[key]):
        if kind["type"] == "string":
            assert {"enum", "const", "pattern", "maxLength"} & set(kind)


def test_every_object_is_closed():
    for block in (SCHEMA, *SCHEMA["$defs"].values()):
        assert block["additionalProperties"] is False


def test_the_kept_file_is_what_the_command_prints(tmp_path):
    printed = subprocess.run(
        [sys.executable, "-m", "stages.schema"], cwd=ROOT, capture_output=True, check=True
    )
    assert printed.stdout == (ROOT / "params.schema.json").read_bytes(), (
        "run `python -m stages.schema --out params.schema.json`"
    )


def test_out_names_a_file(tmp_path):
    target = tmp_path / "deep" / "schema.json"
    result = invoke("schema", "--out", str(target))
    assert (result.exit_code, result.stdout) == (0, "")
    assert target.read_bytes() == (ROOT / "params.schema.json").read_bytes()


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_the_default_file_names_its_schema_and_is_valid():
    first = (ROOT / "params.yaml").read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=params.schema.json"
    CHECK.validate(read_default_params())


@pytest.mark.parametrize("data", get_args(Data))
@pytest.mark.parametrize("method", get_args(Method))
def test_every_preset_is_valid(data, method):
    CHECK.validate(apply_changes(read_default_params(), read_preset(data, method)))


def changed(key: str, value: Any) -> dict:
    change: Any = value
    for part in reversed(key.split(".")):
        change = {part: change}
    return merge(read_default_params(), change)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("loss.margn", 0.1),
        ("loss.margin", 4),
        ("loss.margin", "abc"),
        ("loss.temperature", 0),
        ("train.batch_size", 1),
        ("train.batch_size", True),
        ("train.objective", "kdmsce"),
        ("train.seeds", [1, 1]),
        ("train.seeds", []),
        ("student.encoder", ""),
        ("student.encoder", "a\0b"),
        ("loss.filter.kind", None),
    ],
)
def test_an_editor_sees_the_fault(key, value):
    assert not CHECK.is_valid(changed(key, value))


@pytest.mark.parametrize("text", ["1e-5", "1.0E-05", ".5", "1", "+0.25"])
def test_the_text_of_a_number_is_one(text):
    content = changed("train.learning_rate", text)
    assert Params.model_validate(content).train.learning_rate == pytest.approx(float(text))
    CHECK.validate(content)


@pytest.mark.parametrize("text", ["nan", "infinity", "1_0", " 1", "٣", "0x10"])
def test_text_that_only_python_takes_for_a_number_is_none(text):
    content = changed("train.learning_rate", text)
    with pytest.raises(ValidationError):
        Params.model_validate(content)
    assert not CHECK.is_valid(content)


WORDS = sorted(
    {word for field in LEAVES.values() for kind in kinds(field) for word in kind.get("enum", [])}
)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(0, 300),
    st.floats(),
    st.floats(0, 4),
    st.text(max_size=5),
    st.from_regex(r"[-+]?[0-9.]{1,3}(e-?[0-9])?", fullmatch=True),
    st.sampled_from(WORDS),
    st.lists(st.integers(0, 300), max_size=3),
    st.lists(st.sampled_from(WORDS), max_size=3),
)


def faults_by_code(content: dict) -> set[str]:
    """The kinds of faults that the pipeline finds, by pydantic's names."""
    try:
        Params.model_validate(copy.deepcopy(content))
    except ValidationError as error:
        return {fault["type"] for fault in error.errors()}
    return set()


@given(st.sampled_from(list(LEAVES)), VALUES)
def test_the_schema_refuses_nothing_that_the_code_reads(key, value):
    content = changed(key, value)
    if not faults_by_code(content):
        CHECK.validate(content)


def beyond_schema(value: object) -> bool:
    """What JSON has no word for (NaN, 2.0 beside 2), or no bounds (a number as text)."""
    if isinstance(value, float):
        return not math.isfinite(value) or value == round(value)
    return isinstance(value, str) and any(letter.isdigit() for letter in value)


@given(st.sampled_from(list(LEAVES)), VALUES)
def test_the_schema_sees_every_fault_of_one_key(key, value):
    content = changed(key, value)
    rules_over_keys = {"value_error"}
    if faults_by_code(content) - rules_over_keys and not beyond_schema(value):
        assert not CHECK.is_valid(content)
