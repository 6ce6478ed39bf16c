"""Presets: complete, valid, as documented; params.yaml keeps all else."""

import itertools
import json
import re
import resource
import subprocess
from pathlib import Path
from typing import Any, get_args

import open_clip
import pytest
from ruamel.yaml import YAML

from pipeline.params import presets
from pipeline.params.block import dotted, load_params
from pipeline.params.changes import apply_changes
from pipeline.params.presets import Data, Method, TeacherName, edit_params, read_preset
from pipeline.params.schema import Params
from tests.conftest import ROOT, assert_clear_error, invoke, read_default_params

TEXT = (ROOT / "params.yaml").read_text()
DOCS = (ROOT / "docs/presets.md").read_text()
load_yaml = YAML(typ="safe", pure=True).load
METHODS, DATA, TEACHERS = get_args(Method), get_args(Data), get_args(TeacherName)
ALL = list(itertools.product(DATA, METHODS))
PUBLISHED: dict[str, dict[str, Any]] = {
    "paper": {
        "teacher.model": "ViT-B-32", "train.objective": "kdmcse", "loss.margin": 0.125,
        "loss.margin_kind": "adaptive", "loss.text_margin": 0.0,
        "loss.filter.kind": "cosine", "loss.filter.drop": "above",
        "train.pairs.captions": "one", "train.pairs.unique_images": True,
    },
    "released": {
        "teacher.model": "ViT-L-14", "train.objective": "kdmcse", "loss.margin": 0.15,
        "loss.margin_kind": "adaptive", "loss.text_margin": 0.15,
        "loss.filter.kind": "none", "loss.filter.threshold": 0.8, "loss.gate": "margin",
        "train.pairs.captions": "all", "train.pairs.unique_images": False,
    },
    "mcse": {
        "train.objective": "mcse", "loss.margin_kind": "none", "loss.text_margin": 0.0,
        "loss.terms": ["image"], "loss.filter.kind": "none", "train.pairs.captions": "one",
    },
    "simcse": {"train.objective": "simcse", "loss.text_margin": 0.0, "loss.filter.kind": "none"},
}  # fmt: skip
PUBLISHED_BY_ALL = {
    "teacher.pretrained": "openai", "student.encoder": "bert-base-uncased",
    "student.pooling": "cls", "student.max_length": 32, "student.grounding_dim": 256,
    "loss.temperature": 0.05, "loss.grounding_weight": 0.01, "train.seeds": [0, 1, 2, 3, 4],
    "train.steps": None, "train.epochs": 3, "train.batch_size": 64, "train.learning_rate": 3e-5,
    "train.evaluate_every": 125,
}  # fmt: skip


def values_of(text: str) -> dict[str, Any]:
    """All values of a params file by dotted key, in their order, read by the plain loader."""
    return dict(dotted(load_yaml(text)))


def owned() -> list[str]:
    blocks = ("teacher.", "student.", "loss.", "train.")
    corpora = {"download.pairs", "download.text", "download.evaluation"}
    return [key for key in values_of(TEXT) if key.startswith(blocks) or key in corpora]


