"""The long form of all faults and fuzzing, in one command: `python -m tests.faults`.

Runs the tests with everything turned up, keeps a ledger of what was injected and what came of it,
and prints it as the table of docs/reliability.md; `--write` puts it there.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from tests.conftest import ROOT
from tests.faults.ledger import FILE_VARIABLE, LONG_VARIABLE, Entry, read

PAGE = ROOT / "docs/reliability.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"
FUZZING = [f"tests/faults/{name}" for name in ("fuzz", "test_fuzz.py", "test_params_faults.py")]
WORKERS = ["tests/features/test_cluster.py", "tests/features/test_kill.py"]
"""Tests of another room in which workers are killed."""
OTHERS = [
    f"tests/faults/test_{name}.py" for name in ("random_params", "servers", "dvc", "no_network")
]
HALVES = (
    [*FUZZING, *WORKERS, "tests/features/test_images.py", *OTHERS],
    ["tests/faults", *(f"--ignore={name}" for name in (*FUZZING, *OTHERS))],
)
"""Run at once, one a core."""


def main() -> int:
    """Run the tests, print the table; the exit code is that of pytest."""
    options = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    options.add_argument("--write", action="store_true", help="put the table into the page")
    options.add_argument("--short", action="store_true", help="the sizes that CI runs")
    chosen, further = options.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder) / "ledger.jsonl"
        ledger.touch()
        begun = time.monotonic()
        code = run(ledger, further, long=not chosen.short)
        table = as_table(read(ledger))
    sys.stdout.write(table + f"\n{(time.monotonic() - begun) / 60:.0f} minutes\n")
    if chosen.write and code == 0:
        write(table)
    return code


def run(ledger: Path, further: list[str], *, long: bool) -> int:
    """Run pytest over the faults; returns its exit code."""
    variables = {FILE_VARIABLE: str(ledger)}
    variables |= {LONG_VARIABLE: "1"} if long else {}
    command = [sys.executable, "-m", "pytest", "-m", "not gpu and not browser", "-rs"]
    running = [
        subprocess.Popen([*command, *part], cwd=ROOT, env=os.environ | variables, stdout=sys.stderr)
        for part in ([further] if further else HALVES)
    ]
    return max(process.wait() for process in running)


def as_table(entries: Iterable[Entry]) -> str:
    """Markdown: a row a test and fault."""
    outcomes: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    places: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for entry in entries:
        outcomes[entry.test, entry.fault][entry.outcome] += entry.times
        places[entry.test, entry.fault][entry.where] = None
    lines = ["| fault | where | times | outcome | test |", "|---|---|--:|---|---|"]
    for (test, fault), counted in sorted(outcomes.items()):
        where = ", ".join(places[test, fault])
        came = ", ".join(f"{name} {count:,}" for name, count in counted.most_common())
        name = test.removeprefix("tests/").removeprefix("faults/")
        lines.append(f"| {fault} | {where} | {counted.total():,} | {came} | `{name}` |")
    total = sum(counted.total() for counted in outcomes.values())
    return "\n".join([*lines, f"| **all** | | **{total:,}** | | |"]) + "\n"


def write(table: str) -> None:
    """Replace the table of the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + table + END + after, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
