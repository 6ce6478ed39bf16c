"""README and the other documents agree with the code."""

import re
import shlex
import subprocess

import pytest
from ruamel.yaml import YAML

from pipeline.params.block import load_params
from pipeline.params.schema import Params
from tests.conftest import ROOT, merge, read_default_params, write_params

README = (ROOT / "README.md").read_text()
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


def test_the_four_uses_are_shown():
    for use in (
        "dvc repro",
        "dvc exp run -S loss.margin=0.2",
        "dvc metrics diff",
        'python -m stages.search "',
    ):
        assert use in README


@pytest.mark.parametrize("command", re.findall(r"dvc exp run((?:.|\\\n)+?)\n\n", README))
def test_every_shown_override_is_a_valid_value(tmp_path, command):
    words = shlex.split(re.sub(r"#.*", "", command.replace("\\\n", " ")))
    overrides = [word for word in words if "=" in word]
    assert overrides
    changes: dict = {}
    for override in overrides:
        path, value = override.split("=", 1)
        block: object = read_default_params()
        for key in path.split("."):
            assert key in block, path
            block = block[key]
        nested: object = YAML(typ="safe", pure=True).load(value)
        for key in reversed(path.split(".")):
            nested = {key: nested}
        changes = merge(changes, nested)
    write_params(tmp_path, changes)
    load_params(tmp_path / "params.yaml", Params)


def test_links_lead_somewhere():
    for document in [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        ROOT / "data/demo/README.md",
    ]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


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
    from pipeline.download.scenes.demo.rebuild import WORLD

    assert read_default_params()["download"]["scenes"] == WORLD.model_dump()