@pytest.fixture
def params(tmp_path, monkeypatch) -> Path:
    """A params.yaml in the current folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "params.yaml"
    path.write_text(TEXT)
    return path


def run(*arguments: str):
    result = invoke("preset", *arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def test_presets_are_named_complete_and_valid(schema):
    content = load_yaml(presets.FILE.read_text())
    assert (list(content["methods"]), list(content["data"])) == ([*METHODS], [*DATA])
    assert list(content["teachers"]) == [*TEACHERS]
    for data, method in ALL:
        preset = read_preset(data, method)
        assert sorted(preset) == sorted(owned()), (data, method)
        schema.validate(apply_changes(read_default_params(), preset))


@pytest.mark.slow
def test_every_combination_is_written_valid_and_whole_and_leads_back(params):
    for data, method in ALL:
        run(data, method, "--write")
        load_params(params, Params)
        written, before = values_of(params.read_text()), values_of(TEXT)
        assert list(written) == list(before)
        assert written == {**before, **read_preset(data, method)}
        run("demo", "best", "--write")
        assert params.read_text() == TEXT, (data, method)


@pytest.mark.parametrize("method", PUBLISHED)
def test_published_settings(method):
    for data in ("flickr8k", "flickr30k", "coco"):
        preset = read_preset(data, method)
        wanted = {"download.pairs": data, **PUBLISHED_BY_ALL, **PUBLISHED[method]}
        assert {key: preset[key] for key in wanted} == wanted


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_is_one_of_open_clip_and_replaces_the_preset_s_own_alone(params, name):
    keys, known = ["teacher.model", "teacher.pretrained"], open_clip.list_pretrained()
    for data, method in ALL:
        own, other = read_preset(data, method), read_preset(data, method, name)
        assert {key for key in own if own[key] != other[key]} <= {*keys}
        assert tuple(other[key] for key in keys) in known
        assert data == "demo" or own["teacher.pretrained"] == "openai"
    command, words = ("coco", "paper", "--teacher", name), f"coco paper with {name}"
    assert f"{words} now" in run(*command, "--write").stderr
    wanted = values_of(TEXT) | read_preset("coco", "paper", name)
    assert values_of(params.read_text()) == wanted
    assert f"{words} already" in run(*command).stderr


@pytest.mark.parametrize("method", METHODS)
def test_the_demo_keeps_its_models_and_their_learning_rate(method):
    preset, default = read_preset("demo", method), values_of(TEXT)
    for key in ("teacher.model", "teacher.pretrained", "student.encoder"):
        assert preset[key] == default[key], key
    rate = default["train.learning_rate"] if method == "best" else 1e-3
    assert preset["train.learning_rate"] == rate
    assert preset["download.pairs"] == preset["download.text"] == "scenes"


def assert_only_values_change(before: str, after: str, changed: dict[str, Any]) -> None:
    """A line without a changed key is the same, any other has its key and comment still."""
    old = values_of(before)
    names = {key.split(".")[-1] for key, value in changed.items() if old[key] != value}
    assert names
    for line, new in zip(before.splitlines(), after.splitlines(), strict=True):
        key = re.match(r" *(\w+):", line)
        if not (key and key[1] in names):
            assert new == line
            continue
        assert new.startswith(key[0])
        assert new.partition("#")[2] == line.partition("#")[2]


def test_only_values_change_and_comments_keep_their_column_where_there_is_room():
    for data, method in ALL:
        if (data, method) != ("demo", "best"):
            changed = read_preset(data, method)
            assert_only_values_change(TEXT, edit_params(TEXT, changed), changed)
    after = edit_params(TEXT, {"loss.margin": 0.125, "train.steps": 5, "index.kind": "x" * 40})
    column = next(line for line in TEXT.splitlines() if "pairs: scenes" in line).index("#")
    lines = {line.split(":")[0].strip(): line for line in after.splitlines()}
    assert lines["margin"].index("#") == lines["steps"].index("#") == column
    assert f"{'x' * 40} # auto (the cheapest" in after


def test_what_a_preset_owns_is_written_anew_and_all_else_stays(params):
    mine = {"download.scenes.images": 4321, "evaluate.tasks": ["sts"], "index.batch_size": 9}
    old = {
        "loss.filter.kind": "dot",
        "loss.filter.threshold": 70,
        "student.matryoshka": [64, 32],
        "train.steps": 5,
        "train.pairs.hard_negatives": 3,
    }
    params.write_text(edit_params(TEXT, mine | old))
    run("coco", "mcse", "--write")
    assert values_of(params.read_text()) == values_of(TEXT) | read_preset("coco", "mcse") | mine


def test_a_user_file_keeps_its_layout_quotes_and_order(params):
    first, *blocks = re.split(r"\n\n(?=\w)", TEXT)
    mine = "\n\n".join([first, *reversed(blocks)]).rstrip() + "  # the end\n"
    mine = re.sub("^( +)", r"\1\1", mine, flags=re.MULTILINE)  # blocks indented by four
    mine = mine.replace("encoder: data/demo/student ", "encoder: 'my/own' # mine ")
    mine = mine.replace("kind: auto ", "# measured\n    kind: 'auto' ").replace(
        "seed: 1111", "seed: 1"
    )
    params.write_text(mine)
    run("coco", "released", "--write")
    after = params.read_text()
    assert list(values_of(after)) == list(values_of(mine)) != list(values_of(TEXT))
    assert_only_values_change(mine, after, read_preset("coco", "released"))
    assert "encoder: 'bert-base-uncased' # mine" in after


@pytest.mark.parametrize(
    "several",
    [
        "  seeds:\n  - 3\n  - 4  # the last\n\n  # how many",
        "  seeds:\n      - 3\n      # of these\n      - 4      # the last\n\n  # how many",
        "  seeds: [3,\n    4] # the last\n\n  # how many",
    ],
)
def test_what_stands_below_a_list_of_several_lines_stays(params, several):
    line = next(line for line in TEXT.splitlines() if line.startswith("  seeds:"))
    params.write_text(TEXT.replace(line, several))
    run("flickr8k", "paper", "--write")
    after = params.read_text()
    assert re.search(r"\n  seeds: \[0, 1, 2, 3, 4\] +# the last\n\n  # how many\n  steps: ", after)
    assert values_of(after)["train.seeds"] == [0, 1, 2, 3, 4]


LOSS = TEXT[TEXT.index("loss:\n") : TEXT.index("\ntrain:")]


@pytest.mark.parametrize(
    ("old", "mine"),
    [
        (LOSS, f"loss: {json.dumps(load_yaml(LOSS)['loss'])}\n"),
        (
            re.search("  margin: .*\n(.*\n)*?  text_margin: .*", TEXT)[0],
            "  margin: &m 0.15\n  margin_kind: adaptive\n  gate: margin\n  text_margin: *m",
        ),
        ("  encoder: data/demo/student", "  encoder: >-\n    data/demo/student\n   "),
        ("  epochs: 1 ", "  epochs : 1 "),
    ],
)
def test_values_that_are_written_in_unusual_ways_are_changed_too(params, old, mine):
    text = TEXT.replace(old, mine)
    assert text != TEXT
    params.write_text(text)
    run("coco", "paper", "--write")
    assert values_of(params.read_text()) == {**values_of(text), **read_preset("coco", "paper")}
    load_params(params, Params)


def test_equal_in_meaning_is_no_change(params):
    mine = TEXT.replace("learning_rate: 1e-3", "learning_rate: '0.001'")
    mine = mine.replace("threshold: 0.9", "threshold: 9.0e-1")
    for text in (TEXT, mine):
        params.write_text(text)
        result = run("demo", "best", "--write")
        assert result.stdout == ""
        assert "nothing changes" in result.stderr
        assert params.read_text() == text


def test_without_write_a_diff_is_shown_that_makes_the_file(params):
    result = run("flickr30k", "paper")
    assert params.read_text() == TEXT
    assert "--write" in result.stderr
    patch = ["git", "apply", "-p0", "--whitespace=nowarn", "-"]
    subprocess.run(patch, input=result.stdout, text=True, check=True, cwd=params.parent)
    by_patch = params.read_text()
    params.write_text(TEXT)
    written = run("flickr30k", "paper", "--write")
    assert written.stdout == result.stdout
    assert params.read_text() == by_patch != TEXT
    assert list(params.parent.iterdir()) == [params]


def test_json_has_old_and_new_of_what_changes(params):
    result = run("flickr30k", "released", "--json")
    assert params.read_text() == TEXT
    changes = json.loads(result.stdout)
    old, new = values_of(TEXT), {**values_of(TEXT), **read_preset("flickr30k", "released")}
    assert changes == {key: [old[key], new[key]] for key in old if old[key] != new[key]}
    assert changes["train.learning_rate"] == [0.002, 3e-5]
    run("flickr30k", "released", "--json", "--write")
    assert values_of(params.read_text()) == new
    assert json.loads(run("flickr30k", "released", "--json").stdout) == {}


def test_a_broken_file_gets_one_message_and_is_left_alone(params):
    broken = TEXT.replace("margin: 0.15", "margn: 0.15").replace("epochs: 1 ", "epochs: 0 ")
    params.write_text(broken)
    result = invoke("preset", "coco", "paper", "--write")
    assert_clear_error(result, "did you mean margin", "train.epochs")
    assert params.read_text() == broken
    params.unlink()
    assert_clear_error(invoke("preset", "coco", "paper"), "params.yaml does not exist")


def test_a_full_disk_leaves_the_file_as_it_was(params):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        result = invoke("preset", "coco", "paper", "--write")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_clear_error(result, "params.yaml could not be written")
    assert params.read_text() == TEXT
    assert list(params.parent.iterdir()) == [params]


@pytest.mark.parametrize("names", ["cc12m paper", "coco papper", "coco", "coco paper --teacher x"])
def test_an_unknown_name_is_a_usage_error(params, names):
    assert invoke("preset", *names.split(), "--write").exit_code == 2
    assert params.read_text() == TEXT


def table(heading: str) -> dict[str, dict[str, Any]]:
    """A table of the docs: values by column and key; empty cells are left out."""
    section = DOCS.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.+) \|$", section, re.MULTILINE)
    head, *body = [[cell.strip() for cell in row.split("|")] for row in rows]
    return {
        name: {row[0].strip("`"): load_yaml(row[place].strip("`")) for row in body if row[place]}
        for place, name in enumerate(head[1:], start=1)
    }


def test_tables_and_overrides_of_the_docs_are_the_data():
    content = load_yaml(presets.FILE.read_text())
    methods = {name: {**content["shared"], **own} for name, own in content["methods"].items()}
    assert table("Methods") == methods
    assert table("Data sets") == content["data"]
    assert table("Teachers") == content["teachers"]
    lines = [line for line in DOCS.splitlines() if "-S " in line]
    assert len(lines) > 3
    for line in lines:
        changes = {k: load_yaml(v) for k, v in re.findall(r"-S '?([\w.]+)=([^\s'`]+)", line)}
        assert changes
        assert set(changes) <= set(owned()), line
        Params.model_validate(load_yaml(edit_params(TEXT, changes)))
