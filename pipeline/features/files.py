"""Files of features, so read that a fault of the file system is told from a damaged file.

HDF5 reports both alike, and locks what it reads, which fails where another program has the file
open for writing, and on file systems without locks. What is read here never changes once it has its
name, and needs no lock.

Shards of the cache are not even parsed by HDF5, which a single flipped bit can send round in
circles for ever, or end the process: they say in front of it, in HDF5's user block, where their
tables are.
"""

import contextlib
import errno
import functools
import json
import os
import resource
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Float16

from pipeline.errors import ResourceError

HEADER_BYTES = 512
_MOST_MAPS = 1 << 14
"""Maps that stay open at most; Linux allows a process 65,530 of any kind."""
_TOO_MANY = (errno.EMFILE, errno.ENFILE)
_CONTENT = (OSError, KeyError, TypeError, ValueError, RuntimeError)
"""What h5py raises about a file that is not what it should be."""


def unreadable(path: Path, error: OSError) -> ResourceError:
    """The error for a file that the operating system does not let us read."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    first = "raise `ulimit -n` and " if error.errno in _TOO_MANY else ""
    return ResourceError(
        f"{path} could not be read: {reason.lower()}.",
        f"{first}run the same command again; nothing was removed.",
    )


@contextlib.contextmanager
def reports_unreadable(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to read into an error that says nothing of the content.

    Raises:
        ResourceError: naming the file and the reason.
    """
    try:
        yield
    except OSError as error:
        if not error.errno:
            raise
        raise unreadable(path, error) from error


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file of which only what the block asks for is read.

    Raises:
        ResourceError: it cannot be read.
        ValueError: it is no HDF5 file, or the block does not find in it what it looks for.
    """
    try:
        with reports_unreadable(path):
            path.open("rb").close()  # HDF5 has one message for all reasons
            with h5py.File(path, "r", locking=False) as file:
                yield file
    except _CONTENT as error:
        raise ValueError(" ".join(str(error).split())) from None


@dataclass(frozen=True)
class ShardHeader:
    """What a shard of the cache says of itself in its first HEADER_BYTES."""

    teacher: str
    """Its fingerprint."""
    kind: str
    rows: int
    dim: int
    keys: int
    """Where the keys begin in the file, in bytes."""
    features: int
    checksums: int

    def pack(self) -> bytes:
        """The header as text, behind its CRC-32."""
        text = json.dumps(asdict(self), sort_keys=True).encode()
        return (b"%08x %b" % (zlib.crc32(text), text)).ljust(HEADER_BYTES - 1) + b"\n"

    @classmethod
    def parse(cls, content: bytes) -> "ShardHeader":
        """The header that a shard begins with.

        Raises:
            ValueError: there is none, or it is damaged.
        """
        checksum, _, text = content[:HEADER_BYTES].rstrip().partition(b" ")
        if checksum != b"%08x" % zlib.crc32(text):
            raise ValueError("its header is damaged")
        try:
            return cls(**json.loads(text))
        except TypeError:
            raise ValueError("its header is one of another version") from None


def read_header(path: Path) -> ShardHeader:
    """The header of a shard.

    Raises:
        ResourceError: it cannot be read.
        ValueError: it is no shard.
    """
    with reports_unreadable(path), path.open("rb") as stream:
        return ShardHeader.parse(stream.read(HEADER_BYTES))


def mapped_shards(shards: int) -> Callable[[Path], Float16[np.ndarray, "rows dim"]]:
    """Gives maps of shards' features; as many stay open as the limit of open files has room for.

    A map keeps a file open. What is given raises ResourceError where a shard cannot be read, and
    ValueError where it is none.

    Args:
        shards: how many there are.
    """
    return functools.lru_cache(maxsize=_room_for(shards))(_map_shard)


def _map_shard(path: Path) -> Float16[np.ndarray, "rows dim"]:
    header = read_header(path)
    return map_table(path, header.features, (header.rows, header.dim))


def place_of(table: h5py.Dataset) -> tuple[int, tuple[int, ...]]:
    """Where a contiguous table of float16 begins in its file, in bytes, and its shape.

    Raises:
        ValueError: it is no such table.
    """
    offset = table.id.get_offset()
    _rows, _dim = table.shape
    if table.dtype != np.float16 or (offset is None and table.size):
        raise ValueError(f"{table.name} is no contiguous table of float16")
    return offset or 0, table.shape


def map_table(path: Path, offset: int, shape: tuple[int, ...]) -> Float16[np.ndarray, "rows dim"]:
    """The rows of a table, mapped.

    Raises:
        ResourceError: the file cannot be opened or mapped.
        ValueError: it ends before the table does.
    """
    if 0 in shape:
        return np.empty(shape, np.float16)
    with reports_unreadable(path):
        return np.memmap(path, np.float16, "r", offset, shape)


def _room_for(files: int) -> int:
    """How many of the files may stay open: a third of the limit, which is raised if need be."""
    wanted = 3 * min(files, _MOST_MAPS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return max(1, wanted // 3)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 3)
