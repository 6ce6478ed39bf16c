"""Filling an index shard by shard, on one machine or several, and merging the shards.

    <kept>/<key>/<space>-<kind>-<seed>.faiss               trained on a sample, without rows
    <kept>/<key>/<space>-<kind>-<seed>-<hash>-00000.faiss  the rows of one shard of that training

Shards are kept beside the vectors, so that a kill loses one of them at most and several machines
can make them. All use the same trained index, the first one made. A flat index, a graph, whose rows
cannot be merged, and an index of one shard are filled at once.
"""

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import faiss

from pipeline.core.checksums import add_checksum, hash_file, is_whole
from pipeline.core.errors import InputError
from pipeline.core.files import atomic_file, reports_unwritable
from pipeline.core.progress import progress
from pipeline.core.redact import first_line
from pipeline.index import faiss_index
from pipeline.index.embed import Partition, Parts
from pipeline.index.format import Space
from pipeline.params.index import IndexParams, Kind

PARTS_A_SHARD = 64
"""Together a million rows."""


def filled(kind: Kind, parts: Parts, seed: int) -> Any:
    """An index of a kind with all rows, from its shards, which are made where they are missing.

    Raises:
        InputError: a shard has other rows than it should.
        ResourceError: the disk is full, or the place cannot be written.
    """
    if not _has_shards(kind, parts):
        index = _trained(kind, parts, seed)
        faiss_index.fill(index, kind, parts.blocks())
        return faiss_index.finish(kind, index)
    index = _read(_train(kind, parts, seed))
    for number in range(_count(parts)):
        faiss_index.merge(index, _read(_make(kind, parts, seed, number)))
    if index.ntotal != parts.rows:
        folder = parts.files[0].parent
        raise InputError(f"the shards in {folder} have other rows.", f"delete {folder}.")
    return faiss_index.finish(kind, index)


def make_shards(spaces: Mapping[Space, Parts], params: IndexParams, machine: Partition) -> bool:
    """Make one machine's part of the shards, once all vectors exist.

    Args:
        spaces: the vectors.
        params: the index block; only a kind that is named and can be merged has shards.
        machine: whose shards.

    Returns:
        Whether there was anything to make.

    Raises:
        ResourceError: the disk is full, or the place cannot be written.
    """
    if params.kind == "auto" or any(parts.missing() for parts in spaces.values()):
        return False
    sharded = [parts for parts in spaces.values() if _has_shards(params.kind, parts)]
    for parts in sharded:
        own = range(machine.number - 1, _count(parts), machine.of)
        for number in progress(own, what=f"shards of {parts.name}", unit="shard"):
            _make(params.kind, parts, params.seed, number)
    return bool(sharded)


def _has_shards(kind: Kind, parts: Parts) -> bool:
    return kind not in {"flat", "hnsw"} and _count(parts) > 1


def _count(parts: Parts) -> int:
    return -(-len(parts.files) // PARTS_A_SHARD)


def _trained(kind: Kind, parts: Parts, seed: int) -> Any:
    sample = parts.take(parts.draw(faiss_index.sample_size(parts.rows), seed))
    return faiss_index.train(kind, sample, parts.rows, seed)


def _train(kind: Kind, parts: Parts, seed: int) -> Path:
    """The file of the trained index; if several machines train, the first one's is kept."""
    path = parts.beside(f"{kind}-{seed}")
    if not is_whole(path):
        path.unlink(missing_ok=True)
        index = _trained(kind, parts, seed)
        with reports_unwritable(path), tempfile.TemporaryDirectory(dir=path.parent) as folder:
            faiss_index.write(index, Path(folder) / path.name)
            add_checksum(Path(folder) / path.name)
            with contextlib.suppress(FileExistsError):
                os.link(Path(folder) / path.name, path)
    return path


def _make(kind: Kind, parts: Parts, seed: int, number: int) -> Path:
    """The file of a shard."""
    trained = _train(kind, parts, seed)
    path = parts.beside(f"{kind}-{seed}-{hash_file(trained)[:12]}-{number:05d}")
    if not is_whole(path):
        index = _read(trained)
        own = range(number * PARTS_A_SHARD, (number + 1) * PARTS_A_SHARD)
        faiss_index.fill(index, kind, parts.blocks(own))
        with atomic_file(path) as temporary:
            faiss_index.write(index, temporary)
            add_checksum(temporary)
    return path


def _read(path: Path) -> Any:
    """In memory, to be added to."""
    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:  # faiss raises nothing narrower
        raise InputError(
            f"{path} cannot be used: {first_line(error)}.",
            "delete it and run the same command again.",
        ) from None
