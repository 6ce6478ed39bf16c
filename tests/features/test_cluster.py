"""`features.engine: ray` on real clusters of two workers: the local bytes, whoever dies."""

import contextlib
import dataclasses
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec  # importing ray takes 2 s
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from pipeline.core.errors import MissingArtifactError, PipelineError
from pipeline.features.hdf5 import DamagedFeaturesError
from tests.conftest import ROOT, TINY, assert_clear_error, find_port, invoke, write_params
from tests.faults.ledger import record

pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="NO ray: cluster test not run"),
    pytest.mark.filterwarnings("ignore:::ray[.]"),  # it warns of its own defaults
    pytest.mark.timeout(600),
]

SHARD = 8
SLICED = {"features": {"engine": "ray", "shard_rows": SHARD, "batch_size": 4}}
CORPUS = {"download": {"scenes": {"images": 400}}}
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
"""Makes Ray take 127.0.0.1 for the address of this machine."""


@pytest.mark.parametrize(
    "error",
    [
        PipelineError("one", "two"),
        MissingArtifactError(Path("a"), made_by="features"),
        DamagedFeaturesError(Path("b"), "a reason"),
    ],
)
def test_errors_of_a_worker_are_sent_to_the_driver(error):
    sent = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(sent) is type(error)
    assert (str(sent), vars(sent)) == (str(error), vars(error))


# --- real clusters --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Local:
    """What the local engine makes of the corpus, and the folder it did so in."""

    folder: Path
    features: bytes
    store: Path

    def shards(self, store: Path | None = None) -> dict[str, bytes]:
        root = store or self.store
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.h5")}

    def store_with_captions(self, folder: Path) -> Path:
        """A cache that lacks the images only."""
        store = folder / "store"
        shutil.copytree(self.store, store, ignore=shutil.ignore_patterns("images"))
        return store


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Local:
    folder = tmp_path_factory.mktemp("corpus")
    write_params(folder, TINY, CORPUS, SLICED, {"features": {"engine": "local"}})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage in ("download", "features"):
            result = invoke(stage)
            assert result.exit_code == 0, (stage, result.output, result.exception)
    write_params(folder, TINY, CORPUS, SLICED)
    return Local(folder, (folder / "data/features.h5").read_bytes(), folder / "data/store")


@pytest.fixture(scope="module")
def head() -> Iterator[tuple[str, int]]:
    """`ray start --head` with two CPUs: its address, and the process that ends it."""
    import ray.data  # which must not see the variables of the test's cluster  # noqa: F401

    port, folder = (
        find_port(),
        tempfile.mkdtemp(prefix="ray-", dir="/tmp"),
    )  # paths of sockets are short
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
    settings = {"node-ip-address": "127.0.0.1", "port": port, "num-cpus": 2, "num-gpus": 0}
    settings |= {"include-dashboard": "false", "temp-dir": folder}
    settings |= {"object-store-memory": 100_000_000}
    arguments = [f"--{name}={value}" for name, value in settings.items()]
    environment = os.environ | LOOPBACK | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*command, *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        wait_for(lambda: process.poll() is not None or listens(port), "the cluster")
        assert process.poll() is None
        yield f"127.0.0.1:{port}", process.pid
        process.terminate()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def connected(head: tuple[str, int], monkeypatch) -> None:
    """RAY_ADDRESS names the cluster."""
    from ray._private import ray_constants

    monkeypatch.setenv("RAY_ADDRESS", head[0])
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)


@pytest.fixture
def out(tmp_path: Path) -> Iterator[list[str]]:
    """Options that write everything into the test's own folder."""
    return options(tmp_path, tmp_path / "store")


def options(folder: Path, store: Path) -> list[str]:
    places = {"out": "features.h5", "metrics": "metrics.json", "rejected": "rejected.csv"}
    named = [f"--{name}={folder / place}" for name, place in places.items()]
    return [*named, f"--store={store}"]


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def wait_for(ready: Callable[[], object], what: str, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.002)


