"""Encoding on a Ray cluster: every worker has a teacher, and encodes one shard at a time.

A worker runs the `FeatureExtractor` of a single machine and writes its shard into the cache, which
all nodes must see under the same path; only keys come back. Ray restarts a worker that dies, and
repeats its shard; finished shards stay.

ray is imported where it is used: the project works without it.
"""

import contextlib
import logging
import os
import platform
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pipeline.core.device import choose_device
from pipeline.core.errors import ModelError, ParamsError, ResourceError
from pipeline.core.extras import require_extra
from pipeline.core.progress import counter
from pipeline.download.packed_images import PackedImages
from pipeline.features.cache import FeatureCache, KeySet, Kind
from pipeline.features.encode import CaptionShard, FeatureExtractor, NewCaptions, ShardResult
from pipeline.features.identity import TeacherIdentity, folder_of
from pipeline.features.teacher import Teacher
from pipeline.params.features import FeaturesParams
from pipeline.params.teacher import TeacherParams

ADDRESS = "RAY_ADDRESS"
"""Environment variable that names the cluster, HOST:PORT or auto; unset: one of this machine."""

_LOCAL = "local"
_TRIES = 3
"""How often a shard may end its worker before the run stops."""
_REACH_SECONDS = 10.0
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
"""Sends no usage statistics, and keeps Ray's C++ warnings out of the terminal."""
_CLOSED = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Makes Ray listen on 127.0.0.1 only, also on Linux; Ray reads it when it is imported."""
_SHARE = "put data and KDMCSE_STORE on a file system that all nodes mount under the same path."
_DEPENDENCIES = ("architecture", "weights", "preprocessing", "tokenizer", "dtype")


@dataclass(frozen=True)
class ImageShard:
    """Images that make one shard, and their first row."""

    start: int
    folder: Path
    archives: list[str]
    members: list[str]


@dataclass(frozen=True)
class RayEngine:
    """The workers of the cluster that this process is connected to; each is sent a copy."""

    params: FeaturesParams
    teacher: TeacherParams
    identity: TeacherIdentity
    """The teachers of the workers must equal it."""
    cache: Path
    """The folder into which the workers write."""
    marker: Path
    """A new file in the cache; a node that sees it sees this cache."""

    def encode_images(self, images: PackedImages, known: KeySet) -> Iterator[ShardResult]:
        """As `FeatureExtractor.encode_images`, in the order in which workers finish.

        Raises:
            InputError: an archive is missing or damaged as a whole.
            ModelError: the teacher gives features that are not finite, cannot be loaded on a node,
                or is another one there.
            ResourceError: a node does not see the cache or the archives, a shard ends its workers,
                or the cluster fails.
        """
        starts, folder = range(len(images))[:: self.params.shard_rows], images.folder.resolve()
        shards = (
            ImageShard(
                start,
                folder,
                list(images.archives[start : start + starts.step]),
                list(images.members[start : start + starts.step]),
            )
            for start in starts
        )
        yield from self._encode("images", shards, len(starts), len(images), known)

    def encode_captions(self, captions: NewCaptions) -> Iterator[ShardResult]:
        """As `FeatureExtractor.encode_captions`, in the order in which workers finish.

        Errors as `encode_images`.
        """
        shards = list(captions)
        yield from self._encode("captions", iter(shards), len(shards), captions.total, KeySet())

    def _encode(
        self,
        kind: Kind,
        shards: Iterator[ImageShard] | Iterator[CaptionShard],
        count: int,
        total: int,
        known: KeySet,
    ) -> Iterator[ShardResult]:
        import ray

        resources, slots = _find_slots(ray)
        remote = ray.remote(_Worker).options(
            max_restarts=-1, max_task_retries=_TRIES - 1, **resources
        )
        shared = ray.put(known)
        workers: list[Any] = [remote.remote(self, shared) for _ in range(min(slots, count))]
        try:
            with counter(kind, kind.removesuffix("s"), total) as bar:
                for result in _spread(ray, workers, shards, kind):
                    bar.update(len(result.keys))
                    yield result
        finally:
            for worker in workers:
                ray.kill(worker)


@contextlib.contextmanager
def ray_engine(
    params: FeaturesParams, teacher: Teacher, cache: FeatureCache
) -> Iterator[RayEngine]:
    """The cluster that RAY_ADDRESS names, or a new one of this machine that ends with the block.

    Raises:
        ParamsError: RAY_ADDRESS is not the address of a cluster.
        ResourceError: ray is not installed, or the cluster cannot be reached.
    """
    folder = cache.folder.resolve()
    with _connected(), tempfile.NamedTemporaryFile(prefix=".cluster-", dir=folder) as marker:
        named = _teacher_of(teacher.identity)
        yield RayEngine(params, named, teacher.identity, folder, Path(marker.name))


def _spread(
    ray: Any, workers: list[Any], shards: Iterator[Any], kind: Kind
) -> Iterator[ShardResult]:
    """Give each worker that is ready the next shard; yields results as they come."""
    running = {worker.ready.remote(): (worker, None) for worker in workers}
    following = next(shards, None)
    while following or any(shard for _, shard in running.values()):
        with _reports_cluster():
            [done], _ = ray.wait(list(running))
        worker, shard = running.pop(done)
        if following:
            running[worker.encode.remote(following)] = (worker, following)
            following = next(shards, None)
        if shard:
            yield _result_of(ray, done, kind, shard)


def _result_of(ray: Any, done: Any, kind: Kind, shard: ImageShard | CaptionShard) -> ShardResult:
    """What a worker made of a shard; its errors are raised here."""
    failed, died = ray.exceptions.RayTaskError, ray.exceptions.RayActorError
    try:
        with _reports_cluster(failed, died):
            result: ShardResult = ray.get(done)
    except failed as error:
        raise error.cause from error
    except died:
        raise ResourceError(
            f"the shard of {kind} from {shard.start:,} on ended its worker {_TRIES} times.",
            "see Ray's logs on the nodes for the reason; if memory ran out, lower "
            "features.batch_size, features.workers or features.shard_rows. Finished shards stay.",
        ) from None
    return replace(result, start=shard.start)


class _Worker:
    """A teacher on one device of the cluster."""

    def __init__(self, engine: RayEngine, known: KeySet) -> None:
        self._engine = engine
        self._known = known
        self._extractor: FeatureExtractor | None = None

    def ready(self) -> None:
        """Return once the worker is up, which on a busy cluster may take long."""

    def encode(self, shard: ImageShard | CaptionShard) -> ShardResult:
        """Encode a shard into the cache."""
        _require_seen(self._engine.marker)
        extractor = self._extractor = self._extractor or self._load()
        if isinstance(shard, ImageShard):
            _require_seen(shard.folder)
            images = PackedImages(shard.folder, shard.archives, shard.members)
            results = extractor.encode_images(images, self._known)
        else:
            captions, count = pd.Series(shard.captions, dtype="str"), len(shard.captions)
            new = NewCaptions(captions, shard.keys, np.ones(count, dtype=bool), count)
            results = extractor.encode_captions(new)
        (result,) = list(results)  # read to the end: the shard is written then
        return result

    def _load(self) -> FeatureExtractor:
        engine = self._engine
        torch.set_num_threads(1)
        try:
            teacher = Teacher(engine.teacher, choose_device(), engine.params.precision)
        except ModelError as error:
            raise ModelError(f"node {platform.node()}: {error.what}", error.fix) from None
        _require_equal(teacher.identity, engine.identity)
        cache = FeatureCache(engine.cache.parent, teacher.identity, teacher.probe())
        if cache.folder != engine.cache:
            raise ModelError(
                f"node {platform.node()} computes other features from the same weights.",
                "install the same versions (constraints.txt) on all nodes.",
            )
        return FeatureExtractor(teacher, cache, engine.params, show_progress=False)


def _require_seen(path: Path) -> None:
    if not path.exists():
        raise ResourceError(f"node {platform.node()} does not see {path}.", _SHARE)


def _teacher_of(identity: TeacherIdentity) -> TeacherParams:
    """How to load the teacher in another process, whose working folder may be any."""
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


def _find_slots(ray: Any) -> tuple[dict[str, Any], int]:
    """What a worker takes, and how many of them the cluster has room for."""
    found = ray.cluster_resources()
    for name, argument in (("GPU", "num_gpus"), ("CPU", "num_cpus")):
        if found.get(name, 0) >= 1:
            return {argument: 1}, int(found[name])
    raise ResourceError("the Ray cluster has neither GPUs nor CPUs.", "start nodes that have some.")


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    """Connect to the cluster, or start one; an existing connection is left alone."""
    address = os.environ.get(ADDRESS) or _LOCAL
    closed = _CLOSED | {
        "RAY_AUTH_TOKEN": secrets.token_hex(32)
    }  # Ray's would be in the home folder
    with _environment(_QUIET | (closed if address == _LOCAL else {})):
        require_extra("cluster", "features.engine: ray", "ray")
        import ray

        if ray.is_initialized():
            yield
            return
        _require_reachable(address)
        try:
            with _keeps_handlers(), _reports_cluster():
                ray.init(
                    address=address,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            yield
        finally:
            ray.shutdown()


def _require_reachable(address: str) -> None:
    """Fail within seconds, where Ray would try for minutes.

    Raises:
        ParamsError: it is not an address, or that of a Ray Client server.
        ResourceError: nothing listens there.
    """
    if address in {_LOCAL, "auto"}:
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "://" in address:
        raise ParamsError(
            f"{ADDRESS}={address} is not the address of a Ray cluster.",
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
def _reports_cluster(*passed: type[Exception]) -> Iterator[None]:
    """Turn what Ray raises into one error, but for the classes that are passed on."""
    try:
        yield
    except passed:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ResourceError(
            f"the Ray cluster failed: {reason}",
            "check `ray status` and Ray's logs, and run the same command again; finished shards "
            "stay.",
        ) from error


@contextlib.contextmanager
def _keeps_handlers() -> Iterator[None]:
    """Restore the signal handlers that ray.init replaces by one that exits without a message."""
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
    """Set variables that are not set yet, for as long as the block runs."""
    before = dict(os.environ)
    os.environ.update({name: value for name, value in additions.items() if name not in before})
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)
