"""Runs many cases in processes that may die, and says which case ended one, and how."""

import ctypes
import mmap
import os
import resource
import shutil
import signal
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from pipeline.errors import PipelineError
from tests.faults.fuzz.mutate import mutate

RIGHT, CLEAR, READ = "right result", "one clear line", "read"
_SLOW, _HANGS = 10.0, 60.0
_MEMORY = 3 << 30
"""Address space that a process may take beside what it begins with."""
_LONGEST_LINE = 600
_LOUD = 4096
"""Bytes on stderr that would bury the one line."""
_HEAD = struct.Struct("qdqq")  # the case that runs, since when, right results, clear lines


@dataclass(frozen=True)
class Target:
    """A reader and what it is fed."""

    name: str
    where: str
    seeds: Sequence[bytes]
    read: Callable[[Path, bytes], object]
    """Given an empty folder and the bytes; an assertion of its own is a wrong result."""
    tokens: Sequence[bytes] = ()
    verified: bool = False
    """Whether `read` holds what it gets against what was written."""


@dataclass
class Outcome:
    """What came of all cases."""

    counts: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)


def run(target: Target, cases: range, folder: Path) -> Outcome:
    """Feed a reader all cases; the bytes of those that it does not stand are kept in `folder`."""
    outcome, rest = Outcome(), cases
    shutil.rmtree(folder / "work", ignore_errors=True)
    while len(rest):
        rest = _run_process(target, rest, folder, outcome)
    return outcome


def _run_process(target: Target, cases: range, folder: Path, outcome: Outcome) -> range:
    """Run cases until the process ends; returns those behind the one that ended it."""
    shared = mmap.mmap(-1, mmap.PAGESIZE)
    shared[: _HEAD.size] = _HEAD.pack(cases.start, time.monotonic(), 0, 0)
    notes = folder / "notes.txt"
    notes.write_text("")
    child = os.fork()
    if not child:
        _work(target, cases, folder, shared)
    ended = _watch(child, shared, target, outcome)
    case, _, right, clear = _HEAD.unpack_from(shared)
    outcome.counts.update({RIGHT: right, CLEAR: clear})
    outcome.findings += [line for line in notes.read_text().splitlines() if line]
    if ended == "":
        return range(0)
    _keep(target, case, folder)
    outcome.findings.append(f"{target.name} case {case}: {ended}")
    return range(case + 1, cases.stop)


def account(target: Target, outcome: Outcome) -> dict[str, int]:
    """Counts for the ledger: a result is only called right where somebody looked at it."""
    right = RIGHT if target.verified else READ
    counted = {right: outcome.counts[RIGHT], CLEAR: outcome.counts[CLEAR]}
    return {said: count for said, count in counted.items() if count}


def _watch(child: int, shared: mmap.mmap, target: Target, outcome: Outcome) -> str:
    """How the process ended: an empty text where it did all its cases."""
    slow = -1
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return _describe(status)
        case, since, _, _ = _HEAD.unpack_from(shared)
        seconds = time.monotonic() - since
        if seconds > _SLOW and case != slow:
            slow = case
            outcome.slow.append(f"{target.name} case {case} takes more than {_SLOW:g} s")
        if seconds > _HANGS:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return f"hangs for more than {_HANGS:g} s"
        time.sleep(0.02)


def _describe(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"ends the process by {signal.Signals(os.WTERMSIG(status)).name}"
    code = os.WEXITSTATUS(status)
    return f"ends the process with exit code {code}" if code else ""


def _work(target: Target, cases: range, folder: Path, shared: mmap.mmap) -> None:
    """In the child: all cases, one after the other; never returns."""
    code = 1
    try:
        _die_with_parent()
        torch.set_num_threads(1)  # a fork has none of its parent's threads, and would wait for them
        _limit()
        with (
            (folder / "stderr.txt").open("wb") as errors,
            (folder / "notes.txt").open("a") as notes,
        ):
            os.dup2(errors.fileno(), 2)
            os.dup2(errors.fileno(), 1)
            counts = {RIGHT: 0, CLEAR: 0}
            for case in cases:
                shared[: _HEAD.size] = _HEAD.pack(case, time.monotonic(), *counts.values())
                said = _one(target, mutate(target.seeds, target.tokens, case), folder)
                if said in counts:
                    counts[said] += 1
                else:
                    _keep(target, case, folder)
                    notes.write(f"{target.name} case {case}: {said}\n")
                    notes.flush()
                shared[: _HEAD.size] = _HEAD.pack(case, time.monotonic(), *counts.values())
        code = 0
    finally:
        os._exit(code)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


_PR_SET_PDEATHSIG = 1


def _limit() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _one(target: Target, content: bytes, folder: Path) -> str:
    """What came of one case."""
    os.lseek(2, 0, os.SEEK_SET)
    os.ftruncate(2, 0)
    work = folder / "work"
    work.mkdir(exist_ok=True)
    try:
        target.read(work, content)
        said = RIGHT
    except PipelineError as error:
        said = judge(error.what, error.fix)
    except BaseException as error:  # noqa: BLE001  # whatever it is, it is what we look for
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        said = " ".join(f"{type(error).__name__}: {error!s:.150} ({place})".split())
    loud = os.fstat(2).st_size
    return f"{loud} bytes on stderr" if loud > _LOUD and said in {RIGHT, CLEAR} else said


def judge(*lines: str) -> str:
    """Whether these are lines that a terminal shows as such."""
    for line in lines:
        if not line.isprintable():
            return f"no printable line: {line!a:.300}"
        if not 0 < len(line) <= _LONGEST_LINE:
            return f"a line of {len(line)} characters: {line:.100}"
    return CLEAR


def _keep(target: Target, case: int, folder: Path) -> None:
    name = f"{target.name.replace(' ', '-').replace('/', '-')}-{case}.bin"
    (folder / name).write_bytes(mutate(target.seeds, target.tokens, case))
