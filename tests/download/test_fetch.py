"""Fetching, against a loopback server."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.core.errors import DownloadError
from pipeline.download.fetch import fetch
from pipeline.download.sources import SOURCES, RemoteFile

CONTENT = bytes(range(256)) * 4096
FILE = RemoteFile("file.bin", "http://127.0.0.1:9/file.bin", 1)


@pytest.fixture
def served(server):
    url, folder, handler = server
    (folder / "file.bin").write_bytes(CONTENT)
    return url, handler


def mirror(folder: Path, content: bytes) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "file.bin").write_bytes(content)
    return str(folder)


def test_a_file_arrives_whole_is_recorded_and_fetched_once(served, tmp_path):
    url, handler = served
    fetched = fetch(FILE, tmp_path / "to", url)
    assert fetched.read_bytes() == CONTENT
    recorded = json.loads((tmp_path / "to/checksums.json").read_text())
    assert recorded == {f"file.bin {url}/file.bin": hashlib.sha256(CONTENT).hexdigest()}
    assert sorted(p.name for p in (tmp_path / "to").iterdir()) == ["checksums.json", "file.bin"]
    assert fetch(FILE, tmp_path / "to", url) == fetched
    assert len(handler.requests) == 1
    fetched.write_bytes(b"rot")
    with pytest.raises(DownloadError, match="was recorded at its first use"):
        fetch(FILE, tmp_path / "to", url)


def test_a_broken_transfer_resumes(served, tmp_path):
    url, handler = served
    handler.faults += [lambda h: h.send_content(CONTENT, cut_after=300_000) or True]
    assert fetch(FILE, tmp_path / "to", url).read_bytes() == CONTENT
    (_, first), (_, second) = handler.requests
    assert first is None
    assert 0 < int(second.removeprefix("bytes=").rstrip("-")) <= 300_000


@pytest.mark.parametrize(
    ("part", "address", "asked"),
    [
        (CONTENT[:1000], "{}/file.bin", "bytes=1000-"),
        (CONTENT, "{}/file.bin", f"bytes={len(CONTENT)}-"),
        (b"A" * 400, "http://elsewhere", None),
    ],
)
def test_a_part_of_an_earlier_run_is_used_if_it_is_of_the_same_address(
    served, tmp_path, part, address, asked
):
    url, handler = served
    leave_part(tmp_path / "to", part, address.format(url))
    assert fetch(FILE, tmp_path / "to", url).read_bytes() == CONTENT
    assert handler.requests == [("/file.bin", asked)]
    assert not list((tmp_path / "to").glob("*.part*"))


def leave_part(folder: Path, content: bytes, address: str, validator: str | None = None) -> None:
    """What a broken transfer leaves."""
    folder.mkdir()
    (folder / "file.bin.part").write_bytes(content)
    note = {"address": address, "validator": validator}
    (folder / "file.bin.part.json").write_text(json.dumps(note))


def test_a_file_that_changed_since_the_break_starts_again(served, tmp_path):
    """The server answers an If-Range that no longer holds with the whole file."""
    url, handler = served
    leave_part(tmp_path / "to", b"A" * 400, f"{url}/file.bin", '"old"')
    asked = []

    def whole(h) -> bool:
        asked.append(h.headers.get("If-Range"))
        del h.headers["Range"]
        h.send_content(CONTENT)
        return True

    handler.faults.append(whole)
    assert fetch(FILE, tmp_path / "to", url).read_bytes() == CONTENT
    assert asked == ['"old"']


def test_a_source_that_changed_is_noticed_also_after_a_delete(tmp_path):
    fetched = fetch(FILE, tmp_path / "to", mirror(tmp_path / "mirror", b"one"))
    fetched.unlink()
    with pytest.raises(DownloadError, match="recorded at its first use") as error:
        fetch(FILE, tmp_path / "to", mirror(tmp_path / "mirror", b"two"))
    assert "checksums.json" in error.value.fix
    assert not fetched.exists()


def test_another_mirror_is_fetched_from_anew(served, tmp_path):
    url, _ = served
    fetched = fetch(FILE, tmp_path / "to", mirror(tmp_path / "mirror", b"other"))
    assert fetched.read_bytes() == b"other"
    assert fetch(FILE, tmp_path / "to", url).read_bytes() == CONTENT
    with pytest.raises(DownloadError, match=r"holds no none\.bin"):
        fetch(RemoteFile("none.bin", "", 1), tmp_path / "to", str(tmp_path / "mirror"))


def busy(handler) -> bool:
    handler.send_response(503)
    handler.send_header("Retry-After", "0")
    handler.send_header("Content-Length", "0")
    handler.end_headers()
    return True


def test_a_busy_server_is_asked_again(served, tmp_path):
    url, handler = served
    handler.faults += [busy]
    assert fetch(FILE, tmp_path / "to", url).read_bytes() == CONTENT


def test_a_missing_file_and_a_server_that_never_delivers_are_one_clear_error(served, tmp_path):
    url, handler = served
    with pytest.raises(DownloadError, match="404") as error:
        fetch(RemoteFile("none.bin", "", 1), tmp_path / "to", url)
    assert "DATA_MIRROR" in error.value.fix
    assert not (tmp_path / "to/none.bin").exists()
    handler.faults += [lambda h: h.send_content(CONTENT, cut_after=0) or True] * 5
    with pytest.raises(DownloadError, match="could not be downloaded"):
        fetch(FILE, tmp_path / "to", url)


def test_hub_files_come_through_the_hub_library(connected, tmp_path):
    connected.datasets["org/name"] = {"file.bin": CONTENT}
    file = RemoteFile("file.bin", "hf://datasets/org/name/file.bin", 1)
    assert fetch(file, tmp_path / "to", None).read_bytes() == CONTENT
    with pytest.raises(DownloadError, match="could not be downloaded"):
        fetch(RemoteFile("none.bin", "hf://datasets/org/name/none.bin", 1), tmp_path, None)


def test_the_next_address_is_tried_named_and_remembered(served, tmp_path, caplog):
    url, handler = served
    second = RemoteFile("file.bin", f"{url}/file.bin", 1)
    file = RemoteFile("first.bin", f"{url}/first.bin", 1, fallback=second)
    fetched = fetch(file, tmp_path / "to", None)
    assert (fetched.name, fetched.read_bytes()) == ("file.bin", CONTENT)
    assert f"{url}/first.bin could not be downloaded: 404" in caplog.text
    assert [path for path, _ in handler.requests] == ["/first.bin", "/file.bin"]
    assert fetch(file, tmp_path / "to", None) == fetched
    assert len(handler.requests) == 2
    with pytest.raises(DownloadError, match=r"first\.bin could not be downloaded"):
        fetch(replace(file, fallback=RemoteFile("no", f"{url}/no", 1)), tmp_path / "other", None)
    assert f"{url}/no could not be downloaded" in caplog.text


@pytest.mark.parametrize(
    "record", [{"size": 7}, {"sha256": "0" * 64}, {"size": len(CONTENT), "sha256": "0" * 64}]
)
def test_other_bytes_than_those_on_record_are_refused_of_a_public_address(
    served, tmp_path, caplog, record
):
    url, _ = served
    file = RemoteFile("file.bin", f"{url}/file.bin", 1, **record)
    with pytest.raises(DownloadError, match="but the file on record has"):
        fetch(file, tmp_path / "to", None)
    assert not list((tmp_path / "to").glob("file.bin*"))
    own = mirror(tmp_path / "mirror", b"own")
    assert fetch(file, tmp_path / "to", own).read_bytes() == b"own"  # one's own word
    right = {"size": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}
    better = replace(file, fallback=RemoteFile("file.bin", f"{url}/./file.bin", 1, **right))
    assert fetch(better, tmp_path / "again", None).read_bytes() == CONTENT
    assert "on record" in caplog.text


def candidates() -> dict[str, RemoteFile]:
    """Every address of every public file."""
    files = [file for source in SOURCES for file in source.files]
    return {candidate.address: candidate for file in files for candidate in file.candidates()}


@pytest.mark.parametrize("address", candidates())
def test_every_public_address_is_fetched_as_it_is_written(server, connected, tmp_path, address):
    """The path of a URL below its host; of the Hub, data set, revision and file."""
    candidate, (url, folder, _) = candidates()[address], server
    if address.startswith("hf://"):
        _, owner, named, file = address.removeprefix("hf://").split("/", 3)
        name, _, revision = named.partition("@")
        connected.revisions = {revision}
        connected.datasets[f"{owner}/{name}"] = {file: CONTENT}
        asked = f"/datasets/{owner}/{name}/resolve/{revision or 'main'}/{file}"
    else:
        host_and_path = address.partition("://")[2]
        (folder / host_and_path).parent.mkdir(parents=True)
        (folder / host_and_path).write_bytes(CONTENT)
        candidate = replace(candidate, address=f"{url}/{host_and_path}")
    candidate = replace(candidate, size=None, sha256=None, fallback=None)
    fetched = fetch(candidate, tmp_path / "to", None)
    assert (fetched.name, fetched.read_bytes()) == (candidate.name, CONTENT)
    assert not address.startswith("hf://") or asked in connected.seen


def test_names_of_public_files_do_not_collide():
    """A mirror and the folder of downloads hold them by their names alone."""
    named = {(candidate.name, candidate.size) for candidate in candidates().values()}
    assert len({name for name, _ in named}) == len(named)
