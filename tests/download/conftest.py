"""A loopback model hub, and small images and tables of one's own."""

import contextlib
import http.server
import io
import json
import os
import tempfile
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from PIL import Image

from pipeline.download.corpora import Fetcher, make_pairs
from pipeline.download.records import Pairs, read_pairs
from pipeline.params.download import DownloadParams

COMMIT = "a" * 40


def image_bytes(number: int) -> bytes:
    """A small PNG; no two numbers below a million have the same."""
    stream = io.BytesIO()
    colour = (number % 256, number // 256 % 256, number // 65536)
    Image.new("RGB", (4, 3), colour).save(stream, "PNG")
    return stream.getvalue()


def download_params(**changes) -> DownloadParams:
    """The default block with changes laid over it."""
    return DownloadParams.model_validate(changes)


Made = tuple[Pairs, dict[str, int]]


def make_own(place: Path, pairs: str, **changes) -> Made:
    """One's own pairs and their counts, in a folder of `place`."""
    params = download_params(pairs=pairs, **changes)
    counts = make_pairs(place / "pairs", params, Fetcher(place / "downloads", None))
    return read_pairs(place / "pairs"), counts


Locked = Callable[[Path], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    mode, was_root = path.stat().st_mode, os.geteuid() == 0
    path.chmod(0)
    if was_root:
        os.seteuid(_NOBODY)  # root may read whatever there is
    try:
        yield
    finally:
        if was_root:
            os.seteuid(0)
        path.chmod(mode)


_NOBODY = 65_534


@pytest.fixture
def locked() -> Locked:
    """`with locked(path)`: without the right to read it, root or not."""
    return _locked


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder in which `locked` leaves everything else open; tmp_path is closed to others."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


class HubHandler(http.server.BaseHTTPRequestHandler):
    """As much of the model hub's protocol as reading data sets needs."""

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        self.server.seen.append(self.path)
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        status, content, error = self.find(path.lstrip("/").split("/"))
        self.send_response(status)
        self.send_header("X-Repo-Commit", COMMIT)
        if error:
            self.send_header("X-Error-Code", error)
        self.send_header("ETag", f'"{abs(hash(content))}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def find(self, parts: list[str]) -> tuple[int, bytes, str]:
        """What `[api/]datasets/ORG/NAME/VERB/REVISION/FILE` gets."""
        parts = parts[1:] if (is_api := parts[0] == "api") else parts
        name, verb, revision = "/".join(parts[1:3]), *(*parts[3:5], "", "main")[:2]
        if name in self.server.gated:
            return 403, b"", "GatedRepo"
        files = self.server.datasets.get(name)
        if files is None:
            return 404, b"", "RepoNotFound"
        if revision not in {"main", COMMIT, *self.server.revisions}:
            return 404, b"", "RevisionNotFound"
        if is_api:
            return 200, json.dumps(self.listing(name, files, verb)).encode(), ""
        content = files.get("/".join(parts[5:]))
        return (404, b"", "EntryNotFound") if content is None else (200, content, "")

    @staticmethod
    def listing(name: str, files: dict[str, bytes], verb: str) -> object:
        if verb != "tree":
            return {"id": name, "sha": COMMIT, "siblings": [], "tags": []}
        return [
            {"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
            for path, content in files.items()
        ]

    def log_message(self, *_: object) -> None:
        """Keep the test output clean."""


class Hub(http.server.ThreadingHTTPServer):
    """Data sets by name, each with its files by path."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.datasets: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.revisions: set[str] = set()
        self.seen: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def connected(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The hub, to which this process speaks; its environment is offline."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return hub
