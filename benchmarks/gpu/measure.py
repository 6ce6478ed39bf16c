"""One measurement at a time: skipped where it cannot run, and never the end of those behind it."""

import importlib.util
import json
import math
import os
import platform
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import IO, Any

import torch

from pipeline.core.device import choose_device

Values = dict[str, Any]
_PACKAGES = ("torch", "transformers", "numpy", "open_clip_torch", "torchvision", "faiss-gpu")
_LONGEST = 300
"""Characters of a reason."""


class Bench:
    """Takes measurements and writes each as one line of JSON, at once.

    Args:
        results: where to.
        tiny: whether everything is to be small.
        ends: when no measurement may begin any more, by the monotonic clock.
    """

    def __init__(self, results: IO[str], *, tiny: bool, ends: float) -> None:
        self.tiny = tiny
        self.device = choose_device()
        self._results, self._ends = results, ends
        self._write({"machine": describe_machine()})

    def of(self, tiny: Any, full: Any) -> Any:
        """A size."""
        return tiny if self.tiny else full

    def take(  # what it needs, by name
        self,
        name: str,
        measure: Callable[[], Values],
        *,
        needs: Sequence[str] = (),
        cuda: bool = False,
        seconds: float = 0.0,
    ) -> Values:
        """Measure, and write down the values or why there are none.

        Args:
            name: of the measurement.
            measure: gives its values.
            needs: packages, as they are imported.
            cuda: whether it needs a CUDA GPU.
            seconds: that it takes at least.

        Returns:
            What `measure` gave; empty where it did not.
        """
        if reason := self._hindrance(needs, seconds, cuda=cuda):
            self._tell(name, {"skipped": reason})
            return {}
        _reset_peak()
        started = time.monotonic()
        try:
            values = measure()
        except Exception as error:  # noqa: BLE001  # whatever one does, the others go on
            traceback.print_exc(file=sys.stderr)
            self._tell(name, {"failed": f"{type(error).__name__}: {error}"[:_LONGEST]})
            return {}
        took = round(time.monotonic() - started, 2)
        self._tell(name, values | {"peak_gib": peak_gib(), "took_s": took})
        return values

    def _hindrance(self, needs: Sequence[str], seconds: float, *, cuda: bool) -> str:
        if missing := [package for package in needs if not is_there(package)]:
            return f"{', '.join(missing)} not installed"
        if cuda and self.device.type != "cuda":
            return "needs a CUDA GPU"
        left = self._ends - time.monotonic()
        if left < (0 if self.tiny else seconds):
            return f"takes {seconds:.0f} s, and {max(0, left):.0f} were left"
        return ""

    def _tell(self, name: str, values: Values) -> None:
        for state in ("skipped", "failed"):
            if state in values:
                print(f"{name}: {state}: {values[state]}", file=sys.stderr)
        self._write({"name": name, **values})

    def _write(self, content: Values) -> None:
        self._results.write(json.dumps(_finite(content), allow_nan=False) + "\n")
        self._results.flush()


def is_there(package: str) -> bool:
    """Whether a package can be imported."""
    if package in sys.modules:
        return sys.modules[package] is not None
    return importlib.util.find_spec(package) is not None


def describe_machine() -> Values:
    """Hardware and versions."""
    found: Values = {
        "cpus": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda or "none",
        "device": "cpu",
    }
    if torch.cuda.is_available():
        facts = torch.cuda.get_device_properties(0)
        found |= {
            "device": facts.name,
            "capability": f"{facts.major}.{facts.minor}",
            "memory_gib": round(facts.total_memory / (1 << 30), 1),
        }
    return found | {name: _version(name) for name in _PACKAGES}


def peak_gib() -> float:
    """The most memory since the last reset: of the GPU, or else of this process since its start."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / (1 << 30), 3)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20), 3)


def wait() -> None:
    """Until the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Of one call, after a first that does not count."""
    times = []
    for _ in range(repeats + 1):
        wait()
        started = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: these become text."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
