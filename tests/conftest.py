"""Shared fixtures: the models of data/demo, a tiny world, stages run in a scratch folder."""

import copy
import functools
import gc
import hashlib
import http.server
import os
import shutil
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from hypothesis import Phase, settings
from ruamel.yaml import YAML
from typer.testing import CliRunner, Result

from pipeline.params.schema import Params

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
TINY = {
    "download": {
        "scenes": {"images": 300, "captions_per_image": 2, "sentences": 400, "sts_pairs": 300}
    },
    "features": {"workers": 1, "batch_size": 100},
    "train": {
        "steps": 6,
        "batch_size": 16,
        "evaluate_every": 3,
        "pair_every": 2,
        "precision": "fp32",  # the same on every machine
        "learning_rate": 1e-3,
        "head_learning_rate": None,
    },
    "loss": {  # does not follow the default, nor does grounding_dim
        "positives": "dropout",
        "grounding_weight": 0.1,
        "distillation": {"weight": 0.0},
    },
    "teacher": {"model": f"local-dir:{ROOT / 'data/demo/teacher'}"},
    "student": {"encoder": str(ROOT / "data/demo/student"), "grounding_dim": 256},
}


settings.register_profile("quick", deadline=None, max_examples=20)
settings.register_profile("nightly", deadline=None, max_examples=100)
settings.register_profile(  # of `make mutants`: any failure will do, and the same ones every time
    "mutants",
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
)
settings.load_profile("quick")


def pytest_configure(config: pytest.Config) -> None:
    gc.disable()  # until the tests are collected: what is imported stays
    if "gpu" not in config.getoption("markexpr").replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # bit-for-bit claims hold on the CPU
    os.environ.pop("DATA_MIRROR", None)


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, loudly, what this machine cannot run."""
    import torch  # not where workers run the tests: they start sooner

    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="NO CUDA GPU: gpu test not run"))
        if item.get_closest_marker("real") and not SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason="NO ../shared: real test not run"))


_DEFAULT_PARAMS = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text())


def read_default_params() -> dict:
    return copy.deepcopy(_DEFAULT_PARAMS)


def merge(base: dict, changes: dict) -> dict:
    """`base` with `changes` laid over it, block by block."""
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = merge(base[key], value) if nested else value
    return merged


def write_params(folder: Path, *changes: dict) -> None:
    params = functools.reduce(merge, changes, read_default_params())
    text = yaml.dump(params, Dumper=yaml.CSafeDumper, sort_keys=False)
    (folder / "params.yaml").write_text(text)


@pytest.fixture
def default_params() -> Params:
    return Params.model_validate(read_default_params())


def invoke(stage: str, *arguments: str) -> Result:
    """Run a stage's command in this process, in the current folder."""
    module = __import__(f"stages.{stage}", fromlist=["app"])
    return CliRunner().invoke(module.app, list(arguments))


def assert_clear_error(result: Result, *words: str) -> None:
    """One line of what is wrong, one of what to do, exit code 1, no traceback."""
    assert result.exit_code == 1, (result.exit_code, result.output, result.exception)
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert [line for line in lines if line.startswith("error: ")] == [lines[-2]], result.stderr
    assert lines[-1].startswith("  fix: "), result.stderr
    assert "Traceback" not in result.output
    for word in words:
        assert word in lines[-2] + lines[-1], result.stderr


def made_once(
    tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]
) -> Path:
    """A folder that the first worker to ask makes; every worker has a copy of its own."""
    base = tmp_path_factory.getbasetemp()
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    made = (base.parent if is_worker else base) / f"made-{name}"
    with FileLock(f"{made}.lock"):
        if not made.exists():
            work = made.with_name(f"{made.name}-unfinished")
            work.mkdir()
            make(work)
            work.rename(made)
    return shutil.copytree(made, tmp_path_factory.mktemp("copies") / name, symlinks=True)


def run_tiny(folder: Path) -> None:
    """The whole pipeline once, tiny, on scenes, with the demo models."""
    write_params(folder, TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage in ("download", "features", "train", "baselines", "evaluate", "summary", "index"):
            result = invoke(stage)
            assert result.exit_code == 0, (stage, result.output, result.exception)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which the whole pipeline ran once, and which no test changes."""
    folder = made_once(tmp_path_factory, "tiny", run_tiny)
    before = contents(folder)
    yield folder
    after = contents(folder)
    changed = [name for name in before if after.get(name) != before[name]]
    assert not changed, f"tests changed the tiny run, which others read: {changed}"


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).digest() for path in files
    }


@pytest.fixture
def in_tiny_run(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder is the tiny run's; do not change it."""
    monkeypatch.chdir(tiny_run)
    return tiny_run


def slow_after(quick: int, values: Iterable[object]) -> list:
    """Values of a parameter, of which all but the first few are for the slow tests."""
    cases = [value if isinstance(value, tuple) else (value,) for value in values]
    marks = [()] * quick + [pytest.mark.slow] * (len(cases) - quick)
    return [pytest.param(*case, marks=mark) for case, mark in zip(cases, marks, strict=True)]


def unseal(folder: Path) -> None:
    """Take the checksums away, so that other checks meet what is changed in the folder."""
    (folder / "checksums.json").unlink()


def make_png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG file, written by hand: Pillow writes no 16-bit colours."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@functools.cache
def make_bomb(side: int = 20_000) -> bytes:
    """A picture of a few kilobytes and 400 million pixels."""
    return make_png(side, side, 1, 0, bytes(side * (1 + side // 8)))


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder with HTTP Range; `faults` are applied to requests one after another."""

    faults: list[Callable[["RangeHandler"], bool]]
    requests: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        self.requests.append((self.path, self.headers.get("Range")))
        if self.faults and self.faults.pop(0)(self):
            return
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        self.send_content(path.read_bytes())

    def send_content(self, content: bytes, *, cut_after: int | None = None) -> None:
        """Send what the Range header asks for; close early after `cut_after` bytes."""
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if start >= len(content) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[start : None if cut_after is None else start + cut_after])

    def log_message(self, *_: object) -> None:
        """Keep the test output clean."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path, type[RangeHandler]]]:
    """A loopback HTTP server: its base URL, the folder it serves, and its handler."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = type("Handler", (RangeHandler,), {"faults": [], "requests": []})
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(folder))
    ) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}", folder, handler
        httpd.shutdown()
        thread.join()


def find_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
