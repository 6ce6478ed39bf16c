"""`accelerate launch -m stages.train` with two gloo processes: one student, stopped or not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.conftest import ROOT, TINY, find_port, merge, read_default_params

STEPS = 60


@pytest.fixture
def run_folder(tiny_run: Path, tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    for name in ("pairs", "text", "evaluation", "features.h5"):
        (tmp_path / "data" / name).symlink_to(tiny_run / "data" / name)
    settings = {"train": {"steps": STEPS, "evaluate_every": 20, "batch_size": 8}}
    with (tmp_path / "params.yaml").open("w") as stream:
        YAML().dump(merge(merge(read_default_params(), TINY), settings), stream)
    return tmp_path


def launch(folder: Path, out: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options = {"num_processes": 2, "num_machines": 1, "mixed_precision": "no"}
    options |= {"dynamo_backend": "no", "main_process_port": find_port()}
    flags = [f"--{name}={value}" for name, value in options.items()]
    paths = {"out": "model", "reports": "reports", "checkpoints": "checkpoints"}
    places = [f"--{name}={out}/{path}" for name, path in paths.items()]
    # --multi_gpu stands for "several processes of torch" here: without GPUs they are gloo's
    command = [str(Path(sys.executable).with_name("accelerate")), "launch", "--multi_gpu"]
    return subprocess.Popen(
        [*command, *flags, "-m", "stages.train", *places, "--checkpoint-every=0"],
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def student_bytes(folder: Path) -> dict[str, bytes]:
    names = ("model.safetensors", "heads.safetensors", "heads.json")
    return {name: (folder / "model" / name).read_bytes() for name in names}


def run(folder: Path, out: str) -> None:
    process = launch(folder, out)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_that_were_stopped_go_on_to_the_same_student(run_folder):
    """Every process has dropout of its own; it goes on too."""
    run(run_folder, "whole")
    metrics = json.loads((run_folder / "whole/reports/metrics.json").read_text())
    assert (metrics["processes"], metrics["steps"]) == (2, STEPS)
    process = launch(run_folder, "stopped")
    deadline = time.monotonic() + 120
    while not any((run_folder / "stopped/checkpoints").glob("*.pt")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode != 0, "the signal came too late"
    run(run_folder, "stopped")
    assert student_bytes(run_folder / "stopped") == student_bytes(run_folder / "whole")
