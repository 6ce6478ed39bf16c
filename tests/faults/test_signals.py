"""SIGKILL, SIGTERM and SIGINT at random moments of every stage."""

import itertools
import random
import signal

import pytest

from tests.faults.bench import STAGES, send
from tests.faults.ledger import record, times

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_a_stage_may_be_ended_at_any_moment(bench, stage):
    """After every third the same command runs to its end, with what was kept, and begins anew."""
    moments = random.Random(stage.name)  # noqa: S311
    bench.reset(stage)
    for count, number in zip(range(times(3, 24)), itertools.cycle(SIGNALS)):
        before = bench.kept(stage)
        moment = moments.uniform(0, 1.1 * bench.seconds[stage.name])
        ended = bench.run(stage, send(number, moment))
        record(number.name, stage.name, bench.require(stage, ended))
        assert ended.code in {0, 1, -number}, ended
        assert ended.code >= 0 or number == signal.SIGKILL or ended.err == "", ended
        assert ended.code == 0 or before <= bench.kept(stage), "what was finished is lost"
        if count % 3 == 2:
            bench.require_repaired(stage)
        if count % 3 == 2 or ended.code == 0:
            bench.reset(stage)
