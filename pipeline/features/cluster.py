"""Who encodes, on a Ray cluster: workers with a teacher each, over which Ray Data spreads shards.

Every worker runs the `Encoder` of one machine on rows that make one shard, and writes that shard
into the cache, which all nodes therefore have to see under one path. Only keys come back. What is
one process's business there is the same here: a worker that dies is replaced by Ray, its shard is
done again, and what was written stays.

ray is imported where it is used: the project works without it.
"""

import contextlib
import json
import logging
import os
import platform
import secrets
import signal
import socket
import tempfile
import threading
import traceback
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from jaxtyping import Float32

from pipeline.core.device import choose_device
from pipeline.core.errors import InputError, ModelError, ParamsError, PipelineError, ResourceError
from pipeline.core.progress import counter
from pipeline.download.packed_images import PackedImages, Rejection
from pipeline.features.cache import FeatureCache, KeySet, Kind
from pipeline.features.encode import CaptionShard, Encoder, NewCaptions, Work
from pipeline.features.identity import TeacherIdentity, folder_of
from pipeline.features.teacher import Teacher
from pipeline.params.features import FeaturesParams
from pipeline.params.teacher import TeacherParams

ADDRESS = "RAY_ADDRESS"
"""Environment variable that names the cluster, HOST:PORT or auto; unset: one of this machine."""

_LOCAL = "local"
_TRIES = 3
"""How often a shard is begun before it is taken for what ends its workers."""
_QUEUE = 2
"""Shards that are on their way to a worker or in its hands."""
_REACH_SECONDS = 10.0
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
"""Nothing is sent to Ray's makers, and its C++ warnings stay out of the terminal."""
_CLOSED = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Makes Ray listen on 127.0.0.1 alone, also on Linux; it looks when it is imported."""
_SHARE = "put data and KDMCSE_STORE on a file system that all nodes mount under the same path."
_DEPENDENCIES = ("architecture", "weights", "preprocessing", "tokenizer", "dtype")


class RayEngine:
    """The workers of the cluster that this process is connected to; an `Engine`.

    Args:
        params: sizes of batches and shards, threads of a worker.
        teacher: what the workers' teachers must be equal to.
        cache: into which they write.
        attempts: a folder beside it in which they note what they begin.
    """

    def __init__(
        self, params: FeaturesParams, teacher: Teacher, cache: FeatureCache, attempts: Path
    ) -> None:
        self._params = params
        self._identity = teacher.identity
        self._cache = cache
        self._attempts = attempts

    def encode_images(self, images: PackedImages) -> Iterator[Work]:
        """As `Encoder.encode_images`, in the order in which workers end.

        Raises:
            InputError: an archive is missing or damaged as a whole.
            ModelError: the teacher gives features that are not finite, or cannot be loaded on a
                node, or is another one there.
            ResourceError: a node does not see the cache or the archives, a shard ends its workers,
                or the cluster fails.
        """
        size = self._params.shard_rows
        tasks = [_pack_images(images, start, size) for start in range(0, len(images), size)]
        folder = images.folder.resolve()
        yield from self._encode("images", tasks, len(images), self._cache.known("images"), folder)

    def encode_captions(self, captions: NewCaptions) -> Iterator[Work]:
        """As `Encoder.encode_captions`, in the order in which workers end.

        Errors as `encode_images`.
        """
        tasks = [_pack_captions(shard) for shard in captions]
        yield from self._encode("captions", tasks, captions.total, KeySet(), Path())

    def _encode(
        self, kind: Kind, tasks: list[pa.Table], total: int, known: KeySet, folder: Path
    ) -> Iterator[Work]:
        if not tasks:
            return
        import ray

        resources, slots = _find_slots(ray)
        job = _Job(
            kind=kind,
            params=self._params,
            teacher=_teacher_of(self._identity),
            identity=self._identity,
            cache=self._cache.folder.resolve(),
            attempts=self._attempts,
            folder=folder,
            known=ray.put(known),
        )
        results = _spread(job, tasks, resources, min(slots, len(tasks)))
        bar = counter(kind, kind.removesuffix("s"), total)
        with bar, contextlib.closing(results):
            for result in results:
                work = _unpack(result)
                bar.update(len(work.keys))
                yield work


@contextlib.contextmanager
def ray_engine(
    params: FeaturesParams, teacher: Teacher, cache: FeatureCache
) -> Iterator[RayEngine]:
    """The cluster that RAY_ADDRESS names, or a new one of this machine that ends with the block.

    Raises:
        ParamsError: ray is not installed, or RAY_ADDRESS is no address of a cluster.
        ResourceError: the cluster cannot be reached.
    """
    with (
        _connected(),
        tempfile.TemporaryDirectory(prefix=".cluster-", dir=cache.folder.resolve()) as attempts,
    ):
        yield RayEngine(params, teacher, cache, Path(attempts))


@dataclass(frozen=True)
class _Job:
    """What a worker has to know."""

    kind: Kind
    params: FeaturesParams
    teacher: TeacherParams
    identity: TeacherIdentity
    """The driver's teacher."""
    cache: Path
    attempts: Path
    """Made by the driver for this run, so that a node that sees it sees the driver's cache."""
    folder: Path
    """Where the archives of images are."""
    known: Any
    """Ray's reference to a KeySet, of what need not be encoded; the workers of a node share it."""


