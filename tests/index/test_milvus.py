"""An index in Milvus answers as the one in files does; half a load is never found.

milvus-lite runs as itself, in a folder and as a server of its own; it asks for no token, so a
server that does is milvus-lite behind a proxy.
"""

import base64
import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import InputError, PipelineError, ResourceError, StaleArtifactError
from pipeline.download.archives import Archive
from pipeline.download.records import read_pairs
from pipeline.index.documents import Items
from pipeline.index.embed import Parts
from pipeline.index.format import ROWS, Hit, Vectors, Window, normalise
from pipeline.index.milvus import collection as milvus_module
from pipeline.index.milvus.collection import About, Address, MilvusIndex, MilvusKind, connect
from pipeline.index.milvus.load import LONGEST, load_items
from pipeline.search.searcher import Searcher
from tests.conftest import ROOT, SHARED, assert_clear_error, find_port, invoke, unseal, write_params
from tests.test_real_pipeline import REAL, keep_few_dev_pairs, keep_few_images, run

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        importlib.util.find_spec("pymilvus") is None
        or importlib.util.find_spec("milvus_lite") is None,
        reason="NO MILVUS: pip install -e '.[milvus]'; no index was loaded into it",
    ),
]

DATABASE = "data/index.milvus.db"
MODEL, INDEX = Path("data/models/0"), Path("data/index")
TOKEN = "root:a-secret-of-ours"  # noqa: S105
MANIFEST = {"model": "a model", "corpus": "a corpus"}
THREE = np.eye(3, dtype=np.float32)


def index_to(uri: str, *options: str):
    return invoke("index", "--to", "milvus", "--uri", uri, *options)


@pytest.fixture(scope="module")
def loaded(tiny_run, tmp_path_factory) -> Path:
    """The tiny run, with its index in milvus-lite too; do not change it."""
    folder = tmp_path_factory.mktemp("milvus") / "run"
    shutil.copytree(tiny_run, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = index_to(DATABASE)
        assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def in_loaded(loaded, monkeypatch) -> Path:
    monkeypatch.chdir(loaded)
    return loaded


@pytest.fixture
def scratch(loaded, tmp_path, monkeypatch) -> Path:
    """A copy that may be changed."""
    shutil.copytree(loaded, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    return tmp_path / "run"


def assert_exact(found: list[list[Hit]], expected: list[list[Hit]]) -> None:
    """The same rows with the same cosines, where rows of equal cosine may change places."""
    assert len(found) == len(expected)
    for own, other in zip(found, expected, strict=True):
        assert [hit.rank for hit in own] == [hit.rank for hit in other]
        np.testing.assert_allclose(
            [hit.score for hit in own], [hit.score for hit in other], rtol=0, atol=1e-5
        )
        last = other[-1].score if other else 0.0
        rows = {(hit.kind, hit.id): dataclasses.replace(hit, rank=0, score=0.0) for hit in other}
        for hit in own:
            known = rows.get((hit.kind, hit.id))
            assert known == dataclasses.replace(hit, rank=0, score=0.0) or hit.score < last + 1e-5


def captions(folder: Path) -> list[str]:
    return read_pairs(folder / "data/pairs").captions["caption"].drop_duplicates().tolist()


@pytest.fixture(scope="module")
def opened(loaded, tmp_path_factory) -> Iterator[tuple[Searcher, Searcher]]:
    """In files and in Milvus, of a copy: nothing else can open the folder meanwhile."""
    folder = tmp_path_factory.mktemp("opened") / "run"
    shutil.copytree(loaded, folder)
    with MilvusIndex.open(Address(str(folder / DATABASE))) as vectors:
        vectors.require_fit(folder / INDEX)
        files = Searcher.open(folder / MODEL, folder / INDEX)
        yield files, Searcher.open(folder / MODEL, folder / INDEX, vectors)


def test_texts_and_pictures_find_what_they_find_in_files(opened, loaded):
    files, milvus = opened
    queries = captions(loaded)[:150]
    for target in ("texts", "images"):
        expected = files.search(queries, target=target)
        assert_exact(milvus.search(queries, target=target), expected)
    pictures = kept_vectors(loaded, "images")
    assert len(pictures) >= 100
    for space in ("grounded", "images"):
        expected = files.index.search(space, pictures, Window(10))
        assert_exact(milvus.index.search(space, pictures, Window(10)), expected)


@given(
    space=st.sampled_from(["texts", "grounded", "images"]),
    k=st.integers(1, 50) | st.integers(1, 700),
    offset=st.integers(0, 50) | st.integers(0, 700),
    min_score=st.floats(-1, 1),
    seed=st.integers(0, 100),
)
@settings(max_examples=25)
def test_windows_are_those_of_files(opened, loaded, space, k, offset, min_score, seed):
    files, milvus = opened
    rows = kept_vectors(loaded, space)
    queries = rows[np.random.default_rng(seed).integers(0, len(rows), 3)]
    window = Window(k, offset, min_score)
    found = milvus.index.search(space, queries, window)
    expected = files.index.search(space, queries, window)
    for own, other in zip(found, expected, strict=True):
        edge = sum(abs(hit.score - min_score) < 1e-5 for hit in own + other)  # the last bit decides
        assert abs(len(own) - len(other)) <= edge
        same = min(len(own), len(other))
        np.testing.assert_allclose(
            [hit.score for hit in own[:same]], [hit.score for hit in other[:same]], atol=1e-5
        )
        assert [hit.rank for hit in own] == list(range(offset + 1, offset + 1 + len(own)))
        assert all(hit.score >= min_score for hit in own)


def kept_vectors(folder: Path, space: str) -> Vectors:
    files = sorted(folder.glob(f"data/vectors/*/{space}-*.npy"))
    return normalise(np.concatenate([np.load(file) for file in files]))


def test_threads_share_one_index(opened, loaded):
    files, milvus = opened
    queries = [[one] for one in captions(loaded)[:40]]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda one: milvus.search(one, target="texts"), queries))
    for own, query in zip(found, queries, strict=True):
        assert_exact(own, files.search(query, target="texts"))


