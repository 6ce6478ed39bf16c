"""`stages.train`, killed at random moments, ends with the student of a run never stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from tests.conftest import ROOT, TINY, merge, read_default_params

KILLS = int(os.environ.get("KDMCSE_KILLS", "8"))
"""More of them, for a night: twenty were tried when this was written."""
STEPS = 40


@pytest.fixture
def run_folder(tiny_run: Path, tmp_path: Path) -> Path:
    """A folder with the tiny run's data and its own params."""
    (tmp_path / "data").mkdir()
    for name in ("pairs", "text", "evaluation", "features.h5"):
        (tmp_path / "data" / name).symlink_to(tiny_run / "data" / name)
    settings = {"train": {"steps": STEPS, "evaluate_every": 8, "batch_size": 8}}
    with (tmp_path / "params.yaml").open("w") as stream:
        YAML().dump(merge(merge(read_default_params(), TINY), settings), stream)
    return tmp_path


def start(folder: Path, out: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = ["--out", f"{out}/model", "--reports", f"{out}/reports"]
    kept = ["--checkpoints", f"{out}/checkpoints", "--checkpoint-every", "0"]
    return subprocess.Popen(
        [sys.executable, "-m", "stages.train", *arguments, *kept],
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder: Path, out: str) -> None:
    process = start(folder, out)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert not list((folder / out / "checkpoints").iterdir())


def run_timed(folder: Path, out: str) -> float:
    """Run as above; returns the seconds from the first step to the end."""
    process = start(folder, out)
    wait_for_first_step(process, folder / out / "checkpoints")
    begun = time.monotonic()
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return time.monotonic() - begun


def wait_for_first_step(process: subprocess.Popen, checkpoints: Path) -> None:
    deadline = time.monotonic() + 120
    while not any(checkpoints.glob("*.pt")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def student_bytes(folder: Path) -> dict[str, bytes]:
    names = ("model.safetensors", "heads.safetensors", "heads.json")
    return {name: (folder / "model" / name).read_bytes() for name in names}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_at_random_moments_it_ends_with_the_same_student(run_folder):
    """SIGKILL and SIGTERM in turn, each run killed once on its way."""
    seconds = run_timed(run_folder, "whole")
    expected = student_bytes(run_folder / "whole")
    rng, resumed = np.random.default_rng(0), 0
    for kill in range(KILLS):
        out, number = f"kill{kill}", (signal.SIGKILL, signal.SIGTERM)[kill % 2]
        process = start(run_folder, out)
        wait_for_first_step(process, run_folder / out / "checkpoints")
        time.sleep(rng.uniform(0, 0.7) * seconds)
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode != 0, "the kill came too late"
        resumed += any((run_folder / out).glob("checkpoints/*.pt"))
        run(run_folder, out)
        assert student_bytes(run_folder / out) == expected, kill
        curves = (run_folder / out / "reports/curves.csv").read_bytes()
        assert curves == (run_folder / "whole/reports/curves.csv").read_bytes(), kill
    assert resumed == KILLS
