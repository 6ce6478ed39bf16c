"""SIGKILL at random moments: nothing that was finished is lost, and the end is the same bytes."""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest
import torch

from pipeline.download.records import read_pairs
from pipeline.features.cache import FeatureCache, read_shard
from pipeline.features.encode import FeatureExtractor
from pipeline.features.extract import write_extraction
from pipeline.features.teacher import Teacher
from pipeline.params.features import FeaturesParams
from pipeline.params.teacher import TeacherParams
from tests.conftest import ROOT, TINY, invoke, write_params
from tests.faults.ledger import record

KILLS = 50
PARAMS = FeaturesParams(
    engine="local",
    precision="auto",
    batch_size=8,
    workers=2,
    shard_rows=16,
    max_rejected=0.0,
)


@pytest.fixture
def made(tmp_path_factory: pytest.TempPathFactory, monkeypatch) -> Path:
    """A folder with the pairs of the tiny world."""
    folder = tmp_path_factory.mktemp("made")
    write_params(folder, TINY)
    monkeypatch.chdir(folder)
    assert invoke("download").exit_code == 0
    return folder


def extract(data: Path, work: Path, teacher: Teacher) -> None:
    cache = FeatureCache(work / "store", teacher.identity, teacher.probe())
    extractor = FeatureExtractor(teacher, cache, PARAMS, show_progress=False)
    write_extraction(work / "features.h5", read_pairs(data), extractor, cache, PARAMS)


def shards_of(work: Path) -> set[Path]:
    return set((work / "store").rglob("*.h5"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kills_at_random_moments_lose_nothing(made, tmp_path):
    """The process is forked with the teacher loaded, so that every kill falls into the work."""
    data = made / "data/pairs"
    teacher = Teacher(TeacherParams(model=TINY["teacher"]["model"]), torch.device("cpu"))
    fork, whole, work = multiprocessing.get_context("fork"), tmp_path / "whole", tmp_path / "work"
    started = time.perf_counter()
    extract(data, whole, teacher)
    seconds = time.perf_counter() - started
    expected, killed, ended = (whole / "features.h5").read_bytes(), 0, 0
    moments = random.Random(0)  # noqa: S311
    while killed < KILLS:
        before = shards_of(work)
        process = fork.Process(target=extract, args=(data, work, teacher))
        process.start()
        process.join(moments.uniform(0, seconds / 3))
        process.kill()
        process.join()
        assert process.exitcode in {0, -signal.SIGKILL}
        for path in shards_of(work):
            read_shard(path)  # verified
        assert before <= shards_of(work)
        killed += process.exitcode != 0
        record(
            "SIGKILL",
            "features, as a library",
            "ended by SIGKILL" if process.exitcode else "right result",
        )
        if (work / "features.h5").exists():
            assert (work / "features.h5").read_bytes() == expected
        if process.exitcode == 0:
            ended += 1
            assert {path.name for path in shards_of(work)} == {p.name for p in shards_of(whole)}
            shutil.rmtree(work)
    extract(data, work, teacher)
    assert (work / "features.h5").read_bytes() == expected
    assert ended >= 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_command_resumes_after_a_kill(made, tmp_path):
    """A real `python -m stages.features`, killed once it has written some shards."""
    shutil.copytree(made / "data/pairs", tmp_path / "data/pairs")
    write_params(tmp_path, TINY, {"features": {"shard_rows": 16, "batch_size": 8}})
    command = [sys.executable, "-m", "stages.features"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE) as run:
        deadline = time.monotonic() + 120
        while len(shards_of(tmp_path / "data")) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        run.kill()
        run.communicate()
    kept = shards_of(tmp_path / "data")
    assert len(kept) >= 3
    assert not (tmp_path / "data/features.h5").exists()
    times = {path: path.stat().st_mtime_ns for path in kept}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert {path: path.stat().st_mtime_ns for path in kept} == times
    with h5py.File(tmp_path / "data/features.h5") as file:
        assert file["caption/features"].shape[0] == 600
