"""The command: what it refuses, how it ends, what raw requests get, and 32 users at once."""

import http.client
import io
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.core.errors import ResourceError
from pipeline.download.records import read_pairs
from pipeline.index.format import Window
from pipeline.search.app.serve import address_of, is_local, listen
from pipeline.search.searcher import Searcher
from tests.conftest import ROOT, assert_clear_error, find_port, invoke, make_bomb
from tests.search.conftest import BESIDE, LOST, read_member, serving

USERS = 32


# ---- what is refused at the start


@pytest.mark.parametrize("name", ["fastapi", "uvicorn", "python_multipart"])
def test_a_missing_extra_is_named(in_tiny_run, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    assert_clear_error(invoke("app"), name, "pip install -e '.[app]'")


def test_a_port_in_use_is_named(in_tiny_run):
    port = find_port()
    with socket.create_server(("127.0.0.1", port)):
        assert_clear_error(invoke("app", "--port", str(port)), str(port), "in use", "--port")


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [
        ("192.0.2.1", 0, "cannot assign"),
        ("no.such.host.invalid", 0, ""),
        pytest.param(
            *("127.0.0.1", 1, "permission denied"),
            marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may take any port"),
        ),
    ],
)
def test_an_address_that_cannot_be_used_is_named(host, port, words):
    with pytest.raises(ResourceError, match=f"port {port} of {host} cannot be used: {words}"):
        listen(host, port)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--index", "no/index"), "no/index/manifest.json does not exist"),
        (("--pairs", "no/pairs"), "no/pairs/images.parquet does not exist"),
        (("--beside-index", "data/index"), "--beside-model is missing"),
        (("--beside-model", "data/models/0"), "--beside-index is missing"),
        (
            ("--beside-model", "data/models/0", "--beside-index", "data/index"),
            "two systems have the name data/models/0",
        ),
    ],
)
def test_what_is_missing_is_named(in_tiny_run, arguments, words):
    assert_clear_error(invoke("app", "--port", "0", *arguments), words)


def test_addresses_are_written_as_browsers_take_them():
    with listen("127.0.0.1", 0) as listener:
        assert address_of(listener, "127.0.0.1") == f"http://127.0.0.1:{listener.getsockname()[1]}"
    if socket.has_ipv6:
        with listen("::1", 0) as listener:
            assert address_of(listener, "::1") == f"http://[::1]:{listener.getsockname()[1]}"
    assert [is_local(host) for host in ("localhost", "127.8.0.1", "::1")] == [True] * 3
    assert [is_local(host) for host in ("box", "192.168.0.2")] == [False] * 2


# ---- how it ends


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_one_line(tiny_run, number):
    with serving(tiny_run) as (address, process), closing(connect(address)) as kept_open:
        kept_open.request("GET", "/health")
        assert kept_open.getresponse().read() == b'{"status":"ok"}'
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert out == ""
    lines = err.splitlines()
    assert lines[0].endswith(f"stopped by {number.name}; nothing half-written was left.")
    assert lines[0].startswith("error: ")
    assert lines[1:] == ["  fix: run the same command again."]


