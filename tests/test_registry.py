"""A project pushed to a DVC remote: pulled with every type of link, and its artifacts by name."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

from tests.conftest import ROOT

BIN = Path(sys.executable).parent
OUTPUTS = ("pairs", "text", "evaluation", "features.h5", "models", "index")
IS_LINK = {
    "copy": lambda path: not path.is_symlink() and path.stat().st_nlink == 1,
    "hardlink": lambda path: path.stat().st_nlink > 1,
    "symlink": Path.is_symlink,
    "reflink,copy": lambda path: not path.is_symlink() and path.stat().st_nlink == 1,
}
pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(900)]


def run(folder: Path, *command: str) -> str:
    own = {
        "DVC_NO_ANALYTICS": "1",
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        **{
            f"GIT_{who}_{what}": "x@y.z"
            for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        },
    }
    done = subprocess.run(
        command, cwd=folder, env=os.environ | own, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def origin(tiny_run, tmp_path_factory) -> Path:
    """A git repository whose outputs are in a remote only: neither here nor in its cache."""
    folder = tmp_path_factory.mktemp("registry") / "origin"
    shutil.copytree(tiny_run, folder)
    ignored = shutil.ignore_patterns("*.pyc", "__pycache__")
    for name in ("pipeline", "stages", "data/demo"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("dvc.yaml", ".gitignore", "data/.gitignore"):
        shutil.copy(ROOT / name, folder / name)
    run(folder, "git", "init", "-q")
    run(folder, "dvc", "init", "-q")
    shutil.copy(ROOT / ".dvcignore", folder)  # bytecode is not a dependency
    run(folder, "dvc", "remote", "add", "-d", "shelf", "../shelf")
    run(folder, "dvc", "commit", "-f", "-q")
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-qm", "all")
    for artifact in ("student", "index"):
        run(folder, "git", "tag", "-a", f"{artifact}@v1.0.0", "-m", artifact)  # not a light one
    run(folder, "dvc", "push", "-q")
    shutil.rmtree(folder / ".dvc/cache")
    for name in OUTPUTS:
        path = folder / "data" / name
        path.unlink() if path.is_file() else shutil.rmtree(path)
    return folder


def contents(folder: Path) -> dict[str, str]:
    """The sha256 of every file of the outputs."""
    places = [folder / "data" / name for name in OUTPUTS]
    files = [file for one in places for file in (one, *one.rglob("*")) if file.is_file()]
    read = {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    return {str(file.relative_to(folder)): digest for file, digest in read.items()}


@pytest.mark.parametrize("link", IS_LINK)
def test_a_clone_has_what_was_pushed_and_works(origin, tiny_run, link):
    clone = origin.with_name(link.partition(",")[0])
    run(origin.parent, "git", "clone", "-q", str(origin), clone.name)
    run(clone, "dvc", "config", "--local", "cache.type", link)
    run(clone, "dvc", "pull", "-q")
    expected = contents(tiny_run)
    assert contents(clone) == expected
    assert all(IS_LINK[link](clone / name) for name in expected if (clone / name).stat().st_size)
    assert "up to date" in run(clone, "dvc", "status")
    shutil.rmtree(clone / "data/models")
    (clone / "data/features.h5").unlink()
    run(clone, "dvc", "checkout", "-q")
    assert contents(clone) == expected
    (clone / "texts.txt").write_text("a red circle\n")
    (line,) = run(clone, sys.executable, "-m", "stages.embed", "texts.txt").splitlines()
    assert json.loads(line)["text"] == "a red circle"
    run(clone, "dvc", "repro", "-q", "--force", "--single-item", "index")
    assert contents(clone) == expected
    assert run(clone, "git", "diff") == ""
    assert run(clone, "git", "status", "--porcelain") == "?? texts.txt\n"
    assert "in sync" in run(clone, "dvc", "status", "--cloud")


def test_the_artifacts_are_had_by_name(origin, tiny_run, tmp_path):
    for artifact in ("student", "index"):
        get = ("dvc", "artifacts", "get", str(origin), artifact, "--rev", "v1.0.0")
        run(tmp_path, *get, "--out", artifact)
    vectors = SentenceTransformer(str(tmp_path / "student"), device="cpu").encode(["a red circle"])
    own = SentenceTransformer(str(tiny_run / "data/models/0"), device="cpu")
    assert (vectors == own.encode(["a red circle"])).all()
    search = (sys.executable, "-m", "stages.search", "a red circle", "--json")
    command = (*search, "--model", str(tmp_path / "student"), "--index", str(tmp_path / "index"))
    found = json.loads(run(origin, *command))
    assert found["hits"] == json.loads(run(tiny_run, *search))["hits"]
