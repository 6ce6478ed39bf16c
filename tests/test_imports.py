"""The inner loops load no package that a machine with a GPU may lack."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

LACKING = [
    "accelerate",
    "datasets",
    "dvc",
    "faiss",
    "h5py",
    "open_clip",
    "pandas",
    "pyarrow",
    "requests",
    "rich",
    "ruamel",
    "scipy",
    "sentence_transformers",
    "sklearn",
    "typer",
]
"""What neither training nor encoding may need."""


def python(code: str, *lacking: str) -> subprocess.CompletedProcess:
    """Run code where importing some packages fails as if they were not installed."""
    block = f"import sys; sys.modules.update(dict.fromkeys({lacking!r}))"
    command = [sys.executable, "-c", f"{block}; {code}"]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize(
    ("module", "more"),
    [
        ("pipeline.train.loop", ["PIL", "torchvision"]),
        ("pipeline.train.checkpoint", ["PIL", "torchvision"]),
        ("pipeline.features.encode", []),
        ("pipeline.features.teacher", []),
    ],
)
def test_the_inner_loops_need_few_packages(module, more):
    done = python(f"import {module}", *LACKING, *more)
    assert done.returncode == 0, done.stderr


def test_the_packages_are_really_kept_away():
    done = python("import pipeline.features.store", *LACKING)
    assert "ModuleNotFoundError: import of h5py halted" in done.stderr