class _Worker:
    """A teacher on one device; runs on the cluster, as Ray Data's function of one shard's rows."""

    def __init__(self, job: _Job) -> None:
        self._job = job
        self._encoder: Encoder | None = None

    def __call__(self, task: pa.Table) -> pa.Table:
        """The account of a shard's rows, or what went wrong, in one row."""
        try:
            return _pack_work(self._encode(task))
        except PipelineError as error:
            return _pack_failure(error.what, error.fix, type(error).__name__)
        except Exception as error:  # noqa: BLE001  # the driver reports it as what it is: a bug
            text = f"{type(error).__name__} on node {platform.node()}: {error}"
            return _pack_failure(text, traceback.format_exc(), "")

    def _encode(self, task: pa.Table) -> Work:
        start, rows = task["start"][0].as_py(), task["rows"][0].as_py()
        self._require_shared()
        with self._attempt(start, rows):
            encoder = self._encoder = self._encoder or self._load()
            (work,) = list(self._works(encoder, task))  # to its end: the shard is written then
        return replace(work, start=start)

    def _works(self, encoder: Encoder, task: pa.Table) -> Iterator[Work]:
        if self._job.kind == "images":
            return encoder.encode_images(_unpack_images(task, self._job.folder))
        return encoder.encode_captions(_unpack_captions(task))

    def _load(self) -> Encoder:
        import ray

        job = self._job
        torch.set_num_threads(1)
        try:
            teacher = Teacher(job.teacher, choose_device(), job.params.precision)
        except ModelError as error:
            raise ModelError(f"node {platform.node()}: {error.what}", error.fix) from None
        _require_equal(teacher.identity, job.identity)
        probe = teacher.probe()
        cache = _NodeCache(job.cache.parent, teacher.identity, probe, ray.get(job.known))
        if cache.folder != job.cache:
            raise ModelError(
                f"node {platform.node()} computes other features from the same weights.",
                "install the same versions (constraints.txt) on all nodes.",
            )
        return Encoder(teacher, cache, job.params, show_progress=False)

    def _require_shared(self) -> None:
        for folder in (self._job.attempts, self._job.folder):
            if not folder.is_dir():
                raise ResourceError(f"node {platform.node()} does not see {folder}.", _SHARE)

    @contextlib.contextmanager
    def _attempt(self, start: int, rows: int) -> Iterator[None]:
        """Note what is begun; a note that is still there was left by a worker that died."""
        kind, note = self._job.kind, self._job.attempts / f"{self._job.kind}-{start}"
        with note.open("ab") as stream:
            stream.write(b".")
            begun = stream.tell()
        if begun > _TRIES:
            raise ResourceError(
                f"{kind} {start:,} to {start + rows - 1:,} ended their worker {_TRIES} times.",
                "Ray's logs on the nodes say why; where memory ran out, lower features.batch_size, "
                "features.workers or features.shard_rows. What was encoded is kept.",
            )
        try:
            yield
        finally:
            note.unlink(missing_ok=True)


