"""`dvc repro` itself: ended at random moments, and run twice at once."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.core.checksums import CHECKSUMS
from tests.conftest import ROOT, TINY, write_params
from tests.faults.ledger import record, times

DVC = Path(sys.executable).with_name("dvc")
LONG_ONLY = pytest.mark.skipif(not times(0, 1), reason="minutes of DVC: in the long form alone")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def project(tmp_path) -> Path:
    """A clone of the project, as it is here, with tiny parameters."""
    ignored = shutil.ignore_patterns(".*", "*.pyc", "__pycache__", "store", "runs")
    names = ("pipeline", "stages", "dvc.yaml", "data/demo", "reports/.gitignore")
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
        elif (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    write_params(tmp_path, TINY, {"evaluate": {"tasks": ["sts"]}})
    for command in (["git", "init", "-q"], [DVC, "init", "-q"]):
        subprocess.run(command, cwd=tmp_path, check=True, env=environment(), capture_output=True)
    return tmp_path


def environment() -> dict[str, str]:
    own = {"PATH": f"{DVC.parent}:{os.environ['PATH']}"}
    return os.environ | own | {"DVC_NO_ANALYTICS": "1"}


def start(project: Path, *arguments: str) -> subprocess.Popen:
    """A `dvc repro` in a process group of its own."""
    return subprocess.Popen(
        [DVC, "repro", *arguments],
        cwd=project,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def finish(project: Path, *arguments: str) -> str:
    ended = start(project, *arguments)
    printed = ended.communicate()[0].decode()
    assert ended.returncode == 0, printed
    return printed


def results(project: Path) -> dict:
    """What was made."""
    seals = {
        str(path.relative_to(project)): path.read_text()
        for path in sorted((project / "data").rglob(CHECKSUMS))
        if "demo" not in path.parts and "vectors" not in path.parts
    }
    assert len(seals) >= 5, seals
    return seals | {"sts": json.loads((project / "reports/evaluate/0.json").read_text())["sts"]}


@LONG_ONLY
def test_a_repro_may_be_ended_at_any_moment(project):
    """Ctrl-C reaches all its processes, a kill by the system one; then it goes on to the end."""
    begun = time.monotonic()
    finish(project)
    seconds, expected = time.monotonic() - begun, results(project)
    moments = random.Random(0)  # noqa: S311
    for number in range(times(1, 3)):
        for name in ("data/pairs", "data/models", "data/index", ".dvc/cache", ".dvc/tmp/rwlock"):
            path = project / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        running = start(project)
        time.sleep(moments.uniform(0.1, 0.7) * seconds)
        assert running.poll() is None, "it was over before it was ended"
        ends = (signal.SIGINT, signal.SIGKILL, signal.SIGTERM)
        os.killpg(running.pid, ends[number % len(ends)])
        running.communicate()
        finish(project)
        assert results(project) == expected
        record(ends[number % len(ends)].name, "dvc repro", "right result")


@LONG_ONLY
def test_a_forced_repro_that_changes_nothing_leaves_git_clean(project):
    """No metric, no output and not even the lock differs; times are where git does not look."""
    shutil.copy(ROOT / ".gitignore", project)
    finish(project)
    taken = (project / "reports/times/train/0/metrics.json").read_bytes()
    author = ["-c", "user.name=x", "-c", "user.email=x@y.z"]
    for command in (["add", "-A"], [*author, "commit", "-qm", "all"]):
        subprocess.run(["git", *command], cwd=project, check=True)
    finish(project, "--force")
    assert (project / "reports/times/train/0/metrics.json").read_bytes() != taken
    for command in (["git", "status", "--porcelain"], [DVC, "metrics", "diff"]):
        said = subprocess.run(
            command, cwd=project, env=environment(), capture_output=True, check=True
        )
        assert said.stdout == b"", command


@LONG_ONLY
def test_two_repros_at_once(project):
    """DVC lets one wait or refuses it in clear words; what is made is right."""
    finish(project)
    expected = results(project)
    for _ in range(times(1, 1)):
        for name in ("data/text", "data/models", "data/index", ".dvc/cache"):
            shutil.rmtree(project / name)
        first, second = start(project), start(project)
        printed = [running.communicate()[0].decode() for running in (first, second)]
        assert 0 in {first.returncode, second.returncode}, printed
        for code, text in zip((first.returncode, second.returncode), printed, strict=True):
            assert code == 0 or "lock" in text, text
            assert "Traceback" not in text, text
        finish(project)
        assert results(project) == expected
        record("two at once", "dvc repro", "right result", 2)
