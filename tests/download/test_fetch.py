"""Fetching, against a loopback server."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from pipeline.core.errors import DownloadError
from pipeline.download.fetch import fetch
from pipeline.download.sources import RemoteFile
from tests.conftest import ROOT

CONTENT = bytes(range(256)) * 4096
FILE = RemoteFile("file.bin", "http://127.0.0.1:9/file.bin", 1)


@pytest.fixture
def served(server):
    url, folder, handler = server
    (folder / "file.bin").write_bytes(CONTENT)
    return url, folder, handler


def test_a_file_arrives_whole_and_is_recorded(served, tmp_path):
    url, _, _ = served
    fetched = fetch(FILE, tmp_path / "to", url)
    assert fetched.path.read_bytes() == CONTENT
    recorded = json.loads((tmp_path / "to/checksums.json").read_text())
    assert recorded["file.bin"] == {"sha256": fetched.sha256, "address": f"{url}/file.bin"}
    assert sorted(p.name for p in (tmp_path / "to").iterdir()) == ["checksums.json", "file.bin"]


def test_a_second_fetch_transfers_nothing(served, tmp_path):
    url, _, handler = served
    fetch(FILE, tmp_path / "to", url)
    before = len(handler.requests)
    fetch(FILE, tmp_path / "to", url)
    assert len(handler.requests) == before


def test_a_broken_transfer_goes_on_where_it_stopped(served, tmp_path):
    url, _, handler = served
    handler.faults += [lambda h: h.send_content(CONTENT, cut_after=300_000) or True]
    assert fetch(FILE, tmp_path / "to", url).path.read_bytes() == CONTENT
    (_, first), (_, second) = handler.requests
    assert first is None
    assert second is not None
    assert 0 < int(second.removeprefix("bytes=").rstrip("-")) <= 300_000


def leave_part(folder, content: bytes, url: str) -> None:
    """What a broken transfer leaves."""
    (folder / "file.bin.part").write_bytes(content)
    note = {"address": f"{url}/file.bin", "validator": None}
    (folder / "file.bin.part.json").write_text(json.dumps(note))


def test_a_part_from_an_earlier_run_is_used(served, tmp_path):
    url, _, handler = served
    (tmp_path / "to").mkdir()
    leave_part(tmp_path / "to", CONTENT[:1000], url)
    assert fetch(FILE, tmp_path / "to", url).path.read_bytes() == CONTENT
    assert handler.requests == [("/file.bin", "bytes=1000-")]


def test_a_complete_part_is_used(served, tmp_path):
    url, _, _ = served
    (tmp_path / "to").mkdir()
    leave_part(tmp_path / "to", CONTENT, url)
    assert fetch(FILE, tmp_path / "to", url).path.read_bytes() == CONTENT


def test_a_part_of_another_address_is_not_continued(served, tmp_path):
    url, _, _ = served
    (tmp_path / "to").mkdir()
    leave_part(tmp_path / "to", b"A" * 400, "http://elsewhere")
    assert fetch(FILE, tmp_path / "to", url).path.read_bytes() == CONTENT
    assert not list((tmp_path / "to").glob("*.part*"))


def test_a_file_that_changed_since_the_break_starts_again(served, tmp_path):
    """The server answers an If-Range that no longer holds with the whole file."""
    url, _, handler = served
    (tmp_path / "to").mkdir()
    leave_part(tmp_path / "to", b"A" * 400, url)
    note = {"address": f"{url}/file.bin", "validator": '"old"'}
    (tmp_path / "to/file.bin.part.json").write_text(json.dumps(note))
    asked = []

    def whole(h) -> bool:
        asked.append(h.headers.get("If-Range"))
        del h.headers["Range"]
        h.send_content(CONTENT)
        return True

    handler.faults.append(whole)
    assert fetch(FILE, tmp_path / "to", url).path.read_bytes() == CONTENT
    assert asked == ['"old"']


def test_a_source_that_changed_is_noticed_also_after_a_delete(tmp_path):
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "file.bin").write_bytes(b"one")
    fetched = fetch(FILE, tmp_path / "to", str(mirror))
    fetched.path.unlink()
    (mirror / "file.bin").write_bytes(b"two")
    with pytest.raises(DownloadError, match="recorded at its first use") as error:
        fetch(FILE, tmp_path / "to", str(mirror))
    assert "checksums.json" in error.value.fix
    assert not fetched.path.exists()


def busy(handler) -> bool:
    handler.send_response(503)
    handler.send_header("Retry-After", "0")
    handler.send_header("Content-Length", "0")
    handler.end_headers()
    return True


def test_a_busy_server_is_asked_again(served, tmp_path):
    url, _, handler = served
    handler.faults += [busy, busy]
    assert fetch(FILE, tmp_path / "to", url).path.read_bytes() == CONTENT


def test_a_missing_file_is_one_clear_error(served, tmp_path):
    url, _, _ = served
    with pytest.raises(DownloadError, match="404") as error:
        fetch(RemoteFile("none.bin", "", 1), tmp_path / "to", url)
    assert "DATA_MIRROR" in error.value.fix
    assert not (tmp_path / "to/none.bin").exists()


def test_changed_bytes_on_disk_are_noticed(served, tmp_path):
    url, _, _ = served
    fetch(FILE, tmp_path / "to", url).path.write_bytes(b"rot")
    with pytest.raises(DownloadError, match="was recorded at its first use"):
        fetch(FILE, tmp_path / "to", url)


def test_a_server_that_never_delivers_gives_up(served, tmp_path):
    url, _, handler = served
    handler.faults += [lambda h: h.send_content(CONTENT, cut_after=0) or True] * 5
    with pytest.raises(DownloadError, match="could not be downloaded"):
        fetch(FILE, tmp_path / "to", url)


def test_a_mirror_folder_serves_by_name(tmp_path):
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror/file.bin").write_bytes(CONTENT)
    fetched = fetch(FILE, tmp_path / "to", str(tmp_path / "mirror"))
    assert fetched.path.read_bytes() == CONTENT
    with pytest.raises(DownloadError, match=r"holds no none\.bin"):
        fetch(RemoteFile("none.bin", "", 1), tmp_path / "to", str(tmp_path / "mirror"))


def test_switching_the_mirror_fetches_anew(served, tmp_path):
    url, _, _ = served
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror/file.bin").write_bytes(b"other")
    fetch(FILE, tmp_path / "to", str(tmp_path / "mirror"))
    assert fetch(FILE, tmp_path / "to", url).path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("name", "words"), [("file.bin", "fetched"), ("none.bin", "could not be downloaded")]
)
def test_hub_files_come_through_the_hub_library(hub, tmp_path, name, words):
    """In a process of its own: the hub's library reads its endpoint once, at import."""
    hub.datasets["org/name"] = {"file.bin": CONTENT}
    code = (
        "import sys; from pathlib import Path\n"
        "from pipeline.download.fetch import fetch\n"
        "from pipeline.download.sources import RemoteFile\n"
        "from pipeline.core.errors import DownloadError\n"
        f"file = RemoteFile({name!r}, 'hf://datasets/org/name/{name}', 1)\n"
        "try:\n"
        "    print('fetched', fetch(file, Path(sys.argv[1]), None).sha256)\n"
        "except DownloadError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "to")],
        cwd=ROOT,
        env=os.environ
        | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert words in result.stdout, result.stdout + result.stderr
    if words == "fetched":
        assert hashlib.sha256(CONTENT).hexdigest() in result.stdout
        assert (tmp_path / "to/file.bin").read_bytes() == CONTENT