class _NodeCache(FeatureCache):
    """The cache as a worker sees it: what was known is told, not read from all shards."""

    def __init__(
        self,
        root: Path,
        teacher: TeacherIdentity,
        probe: Float32[np.ndarray, "two dim"],
        known: KeySet,
    ) -> None:
        super().__init__(root, teacher, probe)
        self._known = known

    def known(self, kind: Kind) -> KeySet:
        """The keys that the driver found, and of images those that this worker encoded since."""
        return self._known if kind == "images" else super().known(kind)


def _teacher_of(identity: TeacherIdentity) -> TeacherParams:
    """How to load the teacher in another process, whose current folder may be any."""
    folder, model = folder_of(identity.model), identity.model
    if folder is not None:
        prefix = model.partition(":")[0]
        model = f"{prefix}:{folder.resolve()}"
    return TeacherParams(model=model, pretrained=identity.pretrained or None)


def _require_equal(found: TeacherIdentity, wanted: TeacherIdentity) -> None:
    if found.fingerprint == wanted.fingerprint:
        return
    names = [name for name in _DEPENDENCIES if getattr(found, name) != getattr(wanted, name)]
    node = platform.node()
    if "dtype" in names:
        raise ModelError(
            f"the teacher runs in {found.dtype} on node {node}, and in {wanted.dtype} here.",
            "set features.precision to fp16, bf16 or fp32.",
        )
    raise ModelError(
        f"the teacher on node {node} is another than here, in its {', '.join(names)}.",
        "give all nodes the same weights, and the same versions (constraints.txt).",
    )


def _pack_images(images: PackedImages, start: int, size: int) -> pa.Table:
    archives, members = (
        pa.array(column[start : start + size], pa.string())
        for column in (images.archives, images.members)
    )
    columns = {"archives": archives.dictionary_encode(), "members": members}
    return _pack_task(start, len(members), columns)


def _pack_captions(shard: CaptionShard) -> pa.Table:
    keys = pa.array([key.tobytes() for key in shard.keys], pa.binary(16))
    columns = {"captions": pa.array(shard.captions, pa.string()), "keys": keys}
    return _pack_task(shard.start, len(keys), columns)


def _pack_task(start: int, rows: int, columns: dict[str, pa.Array]) -> pa.Table:
    """One row: a list of each column's values."""
    lists = {
        name: pa.ListArray.from_arrays(pa.array([0, rows], pa.int32()), column)
        for name, column in columns.items()
    }
    return pa.table({"start": [start], "rows": [rows], **lists})


def _unpack_images(task: pa.Table, folder: Path) -> PackedImages:
    return PackedImages(folder, task["archives"][0].as_py(), task["members"][0].as_py())


def _unpack_captions(task: pa.Table) -> NewCaptions:
    captions = pd.Series(task["captions"][0].as_py(), dtype="str")
    keys = np.frombuffer(b"".join(task["keys"][0].as_py()), np.uint8).reshape(-1, 16)
    return NewCaptions(captions, keys, np.ones(len(captions), dtype=bool), len(captions))


def _pack_work(work: Work) -> pa.Table:
    rejected = [[row, why.reason, why.detail] for row, why in work.rejected.items()]
    return _pack_result([work.start, work.encoded, rejected], work.keys.tobytes(), failed=False)


def _pack_failure(what: str, fix: str, kind: str) -> pa.Table:
    return _pack_result([what, fix, kind], b"", failed=True)


def _pack_result(content: list[Any], keys: bytes, *, failed: bool) -> pa.Table:
    return pa.table({"content": [json.dumps(content)], "keys": [keys], "failed": [failed]})


def _unpack(result: dict[str, Any]) -> Work:
    content = json.loads(result["content"])
    if result["failed"]:
        _raise(*content)
    start, encoded, rejected = content
    keys = np.frombuffer(result["keys"], np.uint8).reshape(-1, 16)
    return Work(start, keys, {row: Rejection(*why) for row, *why in rejected}, encoded)


def _raise(what: str, fix: str, kind: str) -> NoReturn:
    """Raise here what was raised on a node."""
    if not kind:
        error = RuntimeError(what)
        error.add_note(fix)
        raise error
    raise _RAISED.get(kind, PipelineError)(what, fix)


_RAISED = {one.__name__: one for one in (InputError, ModelError, ResourceError)}


