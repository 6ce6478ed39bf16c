"""Files are whole or absent whatever happens; work in batches keeps its order."""

import errno
import os
import resource
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.batching import ahead, fetched, length_batches
from pipeline.core.errors import InterruptedRunError, ResourceError
from pipeline.core.files import (
    atomic_file,
    atomic_folder,
    reports_unreadable,
    save_array,
    write_json,
)
from pipeline.core.signals import ends_on_signal


@pytest.mark.parametrize("atomic", [atomic_file, atomic_folder])
def test_what_is_replaced_is_whole_or_as_it_was(tmp_path, atomic):
    target = tmp_path / "deep" / "target"

    def write(path, text):
        (path if atomic is atomic_file else path / "file").write_text(text)

    for text in ("zero", "one"):
        with atomic(target) as temporary:
            write(temporary, text)
            assert target.exists() == (text == "one")
    with pytest.raises(KeyError), atomic(target) as temporary:
        write(temporary, "two")
        raise KeyError
    assert (target if atomic is atomic_file else target / "file").read_text() == "one"
    assert list(target.parent.iterdir()) == [target]


@pytest.fixture(params=[True, False], ids=["exchanged", "moved aside"])
def exchanges(request, monkeypatch):
    """Whether the system can exchange two folders."""
    if not request.param:
        monkeypatch.setattr("pipeline.core.files._exchange", lambda _one, _other: False)
    return request.param


@pytest.mark.skipif(sys.platform != "linux", reason="NOT LINUX: no exchange of folders")
def test_a_folder_is_there_also_while_it_is_replaced(tmp_path):
    """Others read it meanwhile, such as another run of the same command."""
    target = tmp_path / "folder"

    def replace() -> None:
        with atomic_folder(target) as temporary:
            (temporary / "a").touch()

    replace()
    with ThreadPoolExecutor(1) as pool:
        replaced = pool.submit(lambda: [replace() for _ in range(50)])
        while not replaced.done():
            assert os.access(target / "a", os.F_OK)
    replaced.result()


@pytest.mark.usefixtures("exchanges")
@pytest.mark.parametrize("kind", ["file", "full folder", "link to a folder"])
def test_a_folder_takes_the_place_of_anything(tmp_path, kind):
    target, other = tmp_path / "target", tmp_path / "other"
    (other / "deep").mkdir(parents=True)
    if kind == "file":
        target.touch()
    elif kind == "link to a folder":
        target.symlink_to(other)
    else:
        (target / "deep" / "old").mkdir(parents=True)
    with atomic_folder(target) as temporary:
        (temporary / "new").touch()
    assert not target.is_symlink()
    assert [path.name for path in target.iterdir()] == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "target"]
    assert (other / "deep").is_dir()