def test_deeper_than_milvus_ranks(opened):
    _, milvus = opened
    assert milvus.search(["x"], target="texts", window=Window(1, 16_383)) == [[]]
    with pytest.raises(InputError, match=r"rank 16,385; Milvus ranks 16,384"):
        milvus.search(["x"], target="texts", window=Window(2, 16_383))


def test_the_command_searches_in_milvus(in_loaded, tmp_path):
    (tmp_path / "q.txt").write_text("a red circle\ntwo blue stars\n")
    row = read_pairs(Path("data/pairs")).images.iloc[5]
    with Archive(Path("data/pairs") / row["archive"]) as archive:
        (tmp_path / "seen.png").write_bytes(archive.read(row["member"]))
    for options in (
        ("--file", str(tmp_path / "q.txt")),
        ("a green cross", "--images", "-k", "3"),
        ("--by-image", str(tmp_path / "seen.png")),
        ("--by-image", str(tmp_path / "seen.png"), "--images"),
    ):
        found = invoke("search", *options, "--uri", DATABASE)
        assert found.exit_code == 0, found.output
        assert_exact(hits_of(found.stdout), hits_of(invoke("search", *options).stdout))


def hits_of(output: str) -> list[list[Hit]]:
    return [[Hit(**hit) for hit in json.loads(line)["hits"]] for line in output.splitlines()]


@pytest.mark.parametrize("key", ["model", "corpus"])
def test_what_does_not_fit_the_queries_is_refused(loaded, tmp_path, key):
    manifest = json.loads((loaded / INDEX / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {key: "another"}))
    address = Address(str(loaded / DATABASE))
    with MilvusIndex.open(address) as vectors:
        vectors.require_fit(loaded / INDEX)
        with pytest.raises(StaleArtifactError, match="holds the vectors of another") as error:
            vectors.require_fit(tmp_path)
    assert error.value.fix == f"run `python -m stages.index --to milvus --uri {address.uri}`."