def _spread(
    job: _Job, tasks: list[pa.Table], resources: dict[str, Any], workers: int
) -> Generator[dict[str, Any]]:
    """What the workers make of the tasks, as it comes."""
    import ray.data

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # a shard takes as long as it takes
    pool = ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=_QUEUE)
    with ray.data.DataContext.current(context), _reports_cluster():
        _silence(logging.getLogger("ray.data"))
        data = ray.data.from_arrow(tasks).map_batches(
            _Worker,
            fn_constructor_args=(job,),
            batch_size=1,
            batch_format="pyarrow",
            compute=pool,
            **resources,
        )
        try:
            yield from _rows(ray, data)
        finally:
            _stop_executors()


def _rows(ray: Any, data: Any) -> Iterator[dict[str, Any]]:
    """All rows, read by this thread: `iter_rows` leaves threads behind that go on asking Ray."""
    for bundle in data.iter_internal_ref_bundles():
        for block in bundle.block_refs:
            yield from ray.get(block).to_pylist()


def _stop_executors() -> None:
    """End Ray Data's threads: one that asks Ray once it is shut down ends the process unheard."""
    executors: list[Any] = [
        thread for thread in threading.enumerate() if thread.name.startswith("StreamingExecutor")
    ]
    for executor in executors:
        executor.shutdown(force=True)
        executor.join()


def _silence(logger: logging.Logger) -> None:
    """Leave Ray Data's log to its file; what matters of it is raised, or shown by our own bar."""
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL + 1)


def _find_slots(ray: Any) -> tuple[dict[str, Any], int]:
    """What a worker takes, and how many of them the cluster has room for."""
    found = ray.cluster_resources()
    for name, argument in (("GPU", "num_gpus"), ("CPU", "num_cpus")):
        if found.get(name, 0) >= 1:
            return {argument: 1}, int(found[name])
    raise ResourceError("the Ray cluster has neither GPUs nor CPUs.", "start nodes that have some.")


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ParamsError(
            f"features.engine is ray, which is not installed ({error}).",
            "run `pip install -e '.[cluster]'`, or set features.engine to local.",
        ) from None
    return ray


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    """Connect to the cluster, or start one; a connection that is there already is left alone."""
    address = os.environ.get(ADDRESS) or _LOCAL
    with _environment(_QUIET | (_closed() if address == _LOCAL else {})):
        ray = _import_ray()
        if ray.is_initialized():
            yield
            return
        _require_reachable(address)
        try:
            _connect(ray, address)
            yield
        finally:
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    with _keeps_handlers(), _reports_cluster():
        ray.init(
            address=address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


def _closed() -> dict[str, str]:
    """Settings that keep others out of a cluster of ours; Ray would put a token into the home."""
    return _CLOSED | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _require_reachable(address: str) -> None:
    """Find out within seconds, where Ray would try for minutes.

    Raises:
        ParamsError: it is no address, or one of Ray Client, which Ray Data does not work through.
        ResourceError: nobody listens there.
    """
    if address in {_LOCAL, "auto"}:
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "://" in address:
        raise ParamsError(
            f"{ADDRESS}={address} is no address of a Ray cluster.",
            "name it as HOST:PORT, such as 10.0.0.1:6379, or auto; run on one of its nodes.",
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ResourceError(
            f"no Ray cluster can be reached at {ADDRESS}={address} ({error}).",
            f"start it with `ray start --head`, or unset {ADDRESS} to use this machine.",
        ) from None


@contextlib.contextmanager
def _reports_cluster() -> Iterator[None]:
    """Turn what Ray raises into one error."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ResourceError(
            f"the Ray cluster failed: {reason}",
            "check `ray status` and Ray's logs, and run the same command again; what was encoded "
            "is kept.",
        ) from error


@contextlib.contextmanager
def _keeps_handlers() -> Iterator[None]:
    """Put back the signal handlers that ray.init replaces by one that leaves without a word."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    previous = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    except SystemExit as error:
        handler = previous[signal.SIGTERM]
        if error.code == signal.SIGTERM and callable(handler):
            handler(signal.SIGTERM, None)
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _environment(additions: dict[str, str]) -> Iterator[None]:
    """Set variables that are not set, for as long as the block runs."""
    before = dict(os.environ)
    os.environ.update({name: value for name, value in additions.items() if name not in before})
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)