def below(pid: int) -> Iterator[int]:
    """All processes that a process started, and those did."""
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield int(child)
            yield from below(int(child))


def workers(pid: int) -> list[int]:
    """Processes of a cluster that are at work on a shard this moment."""
    found = []
    for child in below(pid):
        with contextlib.suppress(OSError):
            title = Path(f"/proc/{child}/cmdline").read_bytes()
            found += [child] if title.startswith(b"ray::_Worker.encode") else []
    return found


@contextlib.contextmanager
def meanwhile(action: Callable[[], object]) -> Iterator[None]:
    """Do something while the block runs; its failure fails the test."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:  # noqa: BLE001  # for the test's own thread
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join()
    if failures:
        raise failures[0]


@pytest.mark.slow
@pytest.mark.usefixtures("connected")
def test_the_cluster_makes_the_local_engines_bytes(local, tmp_path, out, monkeypatch):
    import ray

    monkeypatch.chdir(local.folder)
    result = invoke("features", *out)
    assert result.exit_code == 0, (result.output, result.exception)
    assert (tmp_path / "features.h5").read_bytes() == local.features
    assert local.shards(tmp_path / "store") == local.shards()
    assert not list((tmp_path / "store").rglob(".cluster-*"))
    assert not ray.is_initialized()


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_nothing_is_lost(
    local, head, connected, tmp_path, monkeypatch
):
    monkeypatch.chdir(local.folder)
    store, killed = local.store_with_captions(tmp_path), []

    def shards() -> list[Path]:
        return list(store.glob("*/images/*.h5"))

    def kill() -> None:
        wait_for(lambda: len(shards()) >= 4 and workers(head[1]), "a worker at work")
        killed.append(workers(head[1])[0])
        os.kill(killed[0], signal.SIGKILL)
        killed.append(len(shards()))

    with meanwhile(kill):
        result = invoke("features", *options(tmp_path, store))
    assert result.exit_code == 0, (result.output, result.exception)
    assert killed[1] < 400 / SHARD, "the kill came too late"
    assert (tmp_path / "features.h5").read_bytes() == local.features
    assert local.shards(store) == local.shards()
    record("killed worker", "features (Ray)", "right result")


@pytest.mark.slow
def test_a_shard_that_always_ends_its_worker_is_named(
    local, head, connected, tmp_path, monkeypatch
):
    (tmp_path / "one").mkdir()
    write_params(tmp_path / "one", TINY, SLICED, {"features": {"shard_rows": 512}})
    monkeypatch.chdir(tmp_path / "one")
    store, killed = tmp_path / "store", []

    def kill() -> None:
        for _ in range(3):
            wait_for(lambda: set(workers(head[1])) - set(killed), "a try")
            killed.extend(set(workers(head[1])) - set(killed))
            os.kill(killed[-1], signal.SIGKILL)

    pairs = f"--pairs={local.folder / 'data/pairs'}"
    with meanwhile(kill):
        result = invoke("features", pairs, *options(tmp_path, store))
    assert_clear_error(result, "the shard of images from 0 on", "3 times", "batch_size")
    assert len(set(killed)) == 3
    assert not list(store.rglob(".cluster-*"))


@pytest.mark.slow
@pytest.mark.usefixtures("connected")
def test_a_broken_archive_is_the_error_it_is_here(local, tmp_path, out, monkeypatch):
    monkeypatch.chdir(local.folder)
    pairs = tmp_path / "pairs"
    shutil.copytree(local.folder / "data/pairs", pairs)
    (pairs / "images.zip").write_bytes(b"PK\3\4 and no more")
    result = invoke("features", f"--pairs={pairs}", *out)
    assert_clear_error(result, str(pairs / "images.zip"), "is damaged or truncated", "fetch it")
    assert not (tmp_path / "features.h5").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("connected")
def test_other_weights_on_a_node_are_refused(local, tmp_path, out, monkeypatch):
    """They change once the command has loaded its teacher, before the workers load theirs."""
    teacher = tmp_path / "teacher"
    shutil.copytree(ROOT / "data/demo/teacher", teacher)
    (tmp_path / "run").mkdir()
    write_params(tmp_path / "run", TINY, SLICED, {"teacher": {"model": f"local-dir:{teacher}"}})
    monkeypatch.chdir(tmp_path / "run")
    (weights,) = teacher.glob("*.safetensors")

    def change() -> None:
        wait_for(lambda: list((tmp_path / "store").glob("*/.cluster-*")), "the engine")
        tensors = load_file(weights)
        tensors["logit_scale"] = tensors["logit_scale"] + 1
        save_file(tensors, tmp_path / "changed.safetensors")
        (tmp_path / "changed.safetensors").replace(weights)

    with meanwhile(change):
        result = invoke("features", f"--pairs={local.folder / 'data/pairs'}", *out)
    assert_clear_error(result, "in its weights", os.uname().nodename, "same weights")


@pytest.mark.slow
def test_a_cluster_of_its_own_is_started_and_ended(local, tmp_path):
    """No RAY_ADDRESS; SIGTERM once the workers are at work: one line, and nobody is left."""
    store = local.store_with_captions(tmp_path)
    command = [sys.executable, "-m", "stages.features", *options(tmp_path, store)]
    temporary = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    home = tmp_path / "home"
    home.mkdir()
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "RAY_TMPDIR": temporary,
        "HOME": str(home),
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("RAY_ADDRESS", None)
    with subprocess.Popen(
        command, cwd=local.folder, env=environment, stderr=subprocess.PIPE, text=True
    ) as run:
        wait_for(lambda: list(store.glob("*/images/*.h5")) or run.poll() is not None, "a shard")
        started = set(below(run.pid))
        listening = listeners(started)
        run.send_signal(signal.SIGTERM)
        _, errors = run.communicate(timeout=120)
    assert run.returncode == 1, errors
    lines = errors.splitlines()
    assert lines[-2].startswith("error: features was stopped by SIGTERM"), errors
    assert lines[-1] == "  fix: run the same command again."
    assert "Traceback" not in errors
    assert len(started) > 3
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started), "the end of Ray")
    assert listening
    assert listening <= {"127.0.0.1"}, "a cluster of ours is nobody else's"
    assert not list(home.iterdir())
    assert not list(store.rglob(".cluster-*"))
    shutil.rmtree(temporary)


def listeners(pids: set[int]) -> set[str]:
    """The IPv4 addresses on which processes listen."""
    inodes = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
            inodes |= {link[8:-1] for link in links if link.startswith("socket:[")}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            (
                _,
                address,
                _,
                state,
                *_,
            ) = (fields := line.split())
            if state == "0A" and fields[9] in inodes:
                last = bytes.fromhex(address.split(":")[0])[-4:]
                found.add(".".join(map(str, last[::-1])))
    return found


# --- errors before there is a cluster -------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:{port}", ["no Ray cluster can be reached", "RAY_ADDRESS=127", "ray start"]),
        ("ray://127.0.0.1:{port}", ["is not the address", "HOST:PORT"]),
        ("somewhere", ["is not the address", "HOST:PORT"]),
    ],
)
def test_an_unreachable_cluster_is_one_line(local, out, monkeypatch, tmp_path, address, words):
    monkeypatch.setenv("RAY_ADDRESS", address.format(port=find_port()))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.chdir(local.folder)
    started = time.monotonic()
    assert_clear_error(invoke("features", *out), *words)
    assert time.monotonic() - started < 30


@pytest.mark.slow
def test_without_ray_the_remedy_is_to_install_it(local, out, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.chdir(local.folder)
    assert_clear_error(
        invoke("features", *out), "which is not installed", "pip install -e '.[cluster]'"
    )


@pytest.mark.integration
def test_the_project_is_imported_without_ray():
    code = (
        "import sys; sys.modules['ray'] = None; import pipeline.features.cluster, stages.features"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