def test_another_corpus_is_refused_by_both_commands(scratch):
    unseal(INDEX)
    manifest = INDEX / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"corpus": "another"}))
    assert_clear_error(invoke("search", "x", "--uri", DATABASE), "another corpus than data/index")
    assert_clear_error(index_to(DATABASE), "another corpus", "dvc repro index")


def test_without_an_index_the_queries_are_written_alone(scratch):
    expected = invoke("search", "a red circle", "--images")
    shutil.rmtree(INDEX)
    assert index_to(DATABASE).exit_code == 0
    assert not list(INDEX.glob("*.faiss"))
    found = invoke("search", "a red circle", "--images", "--uri", DATABASE)
    assert_exact(hits_of(found.stdout), hits_of(expected.stdout))
    assert_clear_error(invoke("search", "a red circle"), "holds no texts")


@pytest.mark.parametrize("kind", ["hnsw", "ivf-sq8", "autoindex"])
def test_other_kinds_find_nearly_all(tmp_path, kind):
    vectors = clustered(2_000, 24)
    address = Address(str(tmp_path / "x.db"))
    load(address, vectors, kind=kind)
    with MilvusIndex.open(address) as index:
        found = index.search("texts", vectors[:100], Window(10))
    exact = np.argsort(-normalise(vectors[:100]) @ normalise(vectors).T, axis=1)[:, :10]
    shared = [
        len({hit.id for hit in one} & set(best)) for one, best in zip(found, exact, strict=True)
    ]
    assert np.mean(shared) / 10 > 0.9


def clustered(rows: int, dim: int) -> Vectors:
    random = np.random.default_rng(0)
    centres = random.standard_normal((40, dim))
    noise = 0.4 * random.standard_normal((rows, dim))
    return (centres[random.integers(0, 40, rows)] + noise).astype(np.float32)


