"""One zygote and one finished folder for all tests of faults."""

from collections.abc import Iterator

import pytest

from tests.faults.bench import Bench
from tests.faults.zygote import Zygote


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    with Zygote() as zygote:
        yield zygote


@pytest.fixture(scope="session")
def finished(zygote, tmp_path_factory) -> Bench:
    """All stages, run undisturbed; do not change it."""
    folders = [tmp_path_factory.mktemp(name) for name in ("finished", "prints")]
    bench = Bench(folders[0], zygote, folders[1])
    bench.prepare()
    return bench


@pytest.fixture
def bench(finished, tmp_path) -> Bench:
    """A copy to break."""
    return finished.copy(tmp_path / "bench")
