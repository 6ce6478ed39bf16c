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
from dataclasses import dataclass
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
    shards = _Shards(kind, parts, seed)
    if not shards.count:
        index = shards.train()
        faiss_index.fill(index, parts.blocks())
        return faiss_index.finish(index)
    index = _read(shards.trained())
    for number in range(shards.count):
        faiss_index.merge(index, _read(shards.make(number)))
    if index.ntotal != parts.rows:
        folder = parts.files[0].parent
        raise InputError(f"the shards in {folder} have other rows.", f"delete {folder}.")
    return faiss_index.finish(index)


def make_shards(spaces: Mapping[Space, Parts], params: IndexParams, machine: Partition) -> bool:
    """Make one machine's part of the shards, once all vectors exist.

    Only a kind that is named and can be merged has shards.

    Returns:
        Whether there are shards of this kind and size.

    Raises:
        ResourceError: the disk is full, or the place cannot be written.
    """
    if params.kind == "auto" or any(parts.missing() for parts in spaces.values()):
        return False
    every = [_Shards(params.kind, parts, params.seed) for parts in spaces.values()]
    sharded = [shards for shards in every if shards.count]
    for shards in sharded:
        own = range(machine.number - 1, shards.count, machine.of)
        for number in progress(own, what=f"shards of {shards.parts.name}", unit="shard"):
            shards.make(number)
    return bool(sharded)


@dataclass(frozen=True)
class _Shards:
    kind: Kind
    parts: Parts
    seed: int

    @property
    def count(self) -> int:
        """How many there are; 0: the index is filled at once."""
        count = -(-len(self.parts.files) // PARTS_A_SHARD)
        return 0 if self.kind in {"flat", "hnsw"} or count == 1 else count

    def train(self) -> Any:
        """An index without rows."""
        rows = self.parts.rows
        sample = self.parts.take(self.parts.draw(faiss_index.sample_size(rows), self.seed))
        return faiss_index.train(self.kind, sample, rows, self.seed)

    def trained(self) -> Path:
        """The file of the trained index; if several machines train, the first one's is kept."""
        path = self.parts.beside(f"{self.kind}-{self.seed}")
        if is_whole(path):
            return path
        path.unlink(missing_ok=True)
        index = self.train()
        with reports_unwritable(path), tempfile.TemporaryDirectory(dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            faiss_index.write(index, temporary)
            add_checksum(temporary)
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
        return path

    def make(self, number: int) -> Path:
        """The file of a shard."""
        trained = self.trained()
        name = f"{self.kind}-{self.seed}-{hash_file(trained)[:12]}-{number:05d}"
        path = self.parts.beside(name)
        if not is_whole(path):
            index = _read(trained)
            own = range(number * PARTS_A_SHARD, (number + 1) * PARTS_A_SHARD)
            faiss_index.fill(index, self.parts.blocks(own))
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