def load(
    address: Address, vectors: Vectors, texts: str | list[str] = "text", kind: MilvusKind = "flat"
) -> About:
    """Load vectors as `embed_items` keeps them; a word for texts is numbered."""
    rows, size = len(vectors), 1 << 14
    folder = Path(tempfile.mkdtemp(dir=Path(address.uri).parent))
    files = [folder / f"texts-{part:05d}.npy" for part in range(-(-rows // size))]
    for part, file in enumerate(files):
        np.save(file, vectors[part * size : (part + 1) * size])
    named = texts if isinstance(texts, list) else [f"{texts} {number}" for number in range(rows)]
    table = {"kind": "text", "id": range(rows), "text": named, "count": 1}
    table = pd.DataFrame(table | {"archive": "", "member": ""})
    items = Items(table[ROWS.names], table[ROWS.names][:0], np.zeros(0, np.int64))
    return load_items(address, MANIFEST, items, {"texts": Parts(files, rows)}, kind)


def test_texts_of_any_length_are_kept_or_cut_with_a_notice(tmp_path, caplog):
    texts = ["", "x" * LONGEST, "a\0b", "z" * 300]
    texts += ["y" * (LONGEST + 1), "é" * 40_000, "🙂" * 500_000]
    address = Address(str(tmp_path / "x.db"))
    load(address, np.eye(len(texts), dtype=np.float32), texts)
    assert "3 texts were cut to the 65535 bytes" in caplog.text
    with MilvusIndex.open(address) as index:
        found = index.search("texts", np.eye(len(texts), dtype=np.float32), Window(1))
    kept = [one[0].text for one in found]
    assert kept[:4] == texts[:4]
    for one, text in zip(kept[4:], texts[4:], strict=True):
        assert text.startswith(one)
        assert LONGEST - 4 < len(one.encode()) <= LONGEST


def test_long_texts_go_in_messages_that_a_server_takes(tmp_path, monkeypatch):
    from pymilvus import MilvusClient

    sizes, insert = [], MilvusClient.insert

    def measure(self, name, data, **options):
        sizes.append(sum(len(row["text"].encode()) + row["vector"].nbytes for row in data))
        return insert(self, name, data, **options)

    monkeypatch.setattr(MilvusClient, "insert", measure)
    load(Address(str(tmp_path / "x.db")), clustered(600, 8), "long" * 16_000)
    assert sum(sizes) > 32 << 20
    assert max(sizes) < 17 << 20


_LOAD = """
import resource
import sys
from pipeline.core import progress
progress.INTERVAL = 0.0  # a line for every message
import numpy as np
from pipeline.core.signals import ends_on_signal
from pipeline.index.milvus.collection import Address
from tests.index.test_milvus import load

uri, rows, longest = sys.argv[1], *map(int, sys.argv[2:])
resource.setrlimit(resource.RLIMIT_FSIZE, (longest, longest))
with ends_on_signal("index"):
    load(Address(uri), np.random.default_rng(1).standard_normal((rows, 64)).astype("f4"), "new")
"""


def start_load(uri: str, rows: int, longest: int = -1) -> subprocess.Popen:
    """Load so many rows, with files of at most so many bytes."""
    return subprocess.Popen(
        [sys.executable, "-c", _LOAD, uri, str(rows), str(longest)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def small(tmp_path) -> Address:
    """A database of three rows."""
    address = Address(str(tmp_path / "x.db"))
    load(address, THREE, "old")
    return address


def assert_old_is_used(address: Address) -> None:
    with MilvusIndex.open(address) as index:
        found = index.search("texts", THREE, Window(10))
    assert [len(one) for one in found] == [3, 3, 3]
    assert [one[0].text for one in found] == ["old 0", "old 1", "old 2"]


def collections(address: Address) -> set[str]:
    return {path.name for path in (Path(address.uri) / "collections").iterdir()}


def test_a_load_replaces_the_former_one_of_its_prefix(small):
    other = load(dataclasses.replace(small, prefix="kdmcse_other"), THREE, "other")
    about = load(small, THREE, "old")
    names = {other.collection("kdmcse_other", "texts"), about.collection("kdmcse", "texts")}
    assert collections(small) == names
    assert_old_is_used(small)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "rows"),
    [(signal.SIGKILL, 2_000), (signal.SIGTERM, 2_000), (signal.SIGINT, 2_000),
     (signal.SIGKILL, 20_000), (signal.SIGTERM, 20_000)],
)  # fmt: skip
def test_a_load_that_is_killed_leaves_the_former_one(small, number, rows):
    """Killed while 20,000 rows go in, and while they are indexed."""
    text = ""
    with start_load(small.uri, 20_000) as process:
        while not any(int(seen) >= rows for seen in re.findall(r": (\d+)/20000", text)):
            letter = process.stderr.read(1)
            assert letter, text
            text += letter
        process.send_signal(number)
        try:
            process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode != 0
    assert len(collections(small)) == (2 if number == signal.SIGKILL else 1)
    assert_old_is_used(small)
    about = load(small, THREE, "old")
    assert collections(small) == {about.collection("kdmcse", "texts")}
    assert_old_is_used(small)


@pytest.mark.slow
def test_a_full_disk_leaves_the_former_load(small):
    """Files of at most 5 MB, which stands for a full disk."""
    _, stderr = start_load(small.uri, 30_000, 5_000_000).communicate(timeout=60)
    assert "ResourceError" in stderr.splitlines()[-2]
    assert "File too large" in stderr
    assert_old_is_used(small)


def test_rows_that_went_missing_are_noticed(small, monkeypatch):
    from pymilvus import MilvusClient

    insert = MilvusClient.insert
    monkeypatch.setattr(
        MilvusClient, "insert", lambda self, name, data, **options: insert(self, name, data[1:])
    )
    with pytest.raises(ResourceError, match="holds 4 of 5 rows"):
        load(small, np.eye(5, dtype=np.float32))
    assert_old_is_used(small)


def test_nothing_is_left_running(small):
    threads, before = set(threading.enumerate()), listeners()
    with MilvusIndex.open(small) as index:
        index.search("texts", THREE, Window(1))
        assert {ip.removeprefix("::ffff:") for ip, _ in listeners() - before} == {"127.0.0.1"}
        with pytest.raises(ResourceError, match="in use by another process"), connect(small):
            pass
    deadline = time.monotonic() + 10
    while (left := set(threading.enumerate()) - threads) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left
    assert listeners() <= before
    assert_old_is_used(small)


def listeners() -> set[tuple[str, int]]:
    """Where this process listens."""
    sockets = psutil.Process().net_connections("tcp")
    return {(one.laddr.ip, one.laddr.port) for one in sockets if one.status == "LISTEN"}


@pytest.fixture
def plain(scratch) -> Path:
    """A run without a database."""
    shutil.rmtree(DATABASE)
    return scratch


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("data/none.db", ("data/none.db does not exist", "--to milvus --uri data/none.db")),
        ("nowhere/x.db", ("nowhere is not a folder",)),
        ("file.db", ("file.db is not a database of milvus-lite 3",)),
        ("folder.db", ("folder.db is not a database of milvus-lite 3",)),
        ("data/index", ("data/index is not an address of Milvus", "ends in .db")),
        ("ftp://localhost", ("ftp://localhost is not an address",)),
        ("http://localhost:99999", ("http://localhost:99999 is not an address",)),
        ("http://localhost/x.db", ("http://localhost/x.db is not an address",)),
        ("http://root:hunter2@localhost", ("more than an address", "--token-env")),
    ],
)
def test_wrong_addresses(plain, uri, words):
    Path("file.db").write_bytes(b"SQLite format 3\0")
    Path("folder.db").mkdir()
    Path("folder.db/note.txt").write_text("mine")
    results = [invoke("search", "x", "--uri", uri)]
    if uri == "data/none.db":  # `index` makes it
        assert not Path(uri).exists()
    else:
        results.append(index_to(uri))
    for result in results:
        assert_clear_error(result, *words)
        assert "hunter2" not in result.output
    assert Path("folder.db/note.txt").read_text() == "mine"


def test_options_that_go_together_and_reach_the_error(in_loaded):
    for options in (("--to", "milvus"), ("--uri", "x.db")):
        assert_clear_error(invoke("index", *options), "--to milvus and --uri go together")
    options = ("--uri", DATABASE, "--collection-prefix", "other")
    assert_clear_error(invoke("search", "x", *options), "no index named other", *options)


def test_wrong_prefixes():
    for prefix in ("", "1a", "a-b", "a b", "ä", "a" * 101):
        with pytest.raises(InputError, match="--collection-prefix"):
            Address("x.db", prefix=prefix)


@pytest.mark.parametrize("name", ["aliases.json", "schema.json", "manifest.json", "*.parquet"])
@pytest.mark.parametrize("content", [b"\0garbage", b"{}"])
def test_a_damaged_database_is_a_clear_error(small, name, content):
    files = list(Path(small.uri).rglob(name))
    assert files
    for file in files:
        file.write_bytes(content)
        file.with_name(f"{file.name}.prev").unlink(missing_ok=True)
    with pytest.raises(PipelineError) as error, MilvusIndex.open(small) as index:
        index.search("texts", THREE, Window(1))
    assert error.value.fix
    assert len(error.value.what.splitlines()) == 1


def test_a_collection_of_somebody_else_is_left_alone(small):
    with connect(small) as client:
        client.create_collection("theirs", dimension=4)
        client.create_alias("theirs", "mine")
    for prefix in ("theirs", "mine"):
        address = dataclasses.replace(small, prefix=prefix)
        with pytest.raises(InputError, match="is not an index of this project"):
            load(address, THREE)
        with (
            pytest.raises(InputError, match="is not an index of this project"),
            MilvusIndex.open(address),
        ):
            pass
    with connect(small) as client:
        assert client.has_collection("theirs")


def test_another_version_is_refused_and_replaced(small, monkeypatch):
    monkeypatch.setattr(milvus_module, "SCHEMA", 99)
    with pytest.raises(StaleArtifactError, match="another version"), MilvusIndex.open(small):
        pass


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """milvus-lite as a server of its own, for many processes."""
    port = find_port()
    command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(folder)]
    with subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)]) as process:
        try:
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.smoke
def test_a_server_answers_as_files_do_until_it_goes_away(plain, monkeypatch):
    query = np.ones((1, 128), dtype=np.float32)
    with contextlib.ExitStack() as stack:
        with serving(plain / "served") as uri:
            assert_clear_error(invoke("search", "x", "--uri", uri), "holds no index named kdmcse")
            assert index_to(uri).exit_code == 0
            expected = invoke("search", "a red circle", "-k", "20")
            found = invoke("search", "a red circle", "-k", "20", "--uri", uri)
            assert_exact(hits_of(found.stdout), hits_of(expected.stdout))
            with MilvusIndex.open(Address(uri)) as one, MilvusIndex.open(Address(uri)) as other:
                assert one.about == other.about
                assert index_to(uri).exit_code == 0
                with pytest.raises(StaleArtifactError, match="another load took its place"):
                    one.search("texts", query, Window(1))
            index = stack.enter_context(MilvusIndex.open(Address(uri)))
            assert index.search("texts", query, Window(1))[0]
        monkeypatch.setattr(milvus_module, "CALL_SECONDS", 3.0)
        monkeypatch.setattr(milvus_module, "CONNECT_SECONDS", 2.0)
        start = time.monotonic()
        with pytest.raises(ResourceError, match="does not answer"):
            index.search("texts", query, Window(1))
        assert time.monotonic() - start < 30
    assert_clear_error(invoke("search", "x", "--uri", uri), f"{uri} does not answer")
    assert_clear_error(index_to(uri), f"{uri} does not answer")


