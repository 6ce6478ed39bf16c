"""Runs many cases in processes that may die, and says which case ended one, and how.

Nothing is mutated before the seeds, as they are, have given what is expected of them. What goes
wrong outside of the reader is an error of the test, and never an outcome.
"""

import ctypes
import mmap
import os
import re
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

from pipeline.core.errors import PipelineError
from tests.faults.fuzz.mutate import mutate

RIGHT, CLEAR, READ, HELD = "right result", "one clear line", "read", "refused by its checksum"
_COUNTED = (RIGHT, CLEAR, HELD)
_CHECKSUM = re.compile(r"its sha256 is not|fit its checksum|CRC|\bit is damaged|header is damaged")
"""How lines say that bytes are not those that were written."""
_SLOW, _HANGS = 10.0, 60.0
_MEMORY = 3 << 30
"""Address space that a process may take beside what it begins with."""
_LONGEST_LINE = 600
_LOUD = 4096
"""Bytes on stderr that would bury the one line."""
_HEAD = struct.Struct("qdqqq")  # the case that runs, since when, and how many of each of _COUNTED
_BEFORE = -1
"""Stands for a case while the seeds are read as they are."""


class BrokenTestError(Exception):
    """A target that shows nothing: it does not work on sound bytes, or never meets its parser."""


@dataclass(frozen=True)
class Target:
    """A reader and what it is fed."""

    name: str
    where: str
    seeds: Sequence[bytes]
    expected: Sequence[object]
    """What each seed gives as it is, worked out without the reader."""
    place: Callable[[Path, bytes], object]
    """Puts the bytes into a folder, over those of the case before."""
    read: Callable[[Path], object]
    """The reader, on the folder: the only thing that is judged."""
    tokens: Sequence[bytes] = ()
    accepts: Callable[[object], bool] | None = None
    """Whether what mutated bytes give is right; None: nobody can tell."""
    guarded: bool = False
    """Whether a checksum stands before the parser, which mutated bytes then need not meet."""


@dataclass
class Outcome:
    """What came of all cases."""

    counts: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)


def run(target: Target, cases: range, folder: Path) -> Outcome:
    """Feed a reader all cases; the bytes of those that it does not stand are kept in `folder`.

    Raises:
        BrokenTestError: a seed as it is does not give what is expected, bytes could not be put in
            place, or a checksum refused them all before a parser that they were to meet.
    """
    outcome, rest = Outcome(), cases
    shutil.rmtree(folder / "work", ignore_errors=True)
    while len(rest):
        rest = _run_process(target, rest, folder, outcome)
    if not target.guarded and outcome.counts[HELD] == len(cases):
        raise BrokenTestError(f"{target.name}: no case got past the checksum")
    return outcome


def _run_process(target: Target, cases: range, folder: Path, outcome: Outcome) -> range:
    """Run cases until the process ends; returns those behind the one that ended it."""
    shared = mmap.mmap(-1, mmap.PAGESIZE)
    _tell(shared, _BEFORE, Counter())
    notes, broken = folder / "notes.txt", folder / "broken.txt"
    notes.write_text("")
    broken.write_text("")
    child = os.fork()
    if not child:
        _work(target, cases, folder, shared)
    ended = _watch(child, shared, target, outcome)
    case, _, *counts = _HEAD.unpack_from(shared)
    if (said := broken.read_text()) or case == _BEFORE:
        raise BrokenTestError(f"{target.name}: {said or f'reading sound bytes {ended}'}")
    outcome.counts += Counter(dict(zip(_COUNTED, counts, strict=True)))
    outcome.findings += [line for line in notes.read_text().splitlines() if line]
    if ended == "":
        return range(0)
    _keep(target, case, folder)
    outcome.findings.append(f"{target.name} case {case}: {ended}")
    return range(case + 1, cases.stop)


def account(target: Target, outcome: Outcome) -> dict[str, int]:
    """Counts for the ledger: a result is only called right where somebody looked at it."""
    names = {RIGHT: RIGHT if target.accepts else READ}
    return {names.get(said, said): count for said, count in outcome.counts.items() if count}


def _watch(child: int, shared: mmap.mmap, target: Target, outcome: Outcome) -> str:
    """How the process ended: an empty text where it did all its cases."""
    slow = -1
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return _describe(status)
        case, since, *_ = _HEAD.unpack_from(shared)
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
            _require_intact(target, folder)
            counts: Counter[str] = Counter()
            for case in cases:
                _tell(shared, case, counts)
                said = _one(target, mutate(target.seeds, target.tokens, case), folder)
                if said in _COUNTED:
                    counts[said] += 1
                else:
                    _keep(target, case, folder)
                    notes.write(f"{target.name} case {case}: {said}\n")
                    notes.flush()
                _tell(shared, case, counts)
        code = 0
    except BaseException:  # noqa: BLE001  # none of the reader's
        (folder / "broken.txt").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def _tell(shared: mmap.mmap, case: int, counts: Counter[str]) -> None:
    """Let the parent know what runs, and what came of the cases before."""
    numbers = (counts[said] for said in _COUNTED)
    shared[: _HEAD.size] = _HEAD.pack(case, time.monotonic(), *numbers)


def _require_intact(target: Target, folder: Path) -> None:
    """Read every seed as it is; raises AssertionError where one gives something else."""
    work = _make_work(folder)
    for number, (seed, expected) in enumerate(zip(target.seeds, target.expected, strict=True)):
        target.place(work, seed)
        found = target.read(work)
        assert found == expected, f"seed {number} gives {found!r}, not {expected!r}"
        assert target.accepts is None or target.accepts(found), f"seed {number} is not accepted"


def _make_work(folder: Path) -> Path:
    work = folder / "work"
    work.mkdir(exist_ok=True)
    return work


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
    work = _make_work(folder)
    target.place(work, content)
    try:
        said = _judge_result(target, target.read(work))
    except PipelineError as error:
        said = judge(error.what, error.fix)
        said = HELD if said == CLEAR and _CHECKSUM.search(error.what) else said
    except BaseException as error:  # noqa: BLE001  # whatever it is, it is what we look for
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        said = " ".join(f"{type(error).__name__}: {error!s:.150} ({place})".split())
    loud = os.fstat(2).st_size
    return f"{loud} bytes on stderr" if loud > _LOUD and said in _COUNTED else said


def _judge_result(target: Target, found: object) -> str:
    if target.accepts is None or target.accepts(found):
        return RIGHT
    return f"a wrong result: {found!r:.200}"


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
