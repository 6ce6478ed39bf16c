"""The inner loops load no package that a machine with a GPU may lack."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pipeline
from tests.conftest import ROOT

LACKING = [
    "accelerate", "datasets", "dvc", "faiss", "h5py", "open_clip", "pandas", "pyarrow", "requests",
    "rich", "ruamel", "scipy", "sentence_transformers", "sklearn", "typer",
]  # fmt: skip
"""What neither training nor encoding may need."""


def python(code: str, *lacking: str) -> subprocess.CompletedProcess:
    """Run code where importing some packages fails as if they were not installed."""
    block = f"import sys; sys.modules.update(dict.fromkeys({lacking!r}))"
    command = [sys.executable, "-c", f"{block}; {code}"]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize(
    ("modules", "more"),
    [
        ("pipeline.train.loop, pipeline.train.checkpoint", ["PIL", "torchvision"]),
        ("pipeline.features.encode, pipeline.features.teacher", []),
    ],
)
@pytest.mark.integration
def test_the_inner_loops_need_few_packages(modules, more):
    done = python(
        f"import {modules}; print('all'); import pipeline.features.store", *LACKING, *more
    )
    assert done.stdout == "all\n", done.stderr
    assert "ModuleNotFoundError: import of h5py halted" in done.stderr  # they are kept away


def test_importing_the_package_imports_no_room():
    code = "import sys, pipeline; print([m for m in sys.modules if m.startswith('pipeline.')])"
    assert python(code).stdout == "[]\n"


BASE = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


def imported_at_once(module: str) -> set[str]:
    """Modules that importing one imports; what functions import waits until they are called."""
    source = ROOT / Path(*module.split("."))
    path = source / "__init__.py" if source.is_dir() else source.with_suffix(".py")
    found: set[str] = set()
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
        is_later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if not is_later and not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node)):
            todo += ast.iter_child_nodes(node)
    return found


@pytest.mark.parametrize("name", pipeline.__all__)
@pytest.mark.integration
def test_a_public_name_needs_the_base_dependencies_alone(name):
    base = {re.split("[^a-z0-9-]", re.sub(r"[-_.]+", "-", one.lower()))[0] for one in BASE}
    provided = importlib.metadata.packages_distributions()
    module = getattr(pipeline, name).__module__
    seen, todo, others = set(), {module}, set()
    while todo:
        seen |= todo
        found = set().union(*map(imported_at_once, todo))
        ours = {one for one in found if one.split(".")[0] == "pipeline"}
        others |= {one.split(".")[0] for one in found - ours} - sys.stdlib_module_names
        todo = ours - seen
    assert others or module == "pipeline.core.errors"
    lacking = {
        one
        for one in others
        if not base & {re.sub(r"[-_.]+", "-", by.lower()) for by in provided.get(one, [one])}
    }
    assert not lacking, f"{module} imports {sorted(lacking)}, which only an extra installs"
