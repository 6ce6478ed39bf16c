"""README and the other documents agree with the code."""

import functools
import importlib
import importlib.util
import re
import shlex
import subprocess

import pytest
import typer
from ruamel.yaml import YAML

from pipeline.download.scenes.demo.rebuild import WORLD
from pipeline.params.block import dotted, load_params
from pipeline.params.changes import apply_changes
from pipeline.params.schema import Params
from tests.conftest import ROOT, read_default_params, write_params

README = (ROOT / "README.md").read_text()
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "data/demo/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
DVC = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text())


def blocks_of(stage: dict) -> list[str]:
    return list(dict.fromkeys(param.split(".")[0] for param in stage["params"]))


def test_the_stage_table_is_dvc_yaml():
    rows = re.findall(
        r"^\| `(\w+)` \| (.+) \| (.+) \|$", README.split("## Stages")[1], re.MULTILINE
    )
    table = {name: (text, re.findall(r"`(\w+)`", params)) for name, text, params in rows}
    stages = DVC["stages"].items()
    wanted = {name: (stage["desc"], blocks_of(stage)) for name, stage in stages}
    assert {name: table[name] for name in wanted} == wanted
    assert list(table)[: len(wanted)] == list(wanted)


def test_a_stranger_finds_the_way_in_150_lines():
    assert len(README.splitlines()) <= 150
    titles = re.findall(r"^## (.+)$", README, re.MULTILINE)
    assert titles[:3] == ["Two commands", "What you just saw", "Your own data"]
    assert README.split("## ")[0].count("![") == README.count("![") == 1
    first = re.findall(r"^    (\S.*)$", README.split("## ")[1], re.MULTILINE)
    assert [line.split()[0] for line in first] == ["make", ".venv/bin/python"]
    for use in ("dvc repro", "dvc exp run -S loss.margin=0.2", "dvc metrics diff"):
        assert use in README


def long_options(stage: str) -> set[str]:
    command = typer.main.get_command(importlib.import_module(f"stages.{stage}").app)
    return {"--help", *(o for param in command.params for o in param.opts + param.secondary_opts)}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_and_options_that_are_shown_exist(page):
    text = page.read_text().replace("\\\n", " ")
    targets = re.findall(r"(?:^    |`)make ([a-z][a-z-]*)", text, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert {t for t in targets if not re.search(rf"^{t}:", makefile, re.MULTILINE)} == set()
    for module in re.findall(r"-m ((?:benchmarks|stages|tests)[\w.]*\w)", text):
        assert importlib.util.find_spec(module), module
    for stage, words in re.findall(r"-m stages\.([a-z]+)([^`\n#&|;]*)", text):
        shown = set(re.findall(r"(?<!\S)(--?[a-z][\w-]*)", words))
        assert shown <= long_options(stage), f"stages.{stage}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_params_files_and_links_of_a_page_exist(page):
    text = page.read_text()
    params = read_default_params()
    for key in re.findall(rf"(?:`|-S '?)((?:{'|'.join(params)})(?:\.[a-z_]+)+)[`:= ]", text):
        assert (
            functools.reduce(lambda block, name: block.get(name, {}), key.split("."), params) != {}
        ), key
    folders = "benchmarks|data/demo|docs|grids|pipeline|stages|tests"
    files = re.findall(rf"(?<![\w./-])((?:{folders})/[\w./-]+\.[a-z]+)\b", text)
    files = [name.replace("NAME", "ablations") for name in files]
    assert [name for name in files if not (ROOT / name).exists()] == []
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert [name for name in links if not (page.parent / name).exists()] == []


@pytest.mark.parametrize("command", re.findall(r"dvc exp run((?:.|\\\n)+?)\n\n", README))
def test_every_shown_override_is_a_valid_value(tmp_path, command):
    words = shlex.split(re.sub(r"#.*", "", command.replace("\\\n", " ")))
    changes = dict(word.split("=", 1) for word in words if "=" in word)
    assert changes
    assert changes.keys() <= dict(dotted(read_default_params())).keys()
    load = YAML(typ="safe", pure=True).load
    content = apply_changes(read_default_params(), {k: load(v) for k, v in changes.items()})
    write_params(tmp_path, content)
    load_params(tmp_path / "params.yaml", Params)


def test_make_help_lists_every_target():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    targets = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[
        1
    ].split()
    assert set(re.findall(r"make (\S+)", shown.stdout)) == set(targets)


def test_everything_imported_is_pinned_by_name_and_version():
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins), "name==version only"
    names = {re.sub(r"[-_.]+", "-", pin.split("==")[0]).lower() for pin in pins}
    project = (ROOT / "pyproject.toml").read_text()
    wanted = re.findall(r'^  "([\w.-]+?)(?:;.*)?",$', project.split("[tool.")[0], re.MULTILINE)
    assert "torch" in wanted
    assert {re.sub(r"[-_.]+", "-", name).lower() for name in wanted} <= names


def test_the_demo_world_is_that_of_params_yaml():
    assert read_default_params()["download"]["scenes"] == WORLD.model_dump()
