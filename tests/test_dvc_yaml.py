"""dvc.yaml tells the truth: deps follow the imports, paths are the commands' own, docs agree."""

import ast
import inspect
import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.params.train import TrainParams
from stages.paths import KEPT
from tests.conftest import ROOT, read_default_params

DVC = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text())
STAGES = list(DVC["stages"])
BLOCKS = set(read_default_params())
CANNOT_CHANGE_BYTES = {
    "pipeline/__init__.py",
    "pipeline/core/progress.py",  # logs, and shows progress
    "pipeline/params/block.py",  # refuses values, never changes one
    "pipeline/core/errors.py",
    "pipeline/core/redact.py",  # shapes what is shown
    "pipeline/core/times.py",  # writes what DVC does not know
    "stages/__init__.py",
    "stages/_cli.py",
    "stages/_tables.py",  # prints
    "stages/paths.py",  # held against dvc.yaml below
}


def first_seed(entry: dict) -> dict:
    """A stage as DVC reads it for seed 0."""
    text = json.dumps(entry)
    for template in ("${item.seed}", "${train.seeds[0]}"):
        text = text.replace(template, "0")
    return json.loads(text)


def names_of(entries: list) -> set[str]:
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries}


def blocks_of(entry: dict) -> set[str]:
    """The blocks that a stage tracks, whole or by some of their keys."""
    return {param.split(".")[0] for param in entry["params"]}


def module_file(module: str) -> str | None:
    path = Path(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if (ROOT / candidate).is_file():
            return str(candidate)
    return None


def imports_of(file: str) -> set[str]:
    """Files of this project that one file imports, wherever in it the import stands."""
    found: set[str | None] = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            found |= {module_file(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(module_file(node.module))
            found |= {module_file(f"{node.module}.{alias.name}") for alias in node.names}
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{file}: relative import"
    return {file for file in found if file}


def reachable(file: str) -> set[str]:
    seen, todo = set(), {file}
    while todo:
        current = todo.pop()
        if current in seen or current in CANNOT_CHANGE_BYTES:
            continue
        if current.startswith("pipeline/params/"):
            continue  # blocks refuse values; the values themselves are tracked as params
        seen.add(current)
        todo |= imports_of(current)
    return {file for file in seen if not is_bare_init(file)}


def is_bare_init(file: str) -> bool:
    body = ast.parse((ROOT / file).read_text()).body
    return file.endswith("__init__.py") and all(isinstance(node, ast.Expr) for node in body)


def is_covered(path: str, entries: set[str]) -> bool:
    return any(path == entry or path.startswith(f"{entry}/") for entry in entries)


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_the_modules_that_a_stage_imports(stage):
    deps, used = names_of(DVC["stages"][stage]["deps"]), reachable(f"stages/{stage}.py")
    missing = {file for file in used if not is_covered(file, deps)}
    assert not missing, f"add to {stage}.deps in dvc.yaml: {sorted(missing)}"
    for dep in deps:
        if dep.startswith(("pipeline/", "stages/")):
            assert any(is_covered(file, {dep}) for file in used), f"{stage} does not import {dep}"


@pytest.mark.parametrize("stage", STAGES)
def test_paths_are_the_defaults_of_the_command(stage):
    """A path option of the command is a dep or output of the stage, and no output is forgotten."""
    entry = DVC["stages"][stage]
    assert entry["desc"].endswith(".")
    assert entry["cmd"].split(" --")[0] == f"python -m stages.{stage}"
    entry = first_seed(entry)
    made = names_of(entry["outs"] + entry.get("metrics", []))
    read = {dep for dep in names_of(entry["deps"]) if dep.startswith(("data/", "reports/"))}
    main = __import__(f"stages.{stage}", fromlist=["main"]).main
    defaults = {p.default for p in inspect.signature(main).parameters.values()}
    paths = {str(d) for d in defaults if isinstance(d, Path)} - {str(d) for d in KEPT.values()}
    paths |= {path for path in (*made, *read) if "/0" in path}  # defaults made from the seed
    beside_json = {"baselines": "baselines", "summary": "scores", "index": "index"}
    csv = {f"reports/{beside_json[stage]}.csv"} if stage in beside_json else set()
    assert made == {path for path in paths if path in made} | csv
    for path in paths - made:
        assert is_covered(path, read) or any(is_covered(dep, {path}) for dep in read), path


@pytest.mark.parametrize("stage", STAGES)
def test_every_params_block_a_stage_uses_is_tracked(stage):
    """The blocks that `read_params()` hands to the stage are exactly its params."""
    tree = ast.parse((ROOT / f"stages/{stage}.py").read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in BLOCKS and is_params(node.value)
    }
    identity_only = (
        {"teacher"} if stage in {"train", "evaluate", "index"} else set()
    )  # checked, see features.h5
    assert used - identity_only == blocks_of(DVC["stages"][stage])


def is_params(node: ast.expr) -> bool:
    called = isinstance(node, ast.Call) and ast.unparse(node.func) == "read_params"
    return called or ast.unparse(node) == "params"


def test_all_params_are_tracked_in_the_order_of_the_pipeline():
    assert STAGES == ["download", "features", "train", "baselines", "evaluate", "summary", "index"]
    assert set().union(*map(blocks_of, DVC["stages"].values())) == BLOCKS
    tracked = {param for param in DVC["stages"]["train"]["params"] if param.startswith("train.")}
    keys = set(TrainParams.model_fields) - {"seeds", "report_to"}  # these make no other student
    assert tracked == {f"train.{key}" for key in keys}
