"""The command; see the package."""

import argparse
import ctypes
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from benchmarks.gpu.run import PARTS, run_parts
from benchmarks.gpu.tables import fill_page
from pipeline.core.errors import PipelineError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "gpu.md"
_PR_SET_PDEATHSIG = 1


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="folder of gpu.json")
    what.add_argument("--docs", type=Path, help="fill docs/gpu.md from this folder's gpu.json")
    what.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--minutes", type=_minutes, default=8.0, help="all parts together (8)")
    parser.add_argument("--only", type=_parts, default=None, help=f"of {','.join(PARTS)}")
    parser.add_argument("--tiny", action="store_true", help="everything in small, on a CPU too")
    parser.add_argument("--profile", action="store_true", help="add the longest kernels and gaps")
    return parser.parse_args(arguments)


def _minutes(text: str) -> float:
    if not 0 < (value := float(text)) <= 24 * 60:
        raise argparse.ArgumentTypeError(f"{text} is no time between 0 and a day")
    return value


def _parts(text: str) -> list[str]:
    if unknown := set(text.split(",")) - set(PARTS):
        raise argparse.ArgumentTypeError(
            f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}"
        )
    return text.split(",")


def run_part(options: argparse.Namespace) -> None:
    """One part, in this process; its parent reads what it measures from standard output."""
    if sys.platform == "linux":  # no part outlives the command
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    results = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no result
    try:
        from benchmarks.gpu.measure import Bench

        part = importlib.import_module(f"benchmarks.gpu.{options.part}")
    except ModuleNotFoundError as error:
        reason = f"{error.name} not installed"
        print(f"{options.part}: skipped: {reason}", file=sys.stderr)
        results.write(json.dumps({"name": options.part, "skipped": reason}) + "\n")
        return
    part.run(Bench(results, tiny=options.tiny, ends=time.monotonic() + 60 * options.minutes))


def main() -> None:
    """Run what the options name."""
    options = parse(sys.argv[1:])
    if options.part:
        run_part(options)
        return
    try:
        if options.docs:
            fill_page(PAGE, options.docs / "gpu.json")
            return
        chosen = options.only or [name for name in PARTS if name != "profiling"]
        if options.profile and "profiling" not in chosen:
            chosen.append("profiling")
        run_parts(options.out, chosen, options.minutes, tiny=options.tiny)
    except PipelineError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
