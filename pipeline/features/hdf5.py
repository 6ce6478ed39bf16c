"""Files of features, so read that a fault of the file system is told from a damaged file.

HDF5 reports both alike, and locks what it reads, which fails where another program has the file
open for writing, and on file systems without locks. What is read here never changes once it has its
name, and needs no lock.

None of it is parsed by HDF5, which a single flipped bit can send round in circles for ever, or end
the process: a header in front of it, in HDF5's user block, says where the tables are, and every row
has a checksum.
"""

import contextlib
import errno
import functools
import json
import math
import os
import resource
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np
from jaxtyping import Float16, UInt8, UInt32
from numpy.typing import DTypeLike, NDArray
from pydantic import NonNegativeInt, TypeAdapter, ValidationError

from pipeline.core.errors import InputError, ResourceError

if TYPE_CHECKING:
    import h5py

HEADER_BYTES = 512
"""Of a shard's header."""
KEY_BYTES = 16
_MOST_MAPS = 1 << 14
"""Maps that stay open at most; Linux allows a process 65,530 of any kind."""
_TOO_MANY = (errno.EMFILE, errno.ENFILE)

H = TypeVar("H")


class DamagedFeaturesError(InputError):
    """A file of features whose content does not fit its checksums."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path} is damaged ({reason}).", "run `dvc repro -f features`: it is made again."
        )
        self.path = path


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


def pack_header(header: Any, size: int) -> bytes:
    """A dataclass as text behind its CRC-32, filled up to `size` bytes.

    Raises:
        ValueError: it does not fit in.
    """
    text = json.dumps(asdict(header), sort_keys=True).encode()
    packed = b"%08x %b" % (zlib.crc32(text), text)
    if len(packed) >= size:
        raise ValueError(f"a header of {len(packed)} bytes has no room in {size}")
    return packed.ljust(size - 1) + b"\n"


def parse_header(content: bytes, kind: type[H]) -> H:
    """The header that a file begins with.

    Args:
        content: the file, or enough of it.
        kind: the dataclass.

    Raises:
        ValueError: there is none, it is damaged, or it is of another kind.
    """
    line, _, _ = content.partition(b"\n")
    checksum, _, text = line.rstrip(b" ").partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        raise ValueError("its header is damaged")
    try:
        return TypeAdapter(kind).validate_json(text, strict=True)
    except ValidationError:
        raise ValueError("its header is one of another version") from None


@dataclass(frozen=True)
class ShardHeader:
    """What a shard of the cache says of itself in its first HEADER_BYTES."""

    teacher: str
    """Its fingerprint."""
    kind: str
    rows: NonNegativeInt
    dim: NonNegativeInt
    keys: NonNegativeInt
    """Where the keys begin in the file, in bytes."""
    features: NonNegativeInt
    checksums: NonNegativeInt

    def pack(self) -> bytes:
        """The header, HEADER_BYTES long."""
        return pack_header(self, HEADER_BYTES)

    @classmethod
    def parse(cls, content: bytes) -> "ShardHeader":
        """The header that a shard begins with.

        Raises:
            ValueError: there is none, or it is damaged.
        """
        return parse_header(content[:HEADER_BYTES], cls)


def read_header(path: Path) -> ShardHeader:
    """The header of a shard.

    Raises:
        ResourceError: it cannot be read.
        ValueError: it is no shard.
    """
    with reports_unreadable(path), path.open("rb") as stream:
        return ShardHeader.parse(stream.read(HEADER_BYTES))


def tables_of(
    content: bytes | UInt8[np.ndarray, " bytes"],
) -> tuple[
    UInt8[np.ndarray, "rows 16"], Float16[np.ndarray, "rows dim"], UInt32[np.ndarray, " rows"]
]:
    """Keys, features and checksums of a shard, none of them verified.

    Raises:
        ValueError: it is none, or is cut off.
    """
    header = ShardHeader.parse(bytes(content[:HEADER_BYTES]))
    keys = cut_table(content, np.uint8, header.keys, (header.rows, KEY_BYTES))
    features = cut_table(content, np.float16, header.features, (header.rows, header.dim))
    return keys, features, cut_table(content, np.uint32, header.checksums, (header.rows,))


def cut_table(
    content: bytes | UInt8[np.ndarray, " bytes"],
    kind: DTypeLike,
    offset: int,
    shape: Sequence[int],
) -> NDArray[Any]:
    """A table that stands somewhere in the bytes of a file; no copy is made.

    Raises:
        ValueError: the file ends before the table does.
    """
    count = math.prod(shape)
    if offset + count * np.dtype(kind).itemsize > len(content):
        raise ValueError("it ends before its tables do")
    try:
        table: NDArray[Any] = np.ndarray(shape, kind, content, offset if count else 0)
    except OverflowError:
        raise ValueError("its tables are larger than any can be") from None
    return table


def read_piece(stream: BinaryIO, offset: int, size: int) -> bytes:
    """So many bytes of a file, from a place on.

    Raises:
        OSError: they cannot be read.
        ValueError: the file ends before them.
    """
    if offset + size > os.fstat(stream.fileno()).st_size:
        raise ValueError("it ends before its tables do")
    stream.seek(offset)
    return stream.read(size)


def map_file(path: Path) -> UInt8[np.ndarray, " bytes"]:
    """The bytes of a file, mapped.

    Raises:
        ResourceError: it cannot be opened or mapped.
        ValueError: it is empty.
    """
    with reports_unreadable(path):
        return np.memmap(path, np.uint8, "r")


def row_checksums(
    features: Float16[np.ndarray, "rows dim"], keys: UInt8[np.ndarray, "rows 16"] | None = None
) -> UInt32[np.ndarray, " rows"]:
    """The CRC-32 of each row, or of its key and the row."""
    rows = np.ascontiguousarray(features)
    if keys is None:
        return np.array([zlib.crc32(row) for row in rows], np.uint32)
    pairs = zip(np.ascontiguousarray(keys), rows, strict=True)
    return np.array([zlib.crc32(row, zlib.crc32(key)) for key, row in pairs], np.uint32)


@dataclass(frozen=True)
class CheckedRows:
    """Rows of features in a file, each of which is held against its checksum when it is read."""

    path: Path
    features: Float16[np.ndarray, "rows dim"]
    checksums: UInt32[np.ndarray, " rows"]
    keys: UInt8[np.ndarray, "rows 16"] | None = None
    """Go into the checksums of a shard."""
    table: str = "features"

    def __getitem__(self, rows: NDArray[np.integer]) -> Float16[np.ndarray, "chosen dim"]:
        """The rows at the given places, as a new array.

        Raises:
            DamagedFeaturesError: one of them does not fit its checksum, or is not there.
        """
        try:
            chosen: NDArray[np.float16] = self.features[rows]
            keys = None if self.keys is None else self.keys[rows]
        except IndexError:
            raise DamagedFeaturesError(self.path, "it has fewer rows than it should") from None
        wrong = row_checksums(chosen, keys) != self.checksums[rows]
        if wrong.any():
            row = int(rows[np.argmax(wrong)])
            raise DamagedFeaturesError(
                self.path, f"/{self.table} row {row} does not fit its checksum"
            )
        return chosen


def mapped_shards(shards: int, dim: int) -> Callable[[Path], CheckedRows]:
    """Gives maps of shards' features; as many stay open as the limit of open files has room for.

    A map keeps a file open. What is given raises ResourceError where a shard cannot be read, and
    DamagedFeaturesError where it is none.

    Args:
        shards: how many there are.
        dim: columns of each.
    """
    return functools.lru_cache(maxsize=_room_for(shards))(functools.partial(_map_shard, dim=dim))


def _map_shard(path: Path, dim: int) -> CheckedRows:
    try:
        keys, features, checksums = tables_of(map_file(path))
    except ValueError as error:
        raise DamagedFeaturesError(path, str(error)) from None
    if features.shape[1] != dim:
        raise DamagedFeaturesError(path, f"its rows have {features.shape[1]} columns, not {dim}")
    return CheckedRows(path, features, checksums, keys)


def place_of(table: "h5py.Dataset") -> int:
    """Where a contiguous table begins in its file, in bytes.

    Raises:
        ValueError: it is no such table.
    """
    offset = table.id.get_offset()
    if offset is None and table.size:
        raise ValueError(f"{table.name} is no contiguous table")
    return offset or 0


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
