"""What a run's key takes of the code: all that training imports, and nothing that only reads."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from pipeline.train import checkpoint
from pipeline.train.checkpoint import run_fingerprint
from pipeline.train.code import hash_code
from tests.conftest import ROOT
from tests.train.test_loop import data as data  # noqa: PLC0414  # the fixture
from tests.train.test_loop import run_params

ROOTS = ("pipeline.train.loop", "pipeline.evaluate.selection")


@pytest.fixture
def package(tmp_path) -> Path:
    """A copy of the project's code that a test may change."""
    return shutil.copytree(ROOT / "pipeline", tmp_path / "pipeline")


def replace(file: Path, old: str, new: str) -> None:
    before = file.read_text()
    assert before.count(old) == 1
    file.write_text(before.replace(old, new))


CHANGES_NOTHING = {
    "code of the page": ("search/app/service.py", "from pathlib", "import this\nfrom pathlib"),
    "code of another stage": ("index/build.py", "from pathlib", "import this\nfrom pathlib"),
    "what only a type checker reads": ("download/records.py", "import itertools", "import this"),
    "a table drawn after training": ("train/diagnostics.py", "_BINS = 100", "_BINS = 50"),
    "a comment": ("train/losses.py", "    if keep is not None:", "    if keep is not None:  # !"),
    "a docstring": ("train/losses.py", "cos(theta - shift), from cos(theta).", "Other words."),
    "an attribute's docstring": ("train/losses.py", "Floor of sin^2", "The least sin^2"),
}
CHANGES_THE_RUN = {
    "the loss": ("train/losses.py", "_EPS = 1e-8", "_EPS = 1e-7"),
    "what the loop imports": ("train/dropout.py", "import torch\n", "import torch\nimport this\n"),
    "what that imports": ("student/encoder.py", "def pool(", "import this\n\n\ndef pool("),
    "the selection": ("evaluate/correlation.py", "import numpy", "import this\nimport numpy"),
    "a package": ("train/__init__.py", '."""', '."""\nimport this'),
}


@pytest.mark.parametrize("change", CHANGES_NOTHING)
def test_what_does_not_train_leaves_the_key(package, change):
    before = hash_code(package, *ROOTS)
    file, old, new = CHANGES_NOTHING[change]
    replace(package / file, old, new)
    assert hash_code(package, *ROOTS) == before


@pytest.mark.parametrize("change", CHANGES_THE_RUN)
def test_what_trains_changes_the_key(package, change):
    before = hash_code(package, *ROOTS)
    file, old, new = CHANGES_THE_RUN[change]
    replace(package / file, old, new)
    assert hash_code(package, *ROOTS) != before


def test_a_run_goes_on_after_a_change_of_the_page_and_not_of_the_loss(data, package, monkeypatch):
    monkeypatch.setattr(checkpoint, "_PACKAGE", package)
    dev = pd.DataFrame({"sentence1": ["a"], "score": [1.0]})
    before = run_fingerprint(data, run_params(), 0, dev)
    for file, old, new in CHANGES_NOTHING.values():
        replace(package / file, old, new)
    assert run_fingerprint(data, run_params(), 0, dev) == before
    replace(package / "train/losses.py", "_EPS = 1e-8", "_EPS = 1e-7")
    assert run_fingerprint(data, run_params(), 0, dev) != before


@pytest.mark.slow
def test_every_module_that_python_loads_for_training_is_in_the_key(package):
    """What an interpreter has loaded in the end, against what was found in the source."""
    program = f"import json, sys; import {', '.join(ROOTS)}; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=package.parent,
        env=os.environ | {"PYTHONPATH": str(package.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = [name for name in json.loads(run.stdout) if name.startswith("pipeline.")]
    assert {"pipeline.train.losses", "pipeline.student.encoder", "pipeline.core.device"} <= set(
        loaded
    )
    for name in loaded:
        path = package.parent.joinpath(*name.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        before, content = hash_code(package, *ROOTS), file.read_text()
        file.write_text(content + "\nADDED = 1\n")
        assert hash_code(package, *ROOTS) != before, name
        file.write_text(content)
