"""A process with everything imported, which forks one that runs a command whenever it is asked to.

What `python -m stages.train` needs most of its first seconds for, its imports, is done once; so
hundreds of runs fit into minutes, and a random moment falls into the work.

Asked and answered by lines of JSON: an `Order`, then the process id, then its exit code.
"""

import ctypes
import faulthandler
import importlib
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.conftest import ROOT

COMMANDS = (
    "download",
    "features",
    "train",
    "baselines",
    "evaluate",
    "summary",
    "index",
    "search",
    "embed",
)
_CAPABILITIES = 0x20080522
"""_LINUX_CAPABILITY_VERSION_3."""
_OVERRIDES = 0b110
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: what lets root write where nobody may."""


@dataclass(frozen=True)
class Order:
    """A command to be run."""

    stage: str
    arguments: Sequence[str]
    folder: str
    """The working folder."""
    prints: str
    """The folder of `out` and `err`, which get what is printed."""
    environment: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
    """By the names of `resource`: RLIMIT_FSIZE, RLIMIT_AS, in bytes; RLIMIT_AS is what may be
    taken on top of what the process has already."""
    obey_modes: bool = False
    """Whether root must obey the modes of files, as everybody else."""


class Zygote:
    """Forks commands, one at a time.

    Args:
        environment: variables to be set before anything is loaded, such as LD_PRELOAD.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        variables = {
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "PYTHONHASHSEED": "0",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.zygote"],
            cwd=ROOT,
            env=os.environ | variables | dict(environment or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def start(self, order: Order) -> int:
        """Begin a command; returns its process id."""
        self._process.stdin.write(json.dumps(asdict(order)) + "\n")
        return self._answer()

    def wait(self) -> int:
        """The exit code of the command that was begun last; negative: the signal that ended it."""
        return self._answer()

    def _answer(self) -> int:
        line = self._process.stdout.readline()
        assert line, "the zygote is gone"
        return int(line)


def serve() -> None:
    """Fork a child an order, until no more orders come."""
    for name in COMMANDS:
        importlib.import_module(f"stages.{name}")
    for name in ("faiss", "onnxruntime", "open_clip", "pipeline.index.queries", "torch.onnx"):
        importlib.import_module(name)
    _say(0)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _run(Order(**json.loads(line)))
        _say(child)
        _say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def _run(order: Order) -> None:
    """Become the command; ends with its exit code, as Python would."""
    try:
        _prepare(order)
        sys.modules[f"stages.{order.stage}"].app()
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001  # whatever a command lets pass is to be seen
        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _prepare(order: Order) -> None:
    os.setpgid(0, 0)
    os.chdir(order.folder)
    for number, name in ((1, "out"), (2, "err")):
        handle = os.open(f"{order.prints}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
        os.close(handle)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    faulthandler.register(signal.SIGQUIT, file=2, chain=True)  # where it hung, before it ends
    os.environ.update(order.environment)
    sys.argv = [str(ROOT / f"stages/{order.stage}.py"), *order.arguments]
    for name, value in order.limits.items():
        taken = _address_space() if name == "RLIMIT_AS" else 0
        resource.setrlimit(getattr(resource, name), (value + taken, value + taken))
    if order.obey_modes:
        _drop_overrides()


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def _drop_overrides() -> None:
    """Give up root's right to ignore the modes of files."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = struct.pack("Ii", _CAPABILITIES, 0), ctypes.create_string_buffer(24)
    assert libc.capget(header, data) == 0
    words: list[Any] = list(struct.unpack("6I", data.raw))
    words[0] &= ~_OVERRIDES
    words[1] &= ~_OVERRIDES
    assert libc.capset(header, struct.pack("6I", *words)) == 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    serve()
