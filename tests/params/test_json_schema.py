"""The JSON schema of params.yaml: complete, the one that is kept, never stricter than the code."""

import copy
import json
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.params.block import dotted
from pipeline.params.schema import Params
from tests.conftest import ROOT, invoke, merge, read_default_params

SCHEMA = json.loads((ROOT / "params.schema.json").read_text())
UNITS = re.compile(
    "batches|bytes|captions|cosine|dimensions|images|neighbours|no (other )?unit|pairs|passes|"
    "radians|rows|samples|sentences|share|steps|texts|threads|tokens"
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
        if "anyOf" in part or part.get("type") == "array":
            yield from kinds(part.get("items", part))
        else:
            yield part


def test_every_leaf_is_described_bounded_and_in_the_default_file():
    assert set(dict(dotted(read_default_params()))) == set(LEAVES)
    for key, field in LEAVES.items():
        description = field["description"].lower()
        assert len(description) > 10, key
        assert "\n" not in description, key
        for kind in kinds(field):
            match kind["type"]:
                case "integer" | "number":
                    low = kind.get("minimum", kind.get("exclusiveMinimum"))
                    high = kind.get("maximum", kind.get("exclusiveMaximum"))
                    assert -math.inf < low < high < math.inf, key
                    assert UNITS.search(description), key
                case "string":
                    assert {"enum", "const", "pattern", "maxLength"} & set(kind), key
                case other:
                    assert other in {"boolean", "null"}, key


def test_the_kept_file_is_what_the_command_prints(tmp_path):
    kept = (ROOT / "params.schema.json").read_text()
    assert invoke("schema").stdout == kept, "run `python -m stages.schema --out params.schema.json`"
    target = tmp_path / "deep" / "schema.json"
    result = invoke("schema", "--out", str(target))
    assert (result.exit_code, result.stdout) == (0, "")
    assert target.read_text() == kept


def test_the_schema_is_one_and_the_default_file_names_it_and_is_valid(schema):
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert all(one["additionalProperties"] is False for one in (SCHEMA, *SCHEMA["$defs"].values()))
    first = (ROOT / "params.yaml").read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=params.schema.json"
    schema.validate(read_default_params())


def changed(key: str, value: Any) -> dict:
    for part in reversed(key.split(".")):
        value = {part: value}
    return merge(read_default_params(), value)


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
def test_an_editor_sees_the_fault(key, value, schema):
    assert not schema.is_valid(changed(key, value))


@pytest.mark.parametrize("text", ["1e-5", "1.0E-05", ".5", "1", "+0.25"])
def test_the_text_of_a_number_is_one(text, schema):
    content = changed("train.learning_rate", text)
    assert Params.model_validate(content).train.learning_rate == pytest.approx(float(text))
    schema.validate(content)


@pytest.mark.parametrize("text", ["nan", "infinity", "1_0", " 1", "٣", "0x10"])
def test_text_that_only_python_takes_for_a_number_is_none(text, schema):
    content = changed("train.learning_rate", text)
    with pytest.raises(ValidationError):
        Params.model_validate(content)
    assert not schema.is_valid(content)


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


def beyond_schema(value: object) -> bool:
    """What JSON has no word for (NaN, 2.0 beside 2), or no bounds (a number as text)."""
    if isinstance(value, float):
        return not math.isfinite(value) or value == round(value)
    return isinstance(value, str) and any(letter.isdigit() for letter in value)


@given(key=st.sampled_from(list(LEAVES)), value=VALUES)
def test_schema_and_code_refuse_the_same_values_of_one_key(key, value, schema):
    content = changed(key, value)
    faults = faults_by_code(content)
    if not faults:
        schema.validate(content)
    elif faults - {"value_error"} and not beyond_schema(value):  # no rule over several keys
        assert not schema.is_valid(content)
