"""`features.engine: ray` on real clusters of two workers: the local bytes, whoever dies."""

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pipeline.core.errors import ModelError, PipelineError, ResourceError
from pipeline.download.packed_images import PackedImages, Rejection
from pipeline.features import cluster
from pipeline.features.cache import KeySet, text_keys
from pipeline.features.encode import NewCaptions, Work
from pipeline.features.identity import TeacherIdentity
from pipeline.params.schema import Params
from pipeline.params.teacher import TeacherParams
from tests.conftest import ROOT, TINY, assert_clear_error, find_port, invoke, write_params
from tests.faults.ledger import record

pytest.importorskip("ray")
pytestmark = [pytest.mark.filterwarnings("ignore:::ray[.]"), pytest.mark.timeout(600)]
"""Ray warns of its own defaults."""

SHARD = 8
SLICED = {"features": {"engine": "ray", "shard_rows": SHARD, "batch_size": 4}}
CORPUS = {"download": {"scenes": {"images": 400}}}
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
"""Makes Ray take 127.0.0.1 for the address of this machine."""
IDENTITY = TeacherIdentity(
    model="m",
    pretrained="",
    source="",
    architecture="a",
    weights="w",
    preprocessing="p",
    tokenizer="t",
    library="l 1",
    dtype="float32",
)


# --- what goes to a worker and comes back ---------------------------------------------------


@given(
    rows=st.lists(st.tuples(st.sampled_from(["a.tar", "b.zip"]), st.text()), min_size=1),
    size=st.integers(1, 7),
)
def test_image_tasks_are_the_rows_in_slices(rows, size):
    archives, members = map(list, zip(*rows, strict=True))
    images, found = PackedImages(Path("/data"), archives, members), []
    for start in range(0, len(rows), size):
        task = cluster._pack_images(images, start, size)
        assert task.num_rows == 1
        assert (task["start"][0].as_py(), task["rows"][0].as_py()) == (
            start,
            min(size, len(rows) - start),
        )
        part = cluster._unpack_images(task, Path("/data"))
        found += zip(part.archives, part.members, strict=True)
    assert found == rows


@given(texts=st.lists(st.text(), min_size=1), size=st.integers(1, 7), data=st.data())
def test_caption_tasks_are_the_wanted_captions(texts, size, data):
    wanted = np.array(data.draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts))))
    captions = NewCaptions(pd.Series(texts, dtype="str"), text_keys(texts), wanted, size)
    found = []
    for task in map(cluster._pack_captions, captions):
        (shard,) = cluster._unpack_captions(task)
        np.testing.assert_array_equal(shard.keys, text_keys(shard.captions))
        assert task["start"][0].as_py() % size == 0
        found += shard.captions
    assert found == [text for text, want in zip(texts, wanted, strict=True) if want]


@given(
    start=st.integers(0, 2**40),
    keys=st.lists(st.binary(min_size=16, max_size=16)),
    rejected=st.dictionaries(st.integers(0, 2**20), st.text()),
)
def test_accounts_come_back_as_they_were(start, keys, rejected):
    table = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 16)
    why = {row: Rejection("truncated", text) for row, text in rejected.items()}
    work = cluster._unpack(cluster._pack_work(Work(start, table, why, 3)).to_pylist()[0])
    assert (work.start, work.rejected, work.encoded) == (start, why, 3)
    np.testing.assert_array_equal(work.keys, table)


# --- errors of a worker, without a cluster --------------------------------------------------


@pytest.fixture
def job(tmp_path: Path, default_params: Params) -> cluster._Job:
    (tmp_path / "attempts").mkdir()
    return cluster._Job(
        kind="images",
        params=default_params.features,
        teacher=TeacherParams(model=TINY["teacher"]["model"]),
        identity=IDENTITY,
        cache=tmp_path,
        attempts=tmp_path / "attempts",
        folder=tmp_path,
        known=None,
    )


def task() -> object:
    return cluster._pack_images(PackedImages(Path(), ["a.tar"] * 9, ["x"] * 9), 4, 3)


def result_of(worker: cluster._Worker) -> Work:
    return cluster._unpack(worker(task()).to_pylist()[0])


@pytest.mark.parametrize("hidden", ["attempts", "folder"])
def test_a_node_that_does_not_see_the_files_is_named(tmp_path, job, hidden):
    unseen = dataclasses.replace(job, **{hidden: tmp_path / "elsewhere"})
    with pytest.raises(ResourceError, match=r"does not see .*elsewhere") as caught:
        result_of(cluster._Worker(unseen))
    assert "mount" in caught.value.fix
    assert os.uname().nodename in caught.value.what


