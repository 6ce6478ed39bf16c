"""What holds readers against mutated bytes can fail itself, and then says so."""

import dataclasses
import os
import signal

import pytest

from pipeline.core.checksums import CHECKSUMS, verify_checksums, write_checksums
from pipeline.core.errors import InputError
from tests.faults.fuzz.runner import CLEAR, HELD, READ, RIGHT, BrokenTestError, Target, account, run
from tests.faults.fuzz.targets import put

WORD = b"hundred and one words"


def read_word(folder):
    """Of one kind of byte it says what is wrong, with others it goes on."""
    content = (folder / "word").read_bytes()
    if b"\xff" in content or b"\0" in content:
        raise InputError("it holds a byte that is no letter.", "take it out.")
    return content


SOUND = Target("word", "nowhere", [WORD], [WORD], put("word"), read_word)
CASES = range(60)


def but(**changes) -> Target:
    return dataclasses.replace(SOUND, **changes)


def test_results_and_lines_are_counted(tmp_path):
    outcome = run(SOUND, CASES, tmp_path)
    assert not outcome.findings
    assert set(outcome.counts) == {RIGHT, CLEAR}
    assert outcome.counts.total() == len(CASES)
    assert set(account(SOUND, outcome)) == {READ, CLEAR}


@pytest.mark.parametrize(
    "wrong",
    [
        but(expected=[b"another"]),
        but(read=lambda folder: 1 / 0),
        but(read=lambda folder: os.kill(os.getpid(), signal.SIGKILL)),
        but(accepts=lambda found: False),
        but(expected=[]),
    ],
    ids=["wrong result", "error", "death", "not accepted", "nothing expected"],
)
def test_sound_bytes_must_give_what_is_expected_of_them(tmp_path, wrong):
    with pytest.raises(BrokenTestError, match="word"):
        run(wrong, CASES, tmp_path)


@pytest.mark.parametrize("error", [InputError("what", "fix"), TypeError("harness")])
def test_an_error_before_the_reader_is_no_outcome(tmp_path, error):
    def place(folder, content):
        put("word")(folder, content)
        if content != WORD:
            raise error

    with pytest.raises(BrokenTestError, match=r"what|harness"):
        run(but(place=place), CASES, tmp_path)


def sealed(*, again: bool, **more) -> Target:
    """A reader behind a checksum; sealed again behind the change, or not."""

    def place(folder, content):
        put("word")(folder, content)
        if again or not (folder / CHECKSUMS).exists():
            write_checksums(folder, "word")

    def read(folder):
        verify_checksums(folder, "word", fix="mend")
        return read_word(folder)

    return but(place=place, read=read, **more)


def test_some_case_must_get_past_the_checksum(tmp_path):
    for number, target in enumerate((sealed(again=True), sealed(again=False, guarded=True))):
        folder = tmp_path / str(number)
        folder.mkdir()
        outcome = run(target, CASES, folder)
        assert (outcome.counts[HELD] > 0) == target.guarded, outcome
        assert outcome.counts.total() == len(CASES)
    with pytest.raises(BrokenTestError, match="no case got past the checksum"):
        run(sealed(again=False), range(8), folder)


def test_what_a_reader_must_not_do_is_found(tmp_path):
    def read(folder):
        content = read_word(folder)
        if content.startswith(WORD[:3]):
            return content
        if content < WORD:
            raise UnicodeDecodeError("utf-8", b"", 0, 1, "raw")
        return os.kill(os.getpid(), signal.SIGKILL)

    outcome = run(but(read=read, accepts=lambda found: found == WORD), CASES, tmp_path)
    said = " ".join(outcome.findings)
    for words in ("UnicodeDecodeError", "a wrong result", "SIGKILL"):
        assert words in said
    assert len(outcome.findings) + outcome.counts.total() == len(CASES)
