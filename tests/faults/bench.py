"""A folder in which all stages ran, to break one of them in; and what may come of that."""

import hashlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conftest import TINY, write_params
from tests.faults.zygote import Order, Zygote

CHECKPOINTS = "data/checkpoints"
"""Of a training run that was ended; a finished one leaves none."""
QUERY = "an image of several large turquoise squares above several yellow hearts"
"""A caption of the tiny world, which is its own best hit."""
LONGEST = 60.0
"""Seconds after which a command hangs."""
SMALL_SHARDS = {"features": {"shard_rows": 64, "batch_size": 32}}
"""So that features are computed in several steps that a fault can fall between."""


@dataclass(frozen=True)
class Stage:
    """A command: what it makes, and what it keeps for its next run."""

    name: str
    makes: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name


STAGES = (
    Stage("download", ("data/pairs", "data/text", "data/evaluation", "reports/download.json")),
    Stage(
        "features",
        ("data/features.h5", "reports/features.json", "reports/rejected.csv"),
        ("data/store",),
    ),
    Stage(
        "train",
        ("data/models", "reports/train"),
        ("data/tokens", CHECKPOINTS),
        ("--checkpoint-every", "0"),
    ),
    Stage("baselines", ("reports/baselines.json", "reports/baselines.csv")),
    Stage("evaluate", ("reports/evaluate",)),
    Stage("summary", ("reports/summary.json", "reports/scores.csv")),
    Stage(
        "index",
        ("data/index", "reports/index.json", "reports/index.csv"),
        ("data/vectors",),
    ),
    Stage(
        "embed", ("data/own.npy",), ("data/vectors/own",), ("params.yaml", "--out", "data/own.npy")
    ),
    Stage("search", arguments=(QUERY, "--json")),
)


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    code: int
    """Its exit code; negative: the signal that ended it."""
    seconds: float
    err: str
    hit: bool
    """Whether it was still there when the fault came."""

    @property
    def outcome(self) -> str:
        """What the user sees of it."""
        if self.code == 0:
            return "right result"
        return "one clear line" if self.code > 0 else f"ended by {signal.Signals(-self.code).name}"


Fault = Callable[[int], None]
"""Does something to a process while it runs, given its id."""


def send(number: signal.Signals, after: float) -> Fault:
    """A fault: a signal, so many seconds after the start."""

    def fault(process: int) -> None:
        time.sleep(after)
        os.kill(process, number)

    return fault


@dataclass
class Bench:
    """The folder, what each stage made in it, and how long that took."""

    folder: Path
    zygote: Zygote
    prints: Path
    """The folder of what commands print, on a disk that is not broken."""
    content: dict[str, dict[str, str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def prepare(self) -> None:
        """Run all stages once, undisturbed: what faults are held against.

        Raises:
            AssertionError: a stage fails, does not make or keep what it is said to, or the search
                finds something else than was asked for.
        """
        write_params(self.folder, TINY, SMALL_SHARDS)
        for stage in STAGES:
            ended = self.run(stage)
            assert ended.code == 0, (stage, ended)
            for name in (*stage.makes, *stage.keeps):
                assert name == CHECKPOINTS or any(self._files((name,))), (stage, name)
            self.seconds[stage.name] = ended.seconds
            self.content[stage.name] = self.made(stage)
        (answer,) = map(json.loads, (self.prints / "out").read_text().splitlines())
        assert [hit["text"] for hit in answer["hits"][:1]] == [QUERY], answer

    def copy(self, folder: Path) -> "Bench":
        """The same in another folder, which may be on another file system."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return Bench(folder, self.zygote, self.prints, self.content, self.seconds)

    def run(
        self,
        stage: Stage,
        fault: Fault | None = None,
        arguments: tuple[str, ...] = (),
        **order: Any,
    ) -> Ended:
        """Run a stage, with something done to it meanwhile; it is ended where it hangs."""
        command = (stage.name, (*stage.arguments, *arguments))
        wanted = Order(*command, str(self.folder), str(self.prints), **order)
        for name in ("out", "err"):
            (self.prints / name).write_bytes(b"")  # so that it says nothing of the run before
        started = time.monotonic()
        process = self.zygote.start(wanted)
        watch = threading.Timer(LONGEST, os.kill, (process, signal.SIGQUIT))
        watch.start()
        hit = _does(fault or _nothing, process)
        code = self.zygote.wait()
        watch.cancel()
        err = (self.prints / "err").read_text(errors="replace")
        return Ended(code, time.monotonic() - started, err, hit)

    def reset(self, stage: Stage) -> None:
        """Take away what a stage made and kept, and what killed runs left."""
        for name in (*stage.makes, *stage.keeps):
            remove(self.folder / name)
        for path in self.leftovers():
            remove(path)

    def made(self, stage: Stage) -> dict[str, str]:
        """A hash of every file that a stage made, by name."""
        if not stage.makes:
            return {"out": _hash(self.prints / "out")}
        return {
            str(path.relative_to(self.folder)): _hash(path) for path in self._files(stage.makes)
        }

    def kept(self, stage: Stage) -> set[str]:
        """The files that a stage keeps for its next run."""
        return {str(path.relative_to(self.folder)) for path in self._files(stage.keeps)}

    def leftovers(self) -> list[Path]:
        """What has a temporary name."""
        hidden = [path for path in self.folder.rglob(".*") if path.parent.name[0] != "."]
        return sorted(hidden)

    def require(self, stage: Stage, ended: Ended) -> str:
        """Hold a run against what is allowed; returns what came of it.

        A finished run made what the undisturbed one made; another one said in one line why, or was
        killed; and whatever has its final name is what it would have become.
        """
        made, expected = self.made(stage), self.content[stage.name]
        if ended.code == 0:
            assert made == expected, (_difference(made, expected), ended)
        elif stage.makes:
            wrong = {name for name, content in made.items() if expected.get(name) != content}
            named = {name for name in wrong if f"fix: {name} lists them all" in ended.err}
            assert wrong == named, (wrong, ended)  # the list of what was rejected
        if ended.code > 0:
            require_clear_line(ended)
        return ended.outcome

    def require_repaired(self, stage: Stage) -> None:
        """The same command again, undisturbed, ends well."""
        ended = self.run(stage)
        assert ended.code == 0, ended
        self.require(stage, ended)

    def _files(self, names: tuple[str, ...]) -> Iterator[Path]:
        for name in names:
            root = self.folder / name
            paths = sorted(root.rglob("*")) if root.is_dir() else [root]
            visible = (path for path in paths if not _is_hidden(path, self.folder))
            yield from (path for path in visible if path.is_file())


def require_clear_line(ended: Ended) -> None:
    """One line of what is wrong, one of what to do, exit code 1, no traceback."""
    lines = [line for line in ended.err.splitlines() if line.strip()]
    assert ended.code == 1, ended
    assert "Traceback" not in ended.err, ended
    assert sum(line.startswith("error: ") for line in lines) == 1, ended
    assert lines[-2].startswith("error: "), ended
    assert "unexpected" not in lines[-2], ended
    assert lines[-1].startswith("  fix: "), ended


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _does(fault: Fault, process: int) -> bool:
    try:
        fault(process)
    except ProcessLookupError:
        return False
    return True


def _nothing(_process: int) -> None:
    pass


def _difference(made: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    return sorted(name for name, _ in set(made.items()) ^ set(expected.items()))


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