@pytest.mark.slow
def test_a_signal_while_it_opens_the_index_ends_it_too(tiny_run):
    command = [sys.executable, "-m", "stages.app", "--port", "0"]
    process = subprocess.Popen(
        command,
        cwd=tiny_run,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(2.5)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode in {1, -signal.SIGTERM}
    assert "Traceback" not in err


# ---- raw requests


def connect(address: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urllib.parse.urlsplit(address).netloc, timeout=60)


def fetch(
    address: str, path: str, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[int, bytes]:
    with closing(connect(address)) as connection:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()


@pytest.mark.slow
def test_hostile_requests_get_a_clear_status_and_leave_nothing(compared):
    with serving(compared) as (address, process):
        status, content = fetch(address, "/search?q=" + "x" * 100_000)
        assert (status, json.loads(content)["fix"]) == (422, "shorten it.")
        status, content = fetch(address, "/search?q=" + "%F0%9F%99%82" * 100_000)
        assert (status, "100,000" in json.loads(content)["error"]) == (422, True)
        with pytest.raises((ConnectionError, AssertionError)):  # cut off, or told and cut off
            assert fetch(address, "/search?q=" + "x" * 8_000_000)[0] != 400
        for path in ("/../../../../etc/passwd", "/static/../server.py", "/image/../../params.yaml"):
            status, content = fetch(address, path)
            assert (status, set(json.loads(content))) == (404, {"error", "fix"})
        status, content = fetch(address, "/search/image", "POST", make_bomb())
        assert (status, "huge" in json.loads(content)["error"]) == (422, True)
        status, content = fetch(address, "/search/image", "POST", b"x" * (16 * 1024**2 + 1))
        assert (status, json.loads(content)["fix"]) == (413, "use a smaller one.")
        with socket.create_connection(("127.0.0.1", urllib.parse.urlsplit(address).port)) as raw:
            raw.sendall(b"\x16\x03\x01 nothing of the kind\r\n\r\n")
            assert raw.recv(100).startswith(b"HTTP/1.1 400")
        assert fetch(address, "/health")[0] == 200
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert err.splitlines()[-2].startswith("error: app was stopped by SIGTERM")
    assert len(err.splitlines()) == 2, err


@pytest.mark.slow
def test_memory_stays_where_it_was_under_bombs(compared):
    """Pictures of many pixels are refused by their head, before they are decoded."""
    with serving(compared) as (address, process):
        bomb = make_bomb()
        fetch(address, "/search/image", "POST", bomb)  # loads the teacher
        before = resident(process.pid)
        with ThreadPoolExecutor(8) as pool:
            sent = [pool.submit(fetch, address, "/search/image", "POST", bomb) for _ in range(24)]
        assert {one.result()[0] for one in sent} == {422}
        assert resident(process.pid) - before < 100 * 1024**2, "a bomb holds 50 MB, in RGB 1.2 GB"


def resident(pid: int) -> int:
    """The most bytes that a process has held in memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


# ---- many users


@pytest.mark.slow
def test_32_users_at_once_are_all_answered_rightly(compared):
    """Each searches, looks at pictures, and some send one; `pytest -s` shows how long it took."""
    searcher = Searcher.open(compared / "data/models/0", compared / "data/index")
    pairs = read_pairs(compared / "data/pairs")
    expected = {}
    for target, query in itertools.product(("texts", "images"), pairs.captions["caption"][:40]):
        hits = searcher.search([query], target=target, window=Window(10))[0]
        fields = {"q": query, "target": target, "k": 10, "system": "first"}
        expected[f"/search?{urllib.parse.urlencode(fields)}"] = [hit.id for hit in hits]
    pictures = {
        image: read_member(pairs.folder, image)
        for image in pairs.images["image_id"][:60]
        if image != LOST
    }

    def visit(user: int) -> list[float]:
        draw, seconds = np.random.default_rng(user), []

        def ask(*request: object) -> bytes:
            begun = time.perf_counter()
            connection.request(*request)
            response = connection.getresponse()
            content = response.read()
            assert response.status == 200, content
            seconds.append(time.perf_counter() - begun)
            return content

        with closing(connect(address)) as connection:
            for path in draw.choice(sorted(expected), 12, replace=False).tolist():
                results = json.loads(ask("GET", path))["results"]
                assert [one["id"] for one in results] == expected[path]
                folder = results[0]["picture"].rpartition("/")[0]
                shown = ask("GET", f"{folder}/{draw.choice(list(pictures))}")
                assert Image.open(io.BytesIO(shown)).size == (64, 64)
            if user % 8 == 0:
                picture = pictures[int(draw.choice(list(pictures)))]
                found = json.loads(ask("POST", "/search/image?target=images&k=1", picture))
                assert found["results"][0]["score"] > 0.999
        return seconds

    with serving(compared, *BESIDE) as (address, _), ThreadPoolExecutor(USERS) as pool:
        fetch(address, "/search/image?k=1", "POST", pictures[0])  # loads the teacher
        taken = list(itertools.chain.from_iterable(pool.map(visit, range(USERS))))
    assert len(taken) == USERS * 24 + USERS // 8
    middle, late, last = np.percentile(taken, [50, 95, 100])
    sys.stdout.write(
        f"\n{USERS} users: median {middle:.3f} s, 95 % {late:.3f} s, most {last:.3f} s\n"
    )
    assert last < 60
