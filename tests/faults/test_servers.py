"""Servers that stall, reset, lie, send round in circles or are busy, one fault after another."""

import io
import random
import socket
import struct
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.core.errors import PipelineError
from pipeline.download import fetch as fetching
from pipeline.download.archives import Archive
from pipeline.download.fetch import fetch
from pipeline.download.sources import RemoteFile
from tests.faults.bench import LONGEST
from tests.faults.ledger import record, times

FILE = RemoteFile("pictures.zip", "http://127.0.0.1:9/pictures.zip", 1)


def archive() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("noise", random.Random(0).randbytes(300_000))  # noqa: S311
    return content.getvalue()


CONTENT = archive()


def stall(handler, draw):
    handler.send_content(CONTENT, cut_after=draw.randrange(len(CONTENT)))
    handler.wfile.flush()
    time.sleep(1.0)


def cut(handler, draw):
    handler.send_content(CONTENT, cut_after=draw.randrange(len(CONTENT)))


def reset(handler, draw):
    handler.send_content(CONTENT, cut_after=draw.randrange(len(CONTENT)))
    handler.wfile.flush()
    linger = struct.pack("ii", 1, 0)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.connection.close()


def lie(handler, draw):
    """Announce fewer or more bytes than follow."""
    announced = draw.choice([0, 1, len(CONTENT) // 2, len(CONTENT) + 1_000, 10 * len(CONTENT)])
    handler.send_response(200)
    handler.send_header("Content-Length", str(announced))
    handler.end_headers()
    handler.wfile.write(CONTENT)


def boast(handler, draw):
    """A range that is none, or another than was asked for."""
    said = draw.choice(["bytes 5-9/10", "bytes */3", "lines 1-2/3", f"bytes 0-9/{10**30}", ""])
    handler.send_response(draw.choice([200, 206, 416]))
    handler.send_header("Content-Range", said)
    handler.send_header("Content-Length", str(len(CONTENT)))
    handler.end_headers()
    handler.wfile.write(CONTENT)


def circle(handler, _draw):
    handler.faults.insert(0, lambda again: circle(again, None) or True)
    handler.send_response(302)
    handler.send_header("Location", handler.path)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def busy(handler, draw):
    handler.send_response(draw.choice([429, 500, 502, 503, 504]))
    after = draw.choice(["0", "1", None, "soon", "Fri, 31 Dec 1999 23:59:59 GMT", "-5"])
    if after is not None:
        handler.send_header("Retry-After", after)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def refuse(handler, draw):
    handler.send_error(draw.choice([400, 401, 403, 404, 410, 451]))


def babble(handler, draw):
    """No HTTP at all."""
    handler.wfile.write(draw.randbytes(200))


def slow(handler, _draw):
    """A few bytes at a time, and then the connection ends."""
    handler.send_content(CONTENT, cut_after=10)
    for start in range(10, 40):
        handler.wfile.write(CONTENT[start : start + 1])
        handler.wfile.flush()
        time.sleep(0.02)


FAULTS = (stall, cut, reset, lie, boast, circle, busy, refuse, babble, slow)


MET: list[str] = []
"""The faults that a client met, by name, and what went wrong in them themselves."""


def broken(fault, draw):
    """The fault as the server of tests takes it; a client that left is no error of the test."""

    def handle(handler) -> bool:
        handler.close_connection = True
        MET.append(fault.__name__)
        try:
            fault(handler, draw)
        except OSError:
            pass
        except Exception as error:  # noqa: BLE001  # else the client would see one more fault
            MET.append(repr(error))
        return True

    return handle


def require_met(*chosen) -> None:
    """The client met the first of these faults and no others, and each did what it is for."""
    names = [fault.__name__ for fault in chosen]
    assert MET[:1] == names[:1], (MET, names)
    assert set(MET) <= set(names), (MET, names)
    MET.clear()


def attempt(folder, url) -> str:
    """Fetch, and read what came: `right result`, or one clear line."""
    try:
        fetched = fetch(FILE, folder, url)
        with Archive(fetched) as opened:
            assert len(opened.read("noise")) == 300_000
    except PipelineError as error:
        return "one clear line" if "\n" not in error.what + error.fix else "several lines"
    assert fetched.read_bytes() == CONTENT
    return "right result"


@pytest.fixture
def impatient(monkeypatch):
    """Half a second without a byte is a stall here; in use it is a minute."""
    monkeypatch.setattr(fetching, "_TIMEOUT", (5, 0.5))


@pytest.mark.timeout(1800)
def test_a_bad_server(server, impatient, tmp_path):
    url, folder, handler = server
    (folder / FILE.name).write_bytes(CONTENT)
    assert attempt(tmp_path / "sound", url) == "right result"
    MET.clear()
    draw = random.Random(0)  # noqa: S311
    for number in range(times(10, 150)):
        to = tmp_path / str(number)
        chosen = [draw.choice(FAULTS) for _ in range(draw.choice([1, 1, 2, 4]))]
        chosen[0] = FAULTS[number % len(FAULTS)]
        handler.faults[:] = [broken(fault, draw) for fault in chosen]
        begun = time.monotonic()
        outcome = attempt(to, url)
        assert time.monotonic() - begun < LONGEST, chosen
        require_met(*chosen)
        assert outcome in {"right result", "one clear line"}
        for fault in chosen:
            record(f"server: {fault.__name__}", "download", outcome)
        handler.faults.clear()
        if outcome != "right result":
            for name in (FILE.name, fetching.CHECKSUMS):  # as the message says
                (to / name).unlink(missing_ok=True)
            assert attempt(to, url) == "right result", chosen


def test_two_fetches_at_once(server, tmp_path):
    """They take turns; neither appends to what the other one writes."""
    url, folder, handler = server
    (folder / FILE.name).write_bytes(CONTENT)
    for number in range(times(1, 20)):
        handler.faults[:] = [broken(slow, None)] * 2
        with ThreadPoolExecutor(2) as pool:
            outcomes = list(pool.map(attempt, [tmp_path / str(number)] * 2, [url] * 2))
        assert outcomes == ["right result"] * 2
        require_met(slow)
        record("two at once", "download", "right result", 2)


def test_a_server_that_wants_to_be_left_alone(server, tmp_path):
    """For a day: that is said at once, not slept through."""
    url, folder, handler = server
    (folder / FILE.name).write_bytes(CONTENT)

    def tomorrow(handler, _draw):
        handler.send_response(429)
        handler.send_header("Retry-After", "86400")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    handler.faults[:] = [broken(tomorrow, None)]
    with pytest.raises(PipelineError, match="86,400 s") as error:
        fetch(FILE, tmp_path / "to", url)
    assert "again" in error.value.fix
    record("server: Retry-After of a day", "download", "one clear line")
