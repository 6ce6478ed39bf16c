"""Filling an index shard by shard, on one machine or several, and merging the shards.

    <kept>/<key>/<space>-<kind>-<seed>.faiss         trained on a sample, without rows
    <kept>/<key>/<space>-<kind>-<seed>-00000.faiss   the rows of one shard

Shards are kept beside the vectors, so that a kill loses one of them at most and other machines can
make them; whoever makes them, their bytes are the same. An index of one shard is filled at once,
and so is a graph, whose rows cannot be merged.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import faiss

from pipeline.index import kinds
from pipeline.index.embed import Parts, Share
from pipeline.index.layout import Space, Vectors
from pipeline.params.index import IndexParams, Kind
from pipeline.runtime import atomic_file, counter

PARTS_A_SHARD = 64
"""Together a million rows."""


def filled(kind: Kind, parts: Parts, seed: int) -> Any:
    """An index of a kind with all rows, from the shards that are there and those it makes."""
    if kind == "hnsw" or _count(parts) == 1:
        index = kinds.train(kind, _sample(parts, seed), parts.rows, seed)
        kinds.fill(index, kind, parts.blocks())
        return index
    index = _trained(kind, parts, seed)
    for number in range(_count(parts)):
        kinds.merge(index, _shard(kind, parts, seed, number))
    return index


def make_shards(spaces: Mapping[Space, Parts], params: IndexParams, share: Share) -> bool:
    """Make one machine's share of the shards, where all vectors are there.

    Args:
        spaces: the vectors.
        params: the index block; only a kind that is named and can be merged has shards.
        share: whose shards.

    Returns:
        Whether there was anything to be made from.
    """
    whole = all(file.is_file() for parts in spaces.values() for file in parts.files)
    if not whole or params.kind in {"auto", "hnsw"}:
        return False
    kind = cast(Kind, params.kind)
    for space, parts in spaces.items():
        own = range(share.number - 1, _count(parts), share.of)
        bar = counter(f"shards of {space}", "shard", len(own))
        with bar:
            for number in own:
                _shard(kind, parts, params.seed, number)
                bar.update()
    return True


def _count(parts: Parts) -> int:
    return -(-len(parts.files) // PARTS_A_SHARD)


def _sample(parts: Parts, seed: int) -> Vectors:
    return parts.take(parts.draw(kinds.sample_size(parts.rows), seed))


def _trained(kind: Kind, parts: Parts, seed: int) -> Any:
    path = parts.beside(f"{kind}-{seed}")
    if path.is_file():
        return faiss.read_index(str(path))
    index = kinds.train(kind, _sample(parts, seed), parts.rows, seed)
    _write(index, path)
    return index


def _shard(kind: Kind, parts: Parts, seed: int, number: int) -> Any:
    path = parts.beside(f"{kind}-{seed}-{number:05d}")
    if path.is_file():
        return faiss.read_index(str(path))
    index = _trained(kind, parts, seed)
    kinds.fill(index, kind, _rows(parts, number))
    _write(index, path)
    return index


def _rows(parts: Parts, number: int) -> Iterator[Vectors]:
    return parts.blocks(range(number * PARTS_A_SHARD, (number + 1) * PARTS_A_SHARD))


def _write(index: Any, path: Path) -> None:
    with atomic_file(path) as temporary:
        faiss.write_index(index, str(temporary))
