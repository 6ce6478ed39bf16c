"""What a run's key takes of the code: all that training imports, and nothing that only reads."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.train.code import hash_code
from tests.conftest import ROOT

ROOTS = ("pipeline.train.loop", "pipeline.evaluate.selection")


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A copy of the project's code; who changes it changes it back."""
    return shutil.copytree(ROOT / "pipeline", tmp_path_factory.mktemp("code") / "pipeline")


@contextlib.contextmanager
def changed(file: Path, content: str) -> Iterator[None]:
    before = file.read_text()
    file.write_text(content)
    yield
    file.write_text(before)


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


@pytest.mark.slow
def test_what_trains_changes_the_key_and_nothing_else_does(package):
    before = hash_code(package, *ROOTS)
    for name, (file, old, new) in (CHANGES_NOTHING | CHANGES_THE_RUN).items():
        content = (package / file).read_text()
        assert content.count(old) == 1, name
        with changed(package / file, content.replace(old, new)):
            assert (hash_code(package, *ROOTS) == before) == (name in CHANGES_NOTHING), name


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
    before = hash_code(package, *ROOTS)
    for name in loaded:
        path = package.parent.joinpath(*name.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        with changed(file, file.read_text() + "\nADDED = 1\n"):
            assert hash_code(package, *ROOTS) != before, name
