"""SIGKILL, SIGTERM and SIGINT at random moments of every stage."""

import itertools
import random
import signal

import pytest

from tests.faults.bench import STAGES, Bench, Ended, Stage, send
from tests.faults.ledger import record, times

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@pytest.mark.slow
@pytest.mark.smoke
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_a_stage_may_be_ended_at_any_moment(bench, stage):
    """After every third, and the last, the command runs to its end with what was kept."""
    moments, wanted, hits = random.Random(stage.name), times(1, 24), 0  # noqa: S311
    bench.reset(stage)
    sound = bench.run(stage)
    assert (sound.code, bench.require(stage, sound)) == (0, "right result")
    longest = sound.seconds
    bench.reset(stage)
    for number in itertools.islice(itertools.cycle(SIGNALS), 20 * wanted):
        ended = end(bench, stage, number, moments.uniform(0, longest))
        hits += ended.hit
        longest *= 1 if ended.hit else 0.8  # it was over: the machine is faster now
        is_third = hits % 3 == 0 or hits == wanted
        if ended.hit and is_third:
            bench.require_repaired(stage)
        if is_third or ended.code == 0:
            bench.reset(stage)
        if hits == wanted:
            break
    assert hits == wanted


def end(bench: Bench, stage: Stage, number: signal.Signals, moment: float) -> Ended:
    """Send a signal so many seconds after the start; hold what is left against what is allowed."""
    kept, hidden = bench.kept(stage), set(bench.leftovers())
    ended = bench.run(stage, send(number, moment))
    outcome = bench.require(stage, ended)
    assert ended.code in {0, 1, -number}, ended
    assert ended.code >= 0 or number == signal.SIGKILL or ended.err == "", ended
    assert ended.code == 0 or kept <= bench.kept(stage), "what was finished is lost"
    if ended.code == 1:
        assert hidden >= set(bench.leftovers()), ended
    if ended.hit:
        record(number.name, stage.name, outcome)
    return ended
