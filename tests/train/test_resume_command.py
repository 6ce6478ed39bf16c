"""`stages.train`, stopped in one process or in two, ends with the student of a whole run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from tests.conftest import ROOT, TINY, find_port, merge, read_default_params

KILLS = int(os.environ.get("KDMCSE_KILLS", "8"))
"""How often it is killed; a night may take more."""
ALONE = [sys.executable]
TOGETHER = [  # --multi_gpu stands for several processes of torch: without GPUs they use gloo
    str(Path(sys.executable).with_name("accelerate")),
    "launch",
    "--multi_gpu",
    "--num_processes=2",
    "--num_machines=1",
    "--mixed_precision=no",
    "--dynamo_backend=no",
]


@pytest.fixture
def run_folder(tiny_run: Path, tmp_path: Path) -> Path:
    """A folder with the tiny run's data and its own params."""
    (tmp_path / "data").mkdir()
    for name in ("pairs", "text", "evaluation", "features.h5"):
        (tmp_path / "data" / name).symlink_to(tiny_run / "data" / name)
    settings = {"train": {"steps": 40, "evaluate_every": 8, "batch_size": 8}}
    with (tmp_path / "params.yaml").open("w") as stream:
        YAML().dump(merge(merge(read_default_params(), TINY), settings), stream)
    return tmp_path


def start(folder: Path, out: str, python: list[str]) -> subprocess.Popen:
    if python is TOGETHER:
        python = [*python, f"--main_process_port={find_port()}"]
    paths = {"out": "model", "reports": "reports", "checkpoints": "checkpoints"}
    places = [f"--{name}={out}/{path}" for name, path in paths.items()]
    return subprocess.Popen(
        [*python, "-m", "stages.train", *places, "--checkpoint-every=0"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def wait_for_first_step(process: subprocess.Popen, checkpoints: Path) -> None:
    deadline = time.monotonic() + 120
    while not any(checkpoints.glob("*.pt")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def stop(folder: Path, out: str, python: list[str], number: signal.Signals, after: float) -> None:
    """Start a run, and send it a signal some seconds after its first step.

    A run that has ended by then, on a machine less busy than it was, is stopped sooner.
    """
    process = start(folder, out, python)
    wait_for_first_step(process, folder / out / "checkpoints")
    time.sleep(after)
    process.send_signal(number)
    process.communicate(timeout=120)
    if process.returncode == 0:
        assert after > 0, "the signal came too late"
        stop(folder, out, python, number, after / 2 if after > 0.5 else 0)
        return
    assert any((folder / out).glob("checkpoints/*.pt"))


def results(folder: Path) -> dict[str, bytes]:
    """What a run leaves, which takes its checkpoint away."""
    assert not list((folder / "checkpoints").iterdir())
    names = ("model.safetensors", "heads.safetensors", "heads.json")
    files = [*(folder / "model" / name for name in names), folder / "reports/curves.csv"]
    return {path.name: path.read_bytes() for path in files}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_at_random_moments_it_ends_with_the_same_student(run_folder):
    """SIGKILL and SIGTERM in turn, each run killed once on its way."""
    process = start(run_folder, "whole", ALONE)
    wait_for_first_step(process, run_folder / "whole/checkpoints")
    begun = time.monotonic()
    finish(process)
    seconds = time.monotonic() - begun
    moments = np.random.default_rng(0).uniform(0, 0.7, KILLS) * seconds
    for kill, moment in enumerate(moments):
        number = (signal.SIGKILL, signal.SIGTERM)[kill % 2]
        stop(run_folder, str(kill), ALONE, number, moment)
        finish(start(run_folder, str(kill), ALONE))
        assert results(run_folder / str(kill)) == results(run_folder / "whole"), kill


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_that_were_stopped_resume_to_the_same_student(run_folder):
    """Every process has dropout of its own, which resumes too."""
    finish(start(run_folder, "whole", TOGETHER))
    metrics = json.loads((run_folder / "whole/reports/metrics.json").read_text())
    assert (metrics["processes"], metrics["steps"]) == (2, 40)
    stop(run_folder, "stopped", TOGETHER, signal.SIGTERM, 0)
    finish(start(run_folder, "stopped", TOGETHER))
    assert results(run_folder / "stopped") == results(run_folder / "whole")
