"""Two runs of one command at once, in one folder."""

import pytest

from tests.faults.bench import STAGES, Bench
from tests.faults.ledger import record, times
from tests.faults.zygote import Order, Zygote


@pytest.fixture(scope="module")
def second():
    with Zygote() as zygote:
        yield zygote


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_two_at_once(bench, second, tmp_path, stage):
    other = Bench(bench.folder, second, tmp_path / "prints", bench.content, bench.seconds)
    other.prints.mkdir()
    for _ in range(times(1, 10)):
        bench.reset(stage)
        order = Order(stage.name, stage.arguments, str(bench.folder), str(other.prints))
        second.start(order)
        first = bench.run(stage)
        code = second.wait()
        assert code == 0, (other.prints / "err").read_text()
        assert first.code == 0, first
        record("two at once", stage.name, bench.require(stage, first), 2)
        assert not bench.leftovers()
