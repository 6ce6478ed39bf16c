"""Memory that runs out, anywhere in a stage."""

import random
import signal

import pytest

from tests.faults.bench import STAGES
from tests.faults.ledger import record, times

KILLED_ITSELF = {-signal.SIGABRT, -signal.SIGSEGV}
"""Native libraries that cannot go on without memory end the process; nothing can be said then."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_memory_runs_out(bench, stage):
    amounts = random.Random(stage.name)  # noqa: S311
    for _ in range(times(1, 6)):
        bench.reset(stage)
        most = int(2 ** amounts.uniform(18, 28))
        ended = bench.run(stage, limits={"RLIMIT_AS": most})
        record("memory limit", stage.name, bench.require(stage, ended))
        assert ended.code in {0, 1, *KILLED_ITSELF}, ended
        assert ended.code != 1 or "error: memory ran out" in ended.err, ended
        bench.require_repaired(stage)
