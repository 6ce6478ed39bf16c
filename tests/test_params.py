"""params.yaml is a contract: every fault is named, all at once, with what would be right."""

import math
from pathlib import Path

import pytest

from pipeline.config import load_params
from pipeline.errors import ParamsError
from pipeline.params.schema import Params
from tests.conftest import ROOT, merge, read_default_params, write_params


def faults_of(tmp_path: Path, *changes: dict) -> str:
    write_params(tmp_path, *changes)
    with pytest.raises(ParamsError) as error:
        load_params(tmp_path / "params.yaml", Params)
    return error.value.what


def test_the_default_file_is_valid():
    load_params(ROOT / "params.yaml", Params)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": {"margn": 0.1}}, "unknown key loss.margn (did you mean margin?)"),
        ({"los": {}}, "unknown key los (did you mean loss?)"),
        ({"loss": {"filter": {"sort": "off"}}}, "unknown key loss.filter.sort"),
        ({"loss": {"margin": "abc"}}, "loss.margin: input should be a valid number, got 'abc'"),
        ({"loss": {"margin": 4}}, "loss.margin: input should be less than 3.14"),
        ({"loss": {"margin": -0.1}}, "loss.margin: input should be greater than or equal to 0"),
        ({"loss": {"margin": math.nan}}, "loss.margin: input should be a finite number, got nan"),
        ({"loss": {"temperature": 0}}, "loss.temperature: input should be greater than 0"),
        (
            {"train": {"batch_size": 1}},
            "train.batch_size: input should be greater than or equal to 2",
        ),
        ({"train": {"batch_size": True}}, "train.batch_size: input should be a valid integer"),
        ({"train": {"steps": 2.5}}, "train.steps: input should be a valid integer"),
        ({"train": {"pair_every": "often"}}, "train.pair_every"),
        ({"train": {"objective": "clip"}}, "train.objective: input should be 'simcse', 'mcse'"),
        (
            {"loss": {"filter": {"kind": "cosine", "threshold": 50}}},
            "loss.filter: threshold must be from -1 to 1 for kind cosine",
        ),
    ],
)
def test_each_fault_names_key_and_reason(tmp_path, changes, words):
    assert words in faults_of(tmp_path, changes)


def test_all_faults_come_in_one_message(tmp_path):
    message = faults_of(
        tmp_path,
        {"loss": {"margin": 4, "mragin": 1}, "train": {"batch_size": 1}, "index": {"kind": 3}},
    )
    for key in ("loss.margin", "loss.mragin", "train.batch_size", "index.kind"):
        assert message.count(key + ":") + message.count(f"unknown key {key}") == 1


def test_a_missing_key_is_named(tmp_path):
    params = read_default_params()
    del params["loss"]["margin"]
    (tmp_path / "params.yaml").write_text(str(params).replace("None", "null"))
    with pytest.raises(ParamsError, match=r"loss\.margin is missing"):
        load_params(tmp_path / "params.yaml", Params)


@pytest.mark.parametrize("text", ["1e-5", "'1e-5'", "0.00001", "1.0E-05"])
def test_scientific_notation_is_the_number_it_is(tmp_path, text):
    default = (ROOT / "params.yaml").read_text()
    changed = default.replace("learning_rate: 1e-3", f"learning_rate: {text}")
    assert changed != default
    (tmp_path / "params.yaml").write_text(changed)
    params = load_params(tmp_path / "params.yaml", Params)
    assert params.train.learning_rate == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("loss: [", "cannot be read"),
        ("", "the file"),
        ("- 1", "the file"),
        ("loss: {margin: 1, margin: 2}", "cannot be read"),
        ("\x00", "cannot be read"),
    ],
)
def test_text_that_is_no_params_file(tmp_path, text, words):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ParamsError, match=words):
        load_params(tmp_path / "params.yaml", Params)


def test_a_missing_file_says_where_to_be(tmp_path):
    with pytest.raises(ParamsError, match="does not exist"):
        load_params(tmp_path / "params.yaml", Params)


def test_off_is_a_word_also_without_quotes(tmp_path):
    write_params(tmp_path, {"loss": {"filter": {"kind": "off"}}})
    text = (tmp_path / "params.yaml").read_text().replace("'off'", "off").replace('"off"', "off")
    (tmp_path / "params.yaml").write_text(text)
    assert load_params(tmp_path / "params.yaml", Params).loss.filter.kind == "off"


def test_every_field_says_what_it_is():
    def check(block) -> None:
        for name, field in block.model_fields.items():
            if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
                check(field.annotation)
            elif block is not Params:
                assert field.description, f"{block.__name__}.{name} has no docstring"

    check(Params)


def test_merge_keeps_what_is_not_changed():
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}