@pytest.mark.usefixtures("exchanges")
def test_many_at_once_leave_one_whole_folder(tmp_path):
    """Whoever comes last is the one that stays; nobody fails, and nothing else is left."""
    target = tmp_path / "folder"

    def write(number: int) -> None:
        with atomic_folder(target) as temporary:
            for name in ("a", "b"):
                (temporary / name).write_text(str(number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(100)))
    assert len({(target / name).read_text() for name in ("a", "b")}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_full_disk_has_a_remedy_also_under_numpy_which_hides_it(tmp_path):
    with (
        pytest.raises(ResourceError, match="no space left") as error,
        atomic_file(tmp_path / "x") as path,
    ):
        path.unlink()
        path.symlink_to("/dev/full")
        save_array(path, np.zeros(100_000))
    assert "free some space" in error.value.fix
    assert not list(tmp_path.iterdir())


def test_a_file_size_limit_leaves_nothing_half_written(tmp_path):
    """The kernel itself refuses to go on writing, in the middle of the file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(ResourceError, match="could not be written"):
            write_json(tmp_path / "file", "x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("code", "fix"), [(errno.EACCES, "make it readable"), (errno.EMFILE, "raise `ulimit -n`")]
)
def test_a_file_that_cannot_be_read_has_a_remedy(code, fix):
    words = r"a\.zip cannot be read: \w+"
    with pytest.raises(ResourceError, match=words) as error, reports_unreadable("a.zip"):
        raise OSError(code, "no")
    assert error.value.fix.startswith(fix)


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "metrics.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())


@given(
    lengths=st.lists(st.integers(0, 40), max_size=60),
    batch_size=st.integers(1, 9),
    most=st.none() | st.integers(1, 100),
)
def test_length_batches_hold_every_row_once_the_longest_first(lengths, batch_size, most):
    batches = [list(rows) for rows in length_batches(lengths, batch_size, most=most)]
    rows = [row for batch in batches for row in batch]
    assert sorted(rows) == list(range(len(lengths)))
    in_order = [lengths[row] for row in rows]
    assert in_order == sorted(lengths, reverse=True)
    for batch in batches:
        padded = len(batch) * max(lengths[row] for row in batch)
        assert 1 <= len(batch) <= batch_size
        assert most is None or len(batch) == 1 or padded <= most
    if most is None:
        assert len(batches) == -(-len(lengths) // batch_size)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_ahead_maps_in_order_and_no_further_than_it_may(threads):
    started = []

    def invert(number):
        started.append(number)
        return 1 / (7 - number)

    results = ahead(invert, range(1000), threads=threads, depth=4)
    assert [next(results) for _ in range(3)] == [1 / 7, 1 / 6, 1 / 5]
    time.sleep(0.05)
    assert len(started) <= 3 + 4 + 1
    assert [next(results) for _ in range(4)] == [1 / 4, 1 / 3, 1 / 2, 1]
    with pytest.raises(ZeroDivisionError):  # where the result would be
        next(results)
    time.sleep(0.05)
    assert len(started) <= 8 + 4 + 1


def test_ahead_that_is_closed_starts_nothing_more():
    started = []
    results = ahead(started.append, range(1000), threads=1, depth=2)
    next(results)
    results.close()
    count = len(started)
    time.sleep(0.05)
    assert len(started) <= count + 1 < 1000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_that_a_library_swallows_ends_the_run_before_anything_is_renamed(tmp_path, number):
    def swallow() -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        except BaseException:  # noqa: BLE001  # as native code does that calls Python back
            return

    with pytest.raises(InterruptedRunError, match=number.name), ends_on_signal("stage"):
        swallow()
        with atomic_file(tmp_path / "file") as temporary:
            temporary.write_text("made after the stop")
    with pytest.raises(InterruptedRunError, match=number.name), ends_on_signal("stage"):
        swallow()
    assert list(tmp_path.iterdir()) == []
    with ends_on_signal("stage"), atomic_folder(tmp_path / "folder"):
        pass  # another run in this process is not stopped
    assert (tmp_path / "folder").is_dir()


def test_a_stop_in_a_destructor_ends_the_run_without_a_traceback(monkeypatch):
    """Python swallows what `__del__` raises, and prints it."""

    class Loud:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    class Broken:
        def __del__(self):
            raise ValueError

    printed = []
    monkeypatch.setattr(sys, "unraisablehook", lambda given: printed.append(given.exc_type))
    with pytest.raises(InterruptedRunError, match="stopped by SIGTERM"), ends_on_signal("x"):
        Broken()
        Loud()
    assert printed == [ValueError]
    Broken()
    assert printed == [ValueError, ValueError]


def test_fetched_waits_for_one_when_the_next_is_on_its_way():
    begun: list[int] = []

    def make():
        for number in range(3):
            begun.append(number)
            yield torch.full((2,), float(number))

    seen = [(value.tolist(), len(begun)) for value in fetched(make())]
    assert seen == [([0.0, 0.0], 2), ([1.0, 1.0], 3), ([2.0, 2.0], 3)]
    assert list(fetched(iter(()))) == []


@pytest.mark.gpu
def test_fetched_gives_what_the_gpu_computed():
    values = [torch.randn(1000, 1000, device="cuda") for _ in range(4)]
    for value, there in zip(values, fetched(value @ value for value in values), strict=True):
        assert torch.equal(there, (value @ value).cpu())
