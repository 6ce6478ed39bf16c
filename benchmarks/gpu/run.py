"""Runs the parts one after another, and keeps what they measured on disk at every moment."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from pipeline.core.files import write_json

PARTS = {
    "correctness": 90,
    "training": 200,
    "features": 100,
    "evaluation": 40,
    "search": 50,
    "profiling": 60,
}
"""Parts by worth, and their shares of the time."""
_GRACE = 3.0
"""Seconds that a part has to end in, once it was told to."""


class Account:
    """What was measured so far, in one file that is replaced as a whole."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._path = path
        started = datetime.now(UTC).isoformat(timespec="seconds")
        self.content: dict[str, Any] = {
            "settings": settings | {"started": started},
            "machine": {},
            "parts": {},
        }
        self.save()

    def save(self) -> None:
        """Write it."""
        write_json(self._path, self.content)

    def begin(self, part: str) -> None:
        """A part starts; should all end now, it was cut off."""
        self.content["parts"][part] = {"status": "cut off", "measured": []}
        self.save()

    def take(self, part: str, line: str) -> None:
        """One result of a part, as `measure.Bench` writes it."""
        result = json.loads(line)
        if "machine" in result:
            self.content["machine"] = result["machine"]
        else:
            self.content["parts"][part]["measured"].append(result)
        self.save()

    def end(self, part: str, status: str, seconds: float) -> None:
        """How a part ended."""
        self.content["parts"][part] |= {"status": status, "seconds": round(seconds, 1)}
        self.save()


def run_parts(out: Path, parts: Sequence[str], minutes: float, *, tiny: bool) -> None:
    """Run parts in the order of PARTS, and write `out`/gpu.json.

    Raises:
        ResourceError: the file cannot be written.
    """
    account = Account(out / "gpu.json", {"minutes": minutes, "tiny": tiny, "parts": list(parts)})
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        ends = time.monotonic() + 60 * minutes
        left = [name for name in PARTS if name in parts]
        while left:
            name, share = left[0], PARTS[left[0]] / sum(PARTS[one] for one in left)
            _run_part(account, name, share * (ends - time.monotonic()), tiny=tiny)
            left.pop(0)
    finally:
        signal.signal(signal.SIGTERM, previous)
    print(f"{out / 'gpu.json'} holds the results", file=sys.stderr)


def _run_part(account: Account, name: str, seconds: float, *, tiny: bool) -> None:
    """Run one part in a process of its own, which is killed where its time is over."""
    started = time.monotonic()
    account.begin(name)
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", name]
    limit = max(0.001, (seconds - 2 * _GRACE) / 60)
    command += ["--minutes", f"{limit:.4f}", *(["--tiny"] if tiny else [])]
    process = subprocess.Popen(  # noqa: S603  # our own module
        command, stdout=subprocess.PIPE, text=True, process_group=0, env=_quiet()
    )
    assert process.stdout is not None
    reader = threading.Thread(target=_read, args=(account, name, process.stdout), daemon=True)
    reader.start()
    try:
        code = process.wait(timeout=max(_GRACE, seconds - _GRACE))
        status = "done" if code == 0 else f"failed with exit code {code}"
    except subprocess.TimeoutExpired:
        status = "cut off"
    finally:
        _kill(process)
        reader.join(timeout=_GRACE)
    account.end(name, status, time.monotonic() - started)


def _read(account: Account, name: str, stream: IO[str]) -> None:
    for line in stream:
        account.take(name, line)


def _kill(process: "subprocess.Popen[str]") -> None:
    """End a part with all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _quiet() -> dict[str, str]:
    """No network, and no forks of the tokenizer's threads."""
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return os.environ | offline