def test_a_shard_that_was_begun_too_often_is_not_begun_again(job):
    (job.attempts / "images-4").write_bytes(b"...")
    with pytest.raises(ResourceError, match="images 4 to 6 ended their worker 3 times"):
        result_of(cluster._Worker(job))


def test_a_bug_in_a_worker_is_reported_as_one(job):
    """The rows are those of another kind, which is no error that a user could make."""
    worker = cluster._Worker(dataclasses.replace(job, kind="captions"))
    worker._load = lambda: None
    with pytest.raises(RuntimeError, match=r"^\w+Error on node") as caught:
        result_of(worker)
    assert not isinstance(caught.value, PipelineError)
    assert any("Traceback" in note for note in caught.value.__notes__)
    assert not list(job.attempts.iterdir())  # it was no death of the worker


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": "v"}, ["another than here, in its weights", "same weights"]),
        ({"preprocessing": "q", "tokenizer": "u"}, ["preprocessing, tokenizer"]),
        ({"dtype": "float16"}, ["float16", "float32 here", "features.precision"]),
    ],
)
def test_another_teacher_on_a_node_is_refused(change, words):
    found = dataclasses.replace(IDENTITY, **change)
    with pytest.raises(ModelError) as caught:
        cluster._require_equal(found, IDENTITY)
    for word in words:
        assert word in str(caught.value)


def test_another_name_of_the_same_teacher_is_none_else():
    renamed = dataclasses.replace(IDENTITY, model="n", pretrained="x", source="s", library="l 2")
    cluster._require_equal(renamed, IDENTITY)


def test_a_worker_is_told_what_is_known(tmp_path):
    """It does not read the keys of all shards for itself."""
    keys = text_keys(["told"])
    told = KeySet()
    told.add(keys)
    cache = cluster._NodeCache(tmp_path, IDENTITY, np.ones((2, 3), np.float32), told)
    assert cache.known("images").contains(keys).all()
    assert not cache.known("captions").contains(keys).any()


def test_folders_are_named_so_that_any_process_finds_them(monkeypatch):
    monkeypatch.chdir(ROOT)
    identity = dataclasses.replace(IDENTITY, model="local-dir:data/demo/teacher")
    assert cluster._teacher_of(identity).model == f"local-dir:{ROOT / 'data/demo/teacher'}"
    hub = dataclasses.replace(IDENTITY, model="ViT-B-32", pretrained="openai")
    assert cluster._teacher_of(hub).model_dump() == {"model": "ViT-B-32", "pretrained": "openai"}


def test_the_environment_is_left_as_it_was(monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    before = dict(os.environ)
    with cluster._environment({"RAY_USAGE_STATS_ENABLED": "0", "KDMCSE_X": "y"}):
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"  # the user's word
        assert os.environ["KDMCSE_X"] == "y"
        os.environ["KDMCSE_Z"] = "set by a library"
    assert dict(os.environ) == before


def test_a_leaving_by_ray_is_our_own_interruption():
    """ray.init installs a handler of SIGTERM that would end the command without a word."""
    came = []
    previous = signal.signal(signal.SIGTERM, lambda number, _frame: came.append(number))
    ours = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit), cluster._keeps_handlers():
            signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(number))
            os.kill(os.getpid(), signal.SIGTERM)
        assert came == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, previous)


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
            found += [child] if title.startswith(b"ray::MapWorker") and b"submit" in title else []
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

    def begun() -> int:
        return sum(note.stat().st_size for note in store.glob("*/.cluster-*/images-0"))

    def kill() -> None:
        for attempt in range(1, 4):
            wait_for(lambda attempt=attempt: begun() == attempt and workers(head[1]), "a try")
            killed.extend(workers(head[1]))
            os.kill(killed[-1], signal.SIGKILL)

    pairs = f"--pairs={local.folder / 'data/pairs'}"
    with meanwhile(kill):
        result = invoke("features", pairs, *options(tmp_path, store))
    assert_clear_error(result, "images 0 to 399", "3 times", "batch_size")
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
        ("ray://127.0.0.1:{port}", ["is no address", "HOST:PORT"]),
        ("somewhere", ["is no address", "HOST:PORT"]),
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
    assert_clear_error(invoke("features", *out), "not installed", "pip install -e '.[cluster]'")


def test_the_project_is_imported_without_ray():
    code = (
        "import sys; sys.modules['ray'] = None; import pipeline.features.cluster, stages.features"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