def test_a_server_that_says_nothing(in_loaded, monkeypatch):
    monkeypatch.setattr(milvus_module, "CONNECT_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        uri = f"http://127.0.0.1:{mute.getsockname()[1]}"
        start = time.monotonic()
        assert_clear_error(invoke("search", "x", "--uri", uri), f"{uri} does not answer")
        assert time.monotonic() - start < 20


@contextlib.contextmanager
def guarded(folder: Path) -> Iterator[str]:
    """milvus-lite behind a proxy that asks for TOKEN as Milvus does."""
    import grpc
    from milvus_lite import server_manager_instance as lite

    class Door(grpc.GenericRpcHandler):
        def service(self, details):
            given = dict(details.invocation_metadata).get("authorization", "")
            known = given == base64.b64encode(TOKEN.encode()).decode()
            forward = channel.unary_unary(details.method)
            return grpc.unary_unary_rpc_method_handler(
                lambda request, context: (
                    answer(forward, request, context) if known else refuse(context)
                )
            )

    def refuse(context):
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "auth check failure, please check the token")

    def answer(forward, request, context):
        try:
            return forward(request)
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())

    backend = lite.start_and_get_uri(str(folder)).removeprefix("http://")
    with grpc.insecure_channel(backend) as channel, ThreadPoolExecutor(4) as threads:
        server = grpc.server(threads, handlers=[Door()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.stop(grace=None).wait()
            lite.release_server(str(folder))


def test_tokens_come_from_the_environment_and_are_never_shown(plain, monkeypatch, caplog):
    monkeypatch.setenv("RIGHT", TOKEN)
    monkeypatch.setenv("WRONG", "root:guessed")
    with guarded(plain / "served") as uri:
        results = [
            index_to(uri, "--token-env", "RIGHT"),
            invoke("search", "a red circle", "--uri", uri, "--token-env", "RIGHT"),
            invoke("search", "x", "--uri", uri, "--token-env", "WRONG"),
            index_to(uri, "--token-env", "WRONG"),
            invoke("search", "x", "--uri", uri),
            invoke("search", "x", "--uri", uri, "--token-env", TOKEN),
        ]
    assert [one.exit_code for one in results] == [0, 0, 1, 1, 1, 1]
    assert_exact(hits_of(results[1].stdout), hits_of(invoke("search", "a red circle").stdout))
    for one in results[2:4]:
        assert_clear_error(one, f"{uri} refuses to answer to this token", "--token-env")
    assert_clear_error(results[4], f"{uri} refuses to answer without a token", "--token-env")
    assert_clear_error(results[5], "that --token-env names is not set")
    shown = caplog.text + "".join(one.output for one in results)
    assert "secret" not in shown
    assert "guessed" not in shown


def test_a_token_in_clear_over_the_network_is_named(monkeypatch, caplog):
    monkeypatch.setenv("RIGHT", TOKEN)
    monkeypatch.setattr(milvus_module, "CONNECT_SECONDS", 0.5)
    address = Address("http://milvus.invalid:19530", "RIGHT")
    with pytest.raises(ResourceError, match="does not answer"), connect(address):
        pass
    assert "the token goes to milvus.invalid unencrypted" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("missing", ["pymilvus", "milvus_lite"])
def test_the_extra_is_named(in_loaded, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    error = f"Milvus needs {missing}, which is not installed"
    assert_clear_error(
        invoke("search", "x", "--uri", DATABASE), error, "pip install -e '.[milvus]'"
    )


@pytest.mark.slow
def test_a_search_in_files_imports_no_milvus(loaded):
    """A missing extra costs nothing, neither does one that is there."""
    script = "import sys, stages.search; stages.search.app(['x'], standalone_mode=False); "
    script += "print([name for name in ('pymilvus', 'milvus_lite', 'grpc') if name in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script]
    output = subprocess.check_output(command, cwd=loaded, env=environment, text=True)
    assert output.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_the_command_ends_and_leaves_no_process(loaded):
    """As a user runs it, behind a proxy: its process group and stderr are empty afterwards."""
    command = [sys.executable, "-m", "stages.search", "a red circle", "--uri", DATABASE]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "http_proxy": "http://127.0.0.1:9"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
    with subprocess.Popen(command, cwd=loaded, env=environment, **pipes) as process:
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, b"")
    assert len(json.loads(stdout)["hits"]) == 10
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_flickr8k_is_found_as_in_exact_search(tmp_path, monkeypatch):
    """By a student of a few steps; 1,000 queries into each space.

    KDMCSE_IMAGES says how many photos of train take part, of 6,000.
    """
    write_params(
        tmp_path, REAL, {"train": {"steps": 2}, "index": {"items": ["captions", "images"]}}
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA_MIRROR", str(SHARED / "mirror"))
    run("download")
    images = int(os.environ.get("KDMCSE_IMAGES", "500"))
    keep_few_images(Path("data/pairs"), per_split={"train": images, "val": 50, "test": 50})
    keep_few_dev_pairs(Path("data/evaluation"), 60)
    for stage in ("features", "train"):
        run(stage)
    run("index", "--to", "milvus", "--uri", DATABASE)
    with MilvusIndex.open(Address(DATABASE)) as index:
        assert index.about.rows["images"] >= images + 98  # photos that stand twice are one row
        assert index.about.rows["texts"] > 4.9 * (images + 100)
        for space, asked_by in (("texts", "texts"), ("grounded", "images"), ("images", "grounded")):
            rows, queries = kept_vectors(tmp_path, space), kept_vectors(tmp_path, asked_by)[:1000]
            exact = -np.sort(-(queries @ rows.T), axis=1)[:, :10]
            found = index.search(space, queries, Window(10))
            scores = np.array([[hit.score for hit in one] for one in found])
            np.testing.assert_allclose(scores, exact, rtol=0, atol=1e-5)
            assert (scores >= exact[:, -1:] - 1e-6).mean() == 1.0
