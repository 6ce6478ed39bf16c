"""Disks that are full, files that may not grow, folders that may not be written."""

import contextlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.bench import STAGES, Bench
from tests.faults.ledger import record, times

MAKERS = [stage for stage in STAGES if stage.makes]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system in memory; skips, loudly, where this machine lets nobody mount one."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(["mount", *options], check=False).returncode:
        pytest.skip("NO RIGHT TO MOUNT: full disks not tested")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, free: int) -> Path:
    """Leave so many bytes of a file system."""
    ballast = folder / "ballast"
    room = os.statvfs(folder)
    with ballast.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, room.f_bavail * room.f_frsize - free)
    return ballast


def sizes_of(bench: Bench, names: tuple[str, ...]) -> list[int]:
    """Bytes of files, and of those in folders."""
    roots = [bench.folder / name for name in names]
    files = [path for root in roots for path in (root.rglob("*") if root.is_dir() else [root])]
    return [path.stat().st_size for path in files if path.is_file()]


@pytest.mark.parametrize("stage", MAKERS, ids=str)
def test_a_full_disk(finished, tmp_path, stage):
    """With room for nothing, for a part, or for nearly all of what the stage writes."""
    rooms = random.Random(stage.name)  # noqa: S311
    with small_disk(tmp_path / "disk", 600) as disk:
        bench = finished.copy(disk)
        size = sum(sizes_of(bench, (*stage.makes, *stage.keeps)))
        for round_ in range(times(2, 5)):
            bench.reset(stage)
            ballast = fill(disk, rooms.randint(0, int(1.1 * size)) if round_ else 0)
            ended = bench.run(stage)
            assert round_ or ended.code == 1, ended  # there was no room at all
            record("full disk", stage.name, bench.require(stage, ended))
            assert ended.code == 0 or "no space left" in ended.err, ended
            assert not bench.leftovers()
            kept = bench.kept(stage)
            ballast.unlink()
            bench.require_repaired(stage)
            assert kept <= bench.kept(stage) or stage.name == "train"


@pytest.mark.parametrize("stage", MAKERS, ids=str)
def test_a_limit_to_the_size_of_files(bench, stage):
    """From 16 KiB on: what is printed goes into a file too."""
    limits = random.Random(stage.name)  # noqa: S311
    largest = max(sizes_of(bench, stage.makes))
    drawn = [int(2 ** limits.uniform(14, 21)) for _ in range(times(1, 4))]
    for limit in [max(1 << 14, largest // 2), *drawn]:
        bench.reset(stage)
        ended = bench.run(stage, limits={"RLIMIT_FSIZE": limit})
        assert limit >= largest or ended.code == 1, ended
        record("file size limit", stage.name, bench.require(stage, ended))
        assert ended.code in {0, 1}, ended
        assert not bench.leftovers()
    bench.require_repaired(stage)


@pytest.mark.parametrize("stage", MAKERS, ids=str)
def test_a_folder_that_may_not_be_written(bench, stage):
    """Any of the folders that the stage writes into, and those above it."""
    written = {Path(name).parent for name in (*stage.makes, *stage.keeps)}
    written |= {Path(name) for name in stage.keeps}
    for folder in sorted(written):
        bench.reset(stage)
        (bench.folder / folder).mkdir(exist_ok=True)
        (bench.folder / folder).chmod(0o555)
        ended = bench.run(stage, obey_modes=True)
        record("read-only folder", stage.name, bench.require(stage, ended))
        assert ended.code == 1, ended
        (bench.folder / folder).chmod(0o755)
        assert not bench.leftovers()
    bench.require_repaired(stage)


def test_a_full_tmp(bench, tmp_path):
    """Nothing is written there, whatever TMPDIR says."""
    with small_disk(tmp_path / "tmp", 1) as disk:
        fill(disk, 0)
        with pytest.raises(OSError, match="No space left"):
            (disk / "more").write_bytes(bytes(1 << 16))
        for stage in STAGES:
            bench.reset(stage)
            ended = bench.run(stage, environment={"TMPDIR": str(disk)})
            record("full /tmp", stage.name, bench.require(stage, ended))
            if ended.code:
                bench.require_repaired(stage)
