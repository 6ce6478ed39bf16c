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
from pipeline.params.yaml import LARGEST
from tests.conftest import ROOT, merge, read_default_params, write_params


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
    (tmp_path / "params.yaml").write_text("block: {old: 1, new: 2}")
    with pytest.raises(ParamsError) as error:
        load_params(tmp_path / "params.yaml", Outer)
    assert f"unknown key block.old ({hint})" in error.value.what


def test_renamed_keys_lead_to_keys_that_exist():
    known = dict(dotted(read_default_params()))
    for old, new in RENAMED.items():
        assert old not in known
        assert new in known
    assert not set(REMOVED) & set(known)


@pytest.mark.parametrize("key", ["loss.margin", "teacher.pretrained", "download.hub", "train"])
def test_a_missing_key_is_named_although_blocks_have_defaults(tmp_path, key):
    params = read_default_params()
    *blocks, name = key.split(".")
    del functools.reduce(operator.getitem, blocks, params)[name]
    (tmp_path / "params.yaml").write_text(json.dumps(params))
    with pytest.raises(ParamsError) as error:
        load_params(tmp_path / "params.yaml", Params)
    assert error.value.what.endswith(f"params.yaml: {key} is missing.")


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
        ("[" * 100_000, "it is nested too deep"),
        ("- " * 100_000, "it is nested too deep"),
        ("#" * (LARGEST + 1), "is larger than 262,144 bytes"),
        (
            "loss: " + "9" * 5000,
            "line 1, column 7: write numbers without _ and in at most 100 digits",
        ),
        ("loss: 0x" + "f" * 5000, "in at most 100 digits"),
        ("loss: 1_000", "write numbers without _"),
    ],
)
def test_text_that_is_not_a_params_file(tmp_path, text, words):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ParamsError) as error:
        load_params(tmp_path / "params.yaml", Params)
    assert words in error.value.what
    assert error.value.what.isprintable()


def test_few_words_that_stand_for_a_billion_are_refused_at_once(tmp_path):
    lines = ["a0: &a0 [" + ",".join("x" * 10) + "]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    (tmp_path / "params.yaml").write_text("\n".join(lines))
    started = time.monotonic()
    with pytest.raises(ParamsError, match="stands for more than 100,000 values"):
        load_params(tmp_path / "params.yaml", Params)
    assert time.monotonic() - started < 5


def test_an_alias_stands_for_its_value(tmp_path):
    default = (ROOT / "params.yaml").read_text()
    changed = default.replace("margin: 0.15 ", "margin: &m 0.25 ").replace(
        "text_margin: 0.0", "text_margin: *m"
    )
    (tmp_path / "params.yaml").write_text(changed)
    loss = load_params(tmp_path / "params.yaml", Params).loss
    assert (loss.margin, loss.text_margin) == (0.25, 0.25)


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_text_of_another_encoding(tmp_path, encoding):
    (tmp_path / "params.yaml").write_bytes("loss: \xe9".encode(encoding))
    with pytest.raises(ParamsError, match=r"byte \d is not UTF-8"):
        load_params(tmp_path / "params.yaml", Params)


def test_a_byte_order_mark_is_read_over(tmp_path):
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text(), encoding="utf-8-sig")
    assert load_params(tmp_path / "params.yaml", Params) == load_params(
        ROOT / "params.yaml", Params
    )


def test_a_folder_is_not_a_params_file(tmp_path):
    with pytest.raises(ResourceError, match=r"cannot be read: is a directory\."):
        load_params(tmp_path, Params)


def test_many_faults_are_cut_short(tmp_path):
    seeds = [-seed for seed in range(1, 1000)]
    assert faults_of(tmp_path, {"train": {"seeds": seeds}}).endswith("; and 959 more.")


@pytest.mark.parametrize("key", ["\x1b[31m", "two\nlines", "\u202e", "a" * 10_000])
def test_a_key_that_is_no_word_leaves_one_short_line(tmp_path, key):
    message = faults_of(tmp_path, {"loss": {key: 1, "margin": key}})
    assert message.isprintable()
    assert len(message) < 500


def test_a_missing_file_says_where_to_be(tmp_path):
    with pytest.raises(ParamsError, match="does not exist"):
        load_params(tmp_path / "params.yaml", Params)


def test_off_is_a_word_also_without_quotes(tmp_path):
    write_params(tmp_path, {"loss": {"filter": {"kind": "off"}}})
    text = (tmp_path / "params.yaml").read_text().replace("'off'", "off").replace('"off"', "off")
    (tmp_path / "params.yaml").write_text(text)
    assert load_params(tmp_path / "params.yaml", Params).loss.filter.kind == "off"


def test_merge_keeps_what_is_not_changed():
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}
