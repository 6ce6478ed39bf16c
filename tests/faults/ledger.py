"""What was injected, how often, and what came of it: a line of JSON an entry.

`python -m tests.faults` names the file in KDMCSE_FAULTS, has the long form run, and makes the table
of docs/reliability.md of what it then holds. Without the variable nothing is kept.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

FILE_VARIABLE = "KDMCSE_FAULTS"
LONG_VARIABLE = "KDMCSE_LONG"


@dataclass(frozen=True)
class Entry:
    """What came of one fault, or of several of a kind."""

    fault: str
    """What was done, such as `SIGKILL` or `mutated zip`."""
    where: str
    """The stage or the reader it was done to."""
    outcome: str
    """`right result`, `one clear line`, ...: as the test found it."""
    times: int
    test: str
    """The test, as pytest names it."""


def times(short: int, long: int) -> int:
    """How often to try: `short` in CI, `long` in the long form."""
    return long if os.environ.get(LONG_VARIABLE) else short


def record(fault: str, where: str, outcome: str, count: int = 1) -> None:
    """Note what came of `count` faults in the test that runs now."""
    test = os.environ["PYTEST_CURRENT_TEST"].split(" ")[0].split("[")[0]
    if name := os.environ.get(FILE_VARIABLE):
        with Path(name).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(Entry(fault, where, outcome, count, test))) + "\n")


def read(path: Path) -> Iterator[Entry]:
    """The entries of a ledger."""
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            yield Entry(**json.loads(line))
