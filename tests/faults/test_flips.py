"""Bits that flipped in what a stage reads: noticed, or of no consequence."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.faults.bench import CHECKPOINTS, LONGEST, STAGES, Bench, Fault, Stage, remove
from tests.faults.ledger import record, times

BY_NAME = {stage.name: stage for stage in STAGES}
READS = {
    "features": ("data/pairs", "data/store"),
    "train": (
        "data/pairs",
        "data/text",
        "data/evaluation",
        "data/features.h5",
        "data/tokens",
        CHECKPOINTS,
    ),
    "baselines": ("data/evaluation", "data/features.h5", "data/pairs"),
    "evaluate": ("data/models", "data/evaluation", "data/features.h5", "data/pairs"),
    "index": ("data/models", "data/pairs", "data/features.h5", "data/vectors"),
    "search": ("data/index", "data/models"),
}
"""What each stage reads. Reports are no part of it: they are text, in git."""
UNREAD = ("README.md", "teacher.json")


def files_of(bench: Bench, names: tuple[str, ...]) -> list[Path]:
    roots = [bench.folder / name for name in names]
    assert all(root.exists() for root in roots), names
    found = [path for root in roots for path in (root.rglob("*") if root.is_dir() else [root])]
    return sorted(path for path in found if path.is_file() and path.name not in UNREAD)


def flip(path: Path, draw: random.Random) -> bytes:
    """Flip one to eight bits of a file; returns what it was."""
    before = path.read_bytes()
    content = bytearray(before)
    for _ in range(draw.choice([1, 1, 8])):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return before


def kill_once_kept(checkpoints: Path) -> Fault:
    """Kill a run as soon as it has left a checkpoint."""

    def fault(process: int) -> None:
        until = time.monotonic() + LONGEST
        while not any(checkpoints.glob("*.pt")) and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(process, signal.SIGKILL)

    return fault


def begin(bench: Bench, stage: Stage) -> None:
    """Leave what a run leaves that was killed in its middle."""
    for name in stage.makes:
        remove(bench.folder / name)
    if stage.name == "train":
        bench.run(stage, kill_once_kept(bench.folder / CHECKPOINTS))
        assert any((bench.folder / CHECKPOINTS).glob("*.pt"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", READS)
def test_flipped_bits(finished, bench, name):
    stage, draw = BY_NAME[name], random.Random(name)  # noqa: S311
    begin(bench, stage)
    bench.require_repaired(stage)  # as it is, what was left makes the right result
    for _ in range(times(2, 16)):
        begin(bench, stage)
        path = draw.choice(files_of(bench, READS[name]))
        before = flip(path, draw)
        ended = bench.run(stage)
        is_named = ended.code == 0 and "rejected image" in ended.err  # by the CRC of its member
        outcome = "picture rejected by name" if is_named else bench.require(stage, ended)
        record("flipped bits", name, outcome)
        assert ended.code in {0, 1}, (path, ended)
        if str(path.relative_to(bench.folder)).startswith(stage.keeps or "-"):
            assert ended.code == 0, (path, ended)
        else:
            path.write_bytes(before)
    if stage.makes:
        shutil.rmtree(bench.folder)
        finished.copy(bench.folder).require_repaired(stage)
