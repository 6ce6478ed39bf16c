"""Text that was params.yaml: read as it stands, or refused in one line, and nothing else."""

import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.core.errors import ParamsError
from pipeline.params.block import load_params
from pipeline.params.schema import Params
from tests.conftest import ROOT, read_default_params
from tests.faults.ledger import record, times

TEXT = (ROOT / "params.yaml").read_bytes()
STEPS = times(100, 20_000)
LONGEST_SECONDS = 10
FRAGMENTS = [
    *(b"\t", b"\n", b"\r", b"\0", b"\x1b[31m", b"\xff", b"\xef\xbb\xbf", b"\xe2\x80\xa8"),
    *(b":", b": ", b"- ", b"? ", b"#", b"&a ", b"*a", b"<<: *a\n", b"!", b"!!python/object:os.x "),
    *(
        b"!!int ",
        b"!!binary ",
        b"%YAML 1.1\n---\n",
        b"---\n",
        b"...\n",
        b"|\n",
        b">-\n",
        b"'",
        b'"',
    ),
    *(b"[", b"]", b"{", b"}", b"[" * 2000, b"{a: " * 50, b"- " * 2000, b'"\\U00110000"'),
    *(b"1e999", b"-1", b"0x" + b"f" * 5000, b"9" * 5000, b".inf", b".nan", b"1_000", b"1e-5"),
    *(b"0o9", b"1:30", b"2001-99-01", b"2001-01-01T99:00:00Z", b"null", b"~", b"off", b"yes"),
    b"loss:\n  margin: 1\n",
    b"a: &a [x, x]\nb: &b [*a, *a]\n",
]
EDITS = st.lists(
    st.tuples(
        st.integers(0, len(TEXT)),
        st.one_of(st.just(0), st.integers(0, 40), st.integers(0, len(TEXT))),
        st.one_of(st.just(b""), st.sampled_from(FRAGMENTS), st.binary(max_size=8)),
    ),
    min_size=1,
    max_size=6,
)


def edited(edits: list[tuple[int, int, bytes]]) -> bytes:
    text = TEXT
    for start, length, new in edits:
        text = text[:start] + new + text[start + length :]
    return text


def outcome(path: Path) -> str:
    """`right result` for params that are valid when they are checked again, or the line."""
    started = time.process_time()  # of this process alone: machines are shared
    fault, params = None, None
    try:
        params = load_params(path, Params)
    except ParamsError as error:
        fault = error
    assert time.process_time() - started < LONGEST_SECONDS
    if fault is None:
        assert Params.model_validate(params.model_dump()) == params
        return "right result"
    assert (fault.what + fault.fix).isprintable()
    assert len(fault.what) < 10_000
    return "one clear line"


@pytest.mark.timeout(1800)
def test_mutated_text_is_valid_or_refused_in_one_line(tmp_path):
    sound = tmp_path / "params.yaml"
    sound.write_bytes(TEXT)
    assert outcome(sound) == "right result"
    assert load_params(sound, Params).model_dump(mode="json") == read_default_params()
    outcomes: list[str] = []

    @settings(max_examples=STEPS, suppress_health_check=[HealthCheck.too_slow])
    @given(EDITS)
    def mutate(edits: list[tuple[int, int, bytes]]) -> None:
        path = tmp_path / "params.yaml"
        path.write_bytes(edited(edits))
        outcomes.append(outcome(path))

    mutate()
    assert set(outcomes) == {"right result", "one clear line"}
    for kind in sorted(set(outcomes)):
        record("mutated params.yaml", "params", kind, outcomes.count(kind))
