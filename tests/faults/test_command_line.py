"""Commands at a bad place: stopped at their start, no stream to write to, no letter for a name."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.faults.ledger import record, times

pytestmark = pytest.mark.integration

BODY = """
import errno, os, sys
from pipeline.core.errors import InputError
from stages._cli import run_stage

def main() -> None:
    {body}

app = run_stage(main)
if __name__ == "__main__":
    app()
"""


def command(folder: Path, body: str) -> list[str]:
    """A command of the project's own kind whose body is `body`."""
    script = folder / "stage.py"
    script.write_text(BODY.format(body=body), encoding="utf-8")
    return [sys.executable, str(script)]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def run(arguments: list[str], **settings) -> subprocess.CompletedProcess:
    settings = {"capture_output": True, "env": environment(), "timeout": 60, **settings}
    return subprocess.run(arguments, check=False, **settings)


def assert_one_line(stderr: bytes, *words: str) -> None:
    lines = stderr.decode().splitlines()
    assert lines[-2].startswith("error: "), stderr
    assert lines[-1].startswith("  fix: "), stderr
    assert b"Traceback" not in stderr
    for word in words:
        assert word in lines[-2], stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_modules_are_imported(number):
    count = times(2, 20)
    for attempt in range(count):
        with subprocess.Popen(
            [sys.executable, "-X", "importtime", "-m", "stages.train"],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as process:
            while not process.stderr.readline().endswith(b" stages\n"):
                assert process.poll() is None
            time.sleep(attempt / count)
            process.send_signal(number)
            stderr = process.stderr.read()
        assert process.returncode == 1
        assert_one_line(stderr, f"train was stopped by {number.name}")
    record(f"{number.name} while modules are imported", "train", "one clear line", count)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("(lambda f: f(f))(lambda f: f(f))", "unexpected RecursionError"),
        ("bytearray(1 << 60)", "memory ran out."),
        ("raise InputError('two\\nlines \\x1b[31m', 'none')", "two lines \\x1b[31m"),
        ("raise OSError(errno.EIO, 'x')", "the output could not be written: input/output error."),
    ],
)
def test_an_error_of_any_kind_is_one_line(tmp_path, body, words):
    sound = run(command(tmp_path, "print('sound')"))
    assert (sound.returncode, sound.stdout, sound.stderr) == (0, b"sound\n", b"")
    result = run(command(tmp_path, body))
    assert result.returncode == 1
    assert_one_line(result.stderr, words)
    record(words, "any command", "one clear line")


@pytest.mark.parametrize("language", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}, {}])
def test_what_a_terminal_has_no_letter_for_is_escaped(tmp_path, language):
    env = environment(PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", **language)
    told = run(command(tmp_path, "print('caf\u00e9 \\udcff')"), env=env)
    assert (told.returncode, told.stderr) == (0, b"")
    assert b"\\udcff" in told.stdout
    failed = run(command(tmp_path, "raise InputError('\u6771 \\udcff', '\u00e9')"), env=env)
    assert failed.returncode == 1
    assert_one_line(failed.stderr, "\\udcff")
    record("terminal without the letters", "any command", "right result")


def run_closed(numbers: tuple[int, ...], *arguments: str) -> subprocess.CompletedProcess:
    """A real command whose standard streams `numbers` are closed."""
    closes = " ".join(f"{number}>&-" for number in numbers)
    script = f'exec "$@" {closes}'
    return run(["sh", "-c", script, "sh", sys.executable, "-m", *arguments], cwd=ROOT)


@pytest.mark.parametrize("numbers", [(1,), (2,), (1, 2)])
def test_closed_streams_take_nothing_from_the_result(tmp_path, numbers):
    target = tmp_path / "schema.json"
    done = run_closed(numbers, "stages.schema", "--out", str(target))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert target.read_bytes() == (ROOT / "params.schema.json").read_bytes()
    failed = run_closed(numbers, "stages.schema", "--out", "/proc/none/schema.json")
    assert failed.returncode == 1
    if 2 not in numbers:
        assert_one_line(failed.stderr, "/proc/none")
    record("closed standard stream", "schema", "right result")
    said = "exit code 1, silently" if 2 in numbers else "one clear line"
    record("closed standard stream", "schema", said)


def test_a_library_does_not_print_into_a_file_of_ours(tmp_path):
    """With stderr closed, the next file to be opened would be number 2."""
    code = "import {module}, os; file = open('kept', 'wb'); os.write(2, b'noise'); file.close()"
    script = 'exec "$@" 2>&-'
    for module, kept in (("sys", b"noise"), ("stages", b"")):
        mine = f"import sys; sys.argv[0] = '-m'\n{code.format(module=module)}\n"
        (tmp_path / "mine.py").write_text(mine)
        run(["sh", "-c", script, "sh", sys.executable, "mine.py"], cwd=tmp_path)
        assert (tmp_path / "kept").read_bytes() == kept


def test_a_full_disk_behind_stdout():
    with Path("/dev/full").open("w") as full:
        result = run(
            [sys.executable, "-m", "stages.schema"],
            cwd=ROOT,
            capture_output=False,
            stdout=full,
            stderr=subprocess.PIPE,
        )
    assert result.returncode == 1
    assert_one_line(result.stderr, "the output could not be written: no space left on device.")
    record("full disk behind stdout", "schema", "one clear line")


def test_a_reader_that_went_away():
    reader, writer = os.pipe()
    os.close(reader)
    result = run(
        [sys.executable, "-m", "stages.schema"],
        cwd=ROOT,
        capture_output=False,
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    assert (result.returncode, result.stderr) == (1, b"")
    record("reader of stdout gone", "schema", "exit code 1, silently")
