"""Clocks that jump while a stage runs: libfaketime, Debian's package, under the real command."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.bench import STAGES, Bench, Fault
from tests.faults.ledger import record, times
from tests.faults.zygote import Zygote

LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
_YEAR = 365 * 24 * 3600
JUMPS = ("-10y", "+10y", "-1h", "+1h", "-1d", "+0", "+40d")


@pytest.fixture(scope="module")
def clock(tmp_path_factory) -> Path:
    """The file that says how wrong the clock is."""
    if not LIBRARIES:
        pytest.skip("NO libfaketime (Debian's package faketime): clock jumps not tested")
    path = tmp_path_factory.mktemp("clock") / "offset"
    path.write_text("+0\n")
    return path


@pytest.fixture(scope="module")
def timeless(clock):
    """A zygote whose clock can be set; what measures durations goes on as ever."""
    variables = {
        "LD_PRELOAD": str(LIBRARIES[0]),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }
    clock.write_text("+10y\n")
    shown = [sys.executable, "-c", "import time; print(time.time())"]
    told = subprocess.run(shown, env=os.environ | variables, capture_output=True, check=True)
    assert float(told.stdout) - time.time() > 9 * _YEAR, "the clock does not jump"
    clock.write_text("+0\n")
    with Zygote(variables) as zygote:
        yield zygote


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_the_clock_jumps(bench, timeless, clock, stage):
    """Several times while the stage runs; results know no time."""
    moments = random.Random(stage.name)  # noqa: S311
    jumping = Bench(bench.folder, timeless, bench.prints, bench.content, bench.seconds)
    for _ in range(times(1, 3)):
        jumping.reset(stage)

        def jump(_process: int) -> None:
            clock.write_text(moments.choice(JUMPS) + "\n")

        ended = jumping.run(stage, repeatedly(jump, 3, bench.seconds[stage.name] / 4))
        assert ended.code == 0, ended
        record("clock jumps", stage.name, jumping.require(stage, ended))


def repeatedly(fault: Fault, count: int, pause: float) -> Fault:
    """A fault several times over, with pauses before each."""

    def several(process: int) -> None:
        for _ in range(count):
            time.sleep(pause)
            fault(process)

    return several
