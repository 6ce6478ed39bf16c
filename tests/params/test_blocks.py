"""params.yaml is a contract: every fault is named, all at once, with what would be right."""

import functools
import json
import math
import operator
import time
from pathlib import Path

import pytest

from pipeline.core.errors import ParamsError, ResourceError
from pipeline.params.block import REMOVED, RENAMED, Block, dotted, load_params
from pipeline.params.schema import Params
from tests.conftest import ROOT, read_default_params, write_params

DEFAULT = (ROOT / "params.yaml").read_text()


def read(tmp_path: Path, content: str | bytes, schema: type = Params) -> Params:
    path = tmp_path / "params.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_params(path, schema)


def faults_of(tmp_path: Path, *changes: dict) -> str:
    write_params(tmp_path, *changes)
    with pytest.raises(ParamsError) as error:
        load_params(tmp_path / "params.yaml", Params)
    return error.value.what


def test_the_defaults_of_the_blocks_are_those_of_the_default_file():
    assert load_params(ROOT / "params.yaml", Params) == Params()


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
        (
            {"train": {"objective": "kdmsce"}},
            "'simcse', 'mcse' or 'kdmcse', got 'kdmsce' (did you mean kdmcse?)",
        ),
        ({"student": {"encoder": "a\0b"}}, "student.encoder: input should be text without NUL"),
        ({"train": 3}, "train: input should be keys with values, got 3"),
        ({"train": {"objective": "clip"}}, "train.objective: input should be 'simcse', 'mcse'"),
        (
            {"loss": {"filter": {"kind": "cosine", "threshold": 50}}},
            "loss.filter: threshold must be from -1 to 1 for kind cosine",
        ),
        (
            {"download": {"text": "none"}, "train": {"pair_every": 2}},
            "download.text none has no text-only steps; set train.pair_every to 1",
        ),
        (
            {"download": {"text": "none"}, "index": {"items": ["sentences"]}},
            "download.text none has no sentences; take them out of index.items",
        ),
        (
            {"download": {"folder": {"separator": "::"}}},
            "download.folder.separator: separator must be one character",
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


class Inner(Block):
    new: int


class Outer(Block):
    block: Inner


@pytest.mark.parametrize(
    ("table", "value", "hint"),
    [
        (RENAMED, "block.new", "did you mean block.new? It was renamed"),
        (REMOVED, "nobody needs it", "it was removed: nobody needs it"),
    ],
)
def test_a_key_that_is_gone_says_what_became_of_it(tmp_path, monkeypatch, table, value, hint):
    monkeypatch.setitem(table, "block.old", value)
    with pytest.raises(ParamsError) as error:
        read(tmp_path, "block: {old: 1, new: 2}", Outer)
    assert f"unknown key block.old ({hint})" in error.value.what


def test_renamed_keys_lead_to_keys_that_exist():
    known = set(dict(dotted(read_default_params())))
    assert set(RENAMED.values()) <= known
    assert not {*RENAMED, *REMOVED} & known


@pytest.mark.parametrize("key", ["loss.margin", "teacher.pretrained", "download.hub", "train"])
def test_a_missing_key_is_named_although_blocks_have_defaults(tmp_path, key):
    params = read_default_params()
    *blocks, name = key.split(".")
    del functools.reduce(operator.getitem, blocks, params)[name]
    with pytest.raises(ParamsError) as error:
        read(tmp_path, json.dumps(params))
    assert error.value.what.endswith(f"params.yaml: {key} is missing.")


@pytest.mark.parametrize(
    ("old", "new", "key", "value"),
    [
        ("learning_rate: 2e-3", "learning_rate: 1e-5", "train.learning_rate", 1e-5),
        ("learning_rate: 2e-3", "learning_rate: '1e-5'", "train.learning_rate", 1e-5),
        ("learning_rate: 2e-3", "learning_rate: 1.0E-05", "train.learning_rate", 1e-5),
        ("text_margin: 0.0", "text_margin: *m", "loss.text_margin", 0.15),
        ("# yaml-language", "\ufeff# yaml-language", "loss.margin", 0.15),
        ("kind: none ", "kind: 'none' ", "loss.filter.kind", "none"),
        ("kind: none ", "kind: none  ", "loss.filter.kind", "none"),
    ],
)
def test_ways_to_write_a_value(tmp_path, old, new, key, value):
    text = DEFAULT.replace(" margin: 0.15 ", " margin: &m 0.15 ")
    assert old in text
    text = text.replace(old, new)
    assert dict(dotted(read(tmp_path, text).model_dump()))[key] == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("loss: [", "line 1, column 8: expected the node content"),
        ("", "the file is empty"),
        ("# nothing", "the file is empty"),
        ("- 1", "the file: input should be keys with values, got [1]"),
        ("loss: {margin: 1, margin: 2}", 'line 1, column 19: found duplicate key "margin"'),
        ("\x00", "unacceptable character #x0000"),
        ("a: \x1b", "unacceptable character #x001b"),
        ("loss:\n\tmargin: 1", "line 2, column 1: found character '\\t'"),
        ("1: 2", "a key is 1, which is not text"),
        ("? [a]\n: 2", "a key is ('a',), which is not text"),
        ("? {a: 1}\n: 2", "line 1, column 3: found unhashable key"),
        ("!!python/object/apply:os.abort []", "python/object/apply:os.abort'"),
        ("loss: 2001-99-01", "month must be in 1..12"),
        ('loss: "\\U00110000"', "chr() arg not in range"),
        ("loss: 1\n---\nloss: 2", "found another document"),
        ("loss: *there", "found undefined alias 'there'"),
        ("loss: &here [*here]", "it stands for more than 100,000 values"),
        ("loss: [&here 1, &here 2]", "found duplicate anchor 'here'"),
        ("[" * 1_000, "it is nested too deep"),
        ("- " * 1_000, "it is nested too deep"),
        ("#" * 262_145, "is larger than 262,144 bytes"),
        ("loss: \xe9".encode("utf-16"), "byte 0 is not UTF-8"),
        ("loss: \xe9".encode("latin-1"), "byte 6 is not UTF-8"),
        (
            "\n".join(
                ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
                + [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
            ),  # few words that stand for a billion
            "stands for more than 100,000 values",
        ),
        (
            "loss: " + "9" * 5000,
            "line 1, column 7: write numbers without _ and in at most 100 digits",
        ),
        ("loss: 0x" + "f" * 5000, "in at most 100 digits"),
        ("loss: 1_000", "write numbers without _"),
        ("%YAML 1.1\n---\nloss: 2e-3", "it declares YAML 1.1, and is read as YAML 1.2"),
        ("%YAML 1.3\n---\nloss: 2e-3", "version minor part can only be 2 or 1"),
    ],
)
def test_text_that_is_not_a_params_file(tmp_path, text, words):
    started = time.monotonic()
    with pytest.raises(ParamsError) as error:
        read(tmp_path, text)
    assert words in error.value.what
    assert error.value.what.isprintable()
    assert time.monotonic() - started < 5


def test_what_is_not_a_file_of_params(tmp_path):
    with pytest.raises(ResourceError, match=r"cannot be read: is a directory\."):
        load_params(tmp_path, Params)
    with pytest.raises(ParamsError, match="does not exist"):
        load_params(tmp_path / "params.yaml", Params)


def test_many_faults_are_cut_short(tmp_path):
    seeds = [-seed for seed in range(1, 100)]
    assert faults_of(tmp_path, {"train": {"seeds": seeds}}).endswith("; and 59 more.")


@pytest.mark.parametrize("key", ["\x1b[31m", "two\nlines", "\u202e", "a" * 10_000])
def test_a_key_that_is_no_word_leaves_one_short_line(tmp_path, key):
    message = faults_of(tmp_path, {"loss": {key: 1, "margin": key}})
    assert message.isprintable()
    assert len(message) < 500
