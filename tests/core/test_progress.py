"""Progress on a terminal moves; in a log it is a line every few seconds."""

import io
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from tqdm import tqdm

from pipeline.core import progress as shown
from pipeline.core.progress import counter, end_bars, progress
from tests.conftest import ROOT


@pytest.fixture
def log(monkeypatch, capsys) -> Callable[[], str]:
    """What was written to stderr, which is not a terminal, with short intervals."""
    monkeypatch.setattr(shown, "INTERVAL", 0.05)
    return lambda: capsys.readouterr().err


def slowly(count: int):
    for number in range(count):
        time.sleep(0.004)
        yield number


def test_a_log_gets_a_line_an_interval_and_one_at_the_end(log):
    begun = time.monotonic()
    assert list(progress(slowly(50), what="images", unit="image", total=50)) == list(range(50))
    intervals = (time.monotonic() - begun) / shown.INTERVAL
    text = log()
    assert text.endswith("\n")
    *between, last = text.splitlines()
    assert 1 <= len(between) <= intervals
    for line in between:
        assert re.fullmatch(r"images: \d+/50 image, +[\d.]+image/s, 00:00 left", line), line
    assert re.fullmatch(r"images: 50/50 image in 00:00, +[\d.]+image/s", last)
    assert not set("\r\x1b") & set(text)


def test_neither_postfixes_nor_messages_make_more_lines(log):
    with counter("training", "step", 500) as bar:
        for number in range(500):
            bar.update()
            bar.set_postfix(loss=f"{number}")
        with shown.tqdm.external_write_mode(sys.stderr):
            sys.stderr.write("10:00:00 train: a message\n")
    *between, last = log().splitlines()
    assert between[-1] == "10:00:00 train: a message"
    assert last.startswith("training: 500/500 step in")
    assert last.endswith("step/s, loss=499")
    assert len(between) <= 3


def test_what_an_error_left_open_ends_with_a_line(log):
    bar = counter("training", "step", 5)
    bar.update(2)
    end_bars()
    bar.close()
    (line,) = log().splitlines()
    assert line.startswith("training: 2/5 step in 00:00")


def test_bytes_of_an_unknown_total_and_a_bar_that_is_not_shown(log):
    assert list(progress(range(3), what="x", unit="y", show=False)) == [0, 1, 2]
    with counter("x.zip", "B", None) as bar:
        bar.update(5_000_000)
    assert log().startswith("x.zip: 5.00M/? B in 00:00")


def test_a_terminal_has_a_bar_that_moves(monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", stream)
    list(progress(range(3), what="images", unit="image"))
    assert stream.getvalue().startswith("\rimages:   0%|")
    assert stream.getvalue().count("\n") == 1


@pytest.mark.parametrize("given", [None, "3"])
def test_bars_of_libraries_are_rare_in_the_log_of_a_command(tmp_path, given):
    (tmp_path / "probe.py").write_text(
        "import stages, tqdm; bar = tqdm.tqdm(range(3)); print(bar.mininterval)"
    )
    variables = {"PYTHONPATH": f"{tmp_path}:{ROOT}"} | (
        {"TQDM_MININTERVAL": given} if given else {}
    )
    code = "import sys; sys.argv[0] = '-m'; import probe"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    assert float(done.stdout) == float(given or 10)


@pytest.mark.timeout(20)
def test_a_forked_process_that_is_killed_within_a_bar_blocks_no_other():
    def die() -> None:
        with tqdm.get_lock():
            os.kill(os.getpid(), signal.SIGKILL)

    assert list(progress(range(3), what="rows", unit="row")) == [0, 1, 2]
    forked = multiprocessing.get_context("fork").Process(target=die)
    forked.start()
    forked.join()
    assert forked.exitcode == -signal.SIGKILL
    assert list(progress(range(3), what="rows", unit="row")) == [0, 1, 2]
