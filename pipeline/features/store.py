"""CONTRACT of the teacher features: one HDF5 file a data set.

    /image/features      (images, dim) float16, as the teacher gives them, not normalised
    /image/checksums     (images,) uint32, CRC-32 of each row of features
    /image/ids           (images,) int64, image_id
    /caption/features    (captions, dim) float16
    /caption/checksums   (captions,) uint32
    /caption/ids         (captions,) int64, caption_id
    /caption/image       (captions,) int64, row of the caption's image in /image
    attributes           schema, the teacher's identity, corpus fingerprint, digest, normalised

The file is written whole under a temporary name, synced and renamed; equal content gives equal
bytes. It is not compressed: reading random rows of a compressed file is hundreds of times slower.

Any HDF5 reader shows it. This one does not use HDF5, which must not be given damaged bytes
(`files.py`): a header in front says where the tables are, holds the attributes again, and the
CRC-32 of all that is neither header nor features. A row is held against its checksum when it is
read. Features of up to IN_MEMORY bytes are taken into memory, larger ones mapped, so that only the
rows in use are read.

In the layout `virtual`, instead of features and their checksums:

    /image/files         (files,) absolute paths of shards of the cache, filled up with zeros
    /image/runs          (runs, 3) int64: number of the file, row there, row here, of each run of
                         rows that follow each other in both
    /caption/...         the same

and, where they are up to VIRTUAL_RUNS, features as a virtual data set, which any HDF5 reader shows
as one table; HDF5's time to write one grows with the square of their number. Such a file belongs to
one machine and cache; it may be moved, the cache may not.

The digest is the sha256 over shapes and the first 8 bytes of each row's own sha256, which need no
order to be computed: it is the same for equal rows, in both layouts.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal, TypeGuard

import h5py
import numpy as np
from jaxtyping import Float16, UInt8, UInt32
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt

from pipeline.core.errors import InputError, MissingArtifactError, ModelError, StaleArtifactError
from pipeline.core.files import atomic_file
from pipeline.core.progress import counter
from pipeline.core.redact import one_line
from pipeline.features.hdf5 import (
    CheckedRows,
    cut_table,
    map_file,
    mapped_shards,
    pack_header,
    parse_header,
    place_of,
    read_piece,
    reports_unreadable,
    row_checksums,
)
from pipeline.features.identity import TeacherIdentity, hash_teacher_source
from pipeline.features.rows import FeatureRows, Features, JoinedRows, Places, Runs
from pipeline.params.teacher import TeacherParams

if TYPE_CHECKING:
    from tqdm import tqdm

SCHEMA = 4
IN_MEMORY = 1 << 30
"""Features of images and captions together that are read into memory, bytes."""
VIRTUAL_RUNS = 1 << 12
"""Runs of rows that are given to HDF5 as a virtual data set."""

Layout = Literal["file", "virtual"]

_BLOCK = 1 << 22
"""Bytes that are read at a time."""
_PIECE = 128 << 20
"""Bytes of rows that are put in order before they are written."""
_CHECKSUM_BYTES = 4
_SLACK = 1 << 20
"""Bytes that HDF5 itself takes at most."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNKNOWN = "digest".ljust(64, "-")
"""Stands where the digest is written once it is known."""
_REDO = "run `dvc repro -f features`."
_PLACES_BYTES = 1024
"""Room for the places of all tables in a header."""
_MOST_HEADER = 1 << 16
"""Bytes in which a header ends."""
_MOST_COLUMNS = 1 << 20
_LONGEST = 300
"""Characters of a path that a file names, in a message."""
_HDF5 = b"\x89HDF"
"""What a file without a header begins with."""
_KINDS: dict[str, np.dtype[Any]] = {
    "features": np.dtype(np.float16),
    "checksums": np.dtype(np.uint32),
    "ids": np.dtype(np.int64),
    "image": np.dtype(np.int64),
    "runs": np.dtype(np.int64),
    "files": np.dtype(np.uint8),
}
"""Types of the tables; files as rows of bytes."""
_RANKS = {"features": 2, "checksums": 1, "ids": 1, "image": 1, "runs": 2, "files": 2}
_IDS = ("image/ids", "caption/ids", "caption/image")


@dataclass(frozen=True)
class _Place:
    """Where a table is."""

    offset: NonNegativeInt
    shape: list[NonNegativeInt]

    def bytes_of(self, name: str) -> int:
        return math.prod(self.shape) * _kind_of(name).itemsize


@dataclass(frozen=True)
class _Header:
    """What a feature file says of itself, in front of what is HDF5's."""

    attributes: dict[str, str | int | bool]
    tables: dict[str, _Place]
    dim: Annotated[int, Field(ge=0, le=_MOST_COLUMNS)]
    length: NonNegativeInt
    """Of the header, bytes."""
    size: NonNegativeInt
    """Of the file, bytes."""
    rest: NonNegativeInt
    """CRC-32 of all bytes that are neither header nor features."""


def write_features(
    path: Path,
    features: Features,
    teacher: TeacherIdentity,
    corpus: str,
    layout: Layout = "file",
    *,
    show_progress: bool = False,
) -> None:
    """Write features with the identity of their teacher and the corpus fingerprint.

    Every shard of joined rows is read once, which verifies it, whatever the order of the rows.

    Args:
        path: the file.
        features: rows may be in memory, or joined from the cache.
        teacher: who made them.
        corpus: fingerprint of their pairs.
        layout: file copies the rows; virtual points to those that are joined.
        show_progress: whether to show rate and time left on stderr.

    Raises:
        DamagedFeaturesError: a shard of the cache is damaged; nothing is written then.
        ResourceError: a shard cannot be read, or the file cannot be written.
    """
    tables = {"image": features.images, "caption": features.captions}
    with atomic_file(path) as temporary:
        attributes = _attributes(teacher, corpus)
        length, digest_at = _reserve(temporary, features, attributes, layout)
        with _open_to_write(temporary) as file:
            _add_ids(file, features)
            for name, rows in tables.items():
                _add_table(file[name], rows, layout)
            places = dict(_places(file))
        bar = counter("joined", "row", sum(map(len, tables.values())), show=show_progress)
        with bar, temporary.open("r+b", buffering=0) as stream:
            digest = _copy_tables(tables, stream.fileno(), places, bar)
            _write_all(stream.fileno(), memoryview(digest.encode()), digest_at)
            size = os.fstat(stream.fileno()).st_size
            header = _Header(attributes | {"digest": digest}, places, features.dim, length, size, 0)
            header = replace(header, rest=_checksum_rest(stream, header))
            _write_all(stream.fileno(), memoryview(pack_header(header, length)), 0)


def read_features(path: Path, teacher: TeacherParams, corpus: str) -> Features:
    """Read features, or map them, after holding them against what is wanted.

    Args:
        path: the HDF5 file.
        teacher: the teacher that must have made them.
        corpus: fingerprint of the pairs that they must belong to.

    Raises:
        MissingArtifactError: there is no such file.
        InputError: it is not a feature file, is damaged, points into a cache that is gone, or
            holds values that are not finite.
        ResourceError: it, or a shard that it points to, cannot be read. Mapped rows of a layout
            `virtual` raise that later, too, when they are asked for.
        StaleArtifactError: another teacher or corpus made it.
    """
    header = _read_header(path)
    _check_identity(path, header.attributes, teacher, corpus)
    with _reports_damage(path):
        features = _read_tables(path, header)
    _check_values(path, features)
    return features


def read_identity(path: Path) -> TeacherIdentity:
    """The teacher that made a feature file, without reading its features.

    Raises:
        MissingArtifactError: there is no such file.
        InputError: it is not a feature file.
        ResourceError: it cannot be read.
        StaleArtifactError: another version of the project made it.
    """
    found = _read_header(path).attributes
    with _reports_damage(path):
        return TeacherIdentity(
            **{field.name: str(found[field.name]) for field in fields(TeacherIdentity)}
        )


def blocks(rows: FeatureRows) -> Iterator[tuple[int, Float16[np.ndarray, "block dim"]]]:
    """The rows in pieces of some megabytes, each with its first row."""
    step = max(1, _BLOCK // (2 * max(1, rows.shape[1])))
    for start in range(0, len(rows), step):
        yield start, rows[start : start + step]


def _attributes(teacher: TeacherIdentity, corpus: str) -> dict[str, Any]:
    known = {"schema": SCHEMA, "corpus": corpus, "normalised": False, **asdict(teacher)}
    return known | {"digest": _UNKNOWN}


def _reserve(
    path: Path, features: Features, attributes: dict[str, Any], layout: Layout
) -> tuple[int, int]:
    """Write an HDF5 file of attributes alone, and make room on the disk for all the rest.

    Of a full disk HDF5 would speak on stderr, and long after; here it is an error of the system's.

    Returns:
        Bytes that are left free in front, and where the digest is to be written.
    """
    length = _header_length(attributes)
    with h5py.File(
        "features", "w", driver="core", backing_store=False, userblock_size=length
    ) as file:
        file.attrs.update(attributes)
        file.flush()
        content = bytes(length) + file.id.get_file_image()  # which comes without what is in front
    with path.open("wb", buffering=0) as stream:
        _write_all(stream.fileno(), memoryview(content), 0)
        _allocate(stream.fileno(), len(content) + _size_of(features, layout))
    return length, content.index(_UNKNOWN.encode())


def _header_length(attributes: dict[str, Any]) -> int:
    """A power of two, as HDF5 wants it, with room for attributes and places."""
    length = 1 << (len(json.dumps(attributes)) + _PLACES_BYTES).bit_length()
    if length > _MOST_HEADER:
        raise ModelError(
            f"the teacher's name and settings are {len(json.dumps(attributes)):,} characters long.",
            "name a teacher whose path is shorter.",
        )
    return length


def _allocate(handle: int, size: int) -> None:
    """Reserve room for a file where the system can; only that there is none is an error."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, size)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise


def _size_of(features: Features, layout: Layout) -> int:
    """Bytes that ids and tables take at most."""
    ids = (features.image_ids, features.caption_ids, features.caption_image)
    size = _SLACK + sum(column.nbytes for column in ids)
    for rows in (features.images, features.captions):
        if _is_pointed_to(rows, layout):
            size += 24 * len(rows.runs) + 512 * VIRTUAL_RUNS + _file_names(rows).nbytes
        else:
            size += rows.shape[0] * (2 * rows.shape[1] + _CHECKSUM_BYTES)
    return size


def _is_pointed_to(rows: FeatureRows, layout: Layout) -> TypeGuard[JoinedRows]:
    return layout == "virtual" and isinstance(rows, JoinedRows)


@contextlib.contextmanager
def _open_to_write(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file of our own; what the system refuses is raised as such, and not as HDF5's."""
    try:
        with h5py.File(path, "r+", locking=False) as file:
            yield file
    except (OSError, RuntimeError) as error:
        number = re.search(r"errno = (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def _add_ids(file: h5py.File, features: Features) -> None:
    file["image/ids"] = features.image_ids
    file["caption/ids"] = features.caption_ids
    file["caption/image"] = features.caption_image


def _add_table(group: h5py.Group, rows: FeatureRows, layout: Layout) -> None:
    """Make room for features and their checksums, or point to where the rows stay."""
    if _is_pointed_to(rows, layout):
        _add_pointers(group, rows)
        return
    at_once = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    at_once.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    group.create_dataset("features", rows.shape, np.float16, dcpl=at_once)
    group.create_dataset("checksums", rows.shape[:1], np.uint32, dcpl=at_once)


def _add_pointers(group: h5py.Group, rows: JoinedRows) -> None:
    columns = (rows.runs.file, rows.runs.source, rows.runs.start)
    group["files"] = _file_names(rows)
    group["runs"] = np.stack(columns, axis=1)
    if len(rows.runs) <= VIRTUAL_RUNS:
        group.create_virtual_dataset("features", _virtual_table(rows))


def _file_names(rows: JoinedRows) -> NDArray[Any]:
    return np.array([os.fsencode(path.resolve()) for path in rows.runs.paths], dtype=np.bytes_)


def _places(file: h5py.File) -> Iterator[tuple[str, _Place]]:
    """Where all tables are; one that HDF5 joins from other files is nowhere."""
    for name in ("image", "caption"):
        for column, table in file[name].items():
            if not table.is_virtual:
                width = [table.dtype.itemsize] if column == "files" else []
                yield f"{name}/{column}", _Place(place_of(table), [*table.shape, *width])


def _kind_of(name: str) -> np.dtype[Any]:
    return _KINDS[_column_of(name)]


def _column_of(name: str) -> str:
    return name.rpartition("/")[2]


def _rest(header: _Header) -> Iterator[tuple[int, int]]:
    """Where the bytes that are neither header nor features begin and end."""
    start = header.length
    for name, place in sorted(header.tables.items(), key=lambda table: table[1].offset):
        if name.endswith("/features") and place.bytes_of(name):
            yield start, place.offset
            start = place.offset + place.bytes_of(name)
    yield start, header.size


def _checksum_rest(stream: BinaryIO, header: _Header) -> int:
    checksum = 0
    for start, stop in _rest(header):
        for begin in range(start, stop, _BLOCK):
            checksum = zlib.crc32(read_piece(stream, begin, min(_BLOCK, stop - begin)), checksum)
    return checksum


def _virtual_table(rows: JoinedRows) -> h5py.VirtualLayout:
    table = h5py.VirtualLayout(shape=rows.shape, dtype=np.float16)
    for run in rows.runs:
        name = str(run.path.resolve()).replace("%", "%%")  # HDF5 takes %b for a pattern
        stop = run.source + run.count  # the source may have more rows than it is said to have
        source = h5py.VirtualSource(name, "features", (stop, rows.shape[1]))
        table[run.start : run.start + run.count] = source[run.source : stop]
    return table


def _copy_tables(
    tables: dict[str, FeatureRows], handle: int, places: dict[str, _Place], bar: "tqdm[Any]"
) -> str:
    """Read all rows, write those that have a place to it; returns the digest."""
    digest = hashlib.sha256()
    for name, rows in tables.items():
        place = places.get(f"{name}/features")
        hashes, checksums = _copy_rows(rows, handle, place, bar)
        if place is not None:
            content = memoryview(checksums.tobytes())
            _write_all(handle, content, places[f"{name}/checksums"].offset)
        digest.update(str(rows.shape).encode() + hashes.tobytes())
    return digest.hexdigest()


def _copy_rows(
    rows: FeatureRows, handle: int, place: _Place | None, bar: "tqdm[Any]"
) -> tuple[UInt8[np.ndarray, "rows 8"], UInt32[np.ndarray, " rows"]]:
    """What identifies each row, and its checksum, where there is a place for it."""
    hashes, checksums = np.empty((len(rows), 8), np.uint8), np.empty(len(rows), np.uint32)
    for places, piece in _pieces(rows):
        hashes[places] = _hash_rows(piece)
        if place is not None:
            checksums[places] = row_checksums(piece)
            _put_rows(handle, place.offset, places, piece)
        bar.update(len(places))
    return hashes, checksums


def _pieces(rows: FeatureRows) -> Iterator[tuple[Places, Float16[np.ndarray, "piece dim"]]]:
    """All rows in pieces, with their places, which ascend within a piece."""
    if isinstance(rows, JoinedRows):
        yield from rows.pieces(max(1, _PIECE // (2 * max(1, rows.shape[1]))))
        return
    for start, block in blocks(rows):
        yield np.arange(start, start + len(block)), np.ascontiguousarray(block)


def _hash_rows(rows: Float16[np.ndarray, "piece dim"]) -> UInt8[np.ndarray, "piece 8"]:
    digests = [hashlib.sha256(row).digest()[:8] for row in rows]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(len(rows), 8)


def _put_rows(
    handle: int, offset: int, places: Places, rows: Float16[np.ndarray, "chosen dim"]
) -> None:
    """Write rows to their places in the file, neighbours together."""
    width = rows.shape[1] * rows.itemsize
    content = rows.view(np.uint8).ravel().data
    breaks = np.flatnonzero(np.diff(places) != 1) + 1
    starts, stops = np.append(0, breaks), np.append(breaks, len(places))
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        part = content[start * width : stop * width]
        _write_all(handle, part, offset + int(places[start]) * width)


def _write_all(handle: int, content: memoryview, offset: int) -> None:
    """As os.pwrite, which may write less than it is given."""
    while len(content):
        written = os.pwrite(handle, content, offset)
        content, offset = content[written:], offset + written


@contextlib.contextmanager
def _reports_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise InputError(f"{path} is no readable feature file: it lacks {error}.", _REDO) from None
    except ValueError as error:
        raise InputError(f"{path} is no readable feature file: {error}.", _REDO) from None


def _read_header(path: Path) -> _Header:
    if not path.is_file():
        raise MissingArtifactError(path, made_by="features")
    with reports_unreadable(path), path.open("rb") as stream:
        content, size = stream.read(_MOST_HEADER), os.fstat(stream.fileno()).st_size
    if content.startswith(_HDF5):
        raise StaleArtifactError(f"{path} was made by an older version of the project.", _REDO)
    with _reports_damage(path):
        header = parse_header(content, _Header)
        if header.size != size:
            raise ValueError(f"it has {size:,} bytes instead of {header.size:,}")
    return header


def _read_tables(path: Path, header: _Header) -> Features:
    _check_shapes(header.tables)
    _check_places(header)
    with reports_unreadable(path), path.open("rb") as stream:
        if _checksum_rest(stream, header) != header.rest:
            raise ValueError("its ids and attributes do not fit their checksum")
        ids = [_read_table(stream, header, name) for name in _IDS]
        runs = [_read_runs(path, stream, header, name) for name in ("image", "caption")]
    images, captions = _find_rows(path, header, runs)
    if (len(images) + len(captions)) * 2 * header.dim <= IN_MEMORY:
        images, captions = _load_rows(images), _load_rows(captions)
    weights, digest = (str(header.attributes[name]) for name in ("weights", "digest"))
    return Features(images, ids[0], captions, ids[1], ids[2], weights, digest)


def _check_places(header: _Header) -> None:
    for name, place in header.tables.items():
        if place.offset < header.length and place.bytes_of(name):
            raise ValueError(f"/{name} lies in the header, which has another checksum")


def _check_shapes(tables: dict[str, _Place]) -> None:
    for name, place in tables.items():
        if len(place.shape) != _RANKS[_column_of(name)]:
            raise ValueError(f"/{name} has {len(place.shape)} dimensions")
    for group, known in (("image", "ids"), ("caption", "ids"), ("caption", "image")):
        rows = tables[f"{group}/{known}"].shape[0]
        for column in ("ids", "features", "checksums"):
            other = tables.get(f"{group}/{column}")
            if other is not None and other.shape[0] != rows:
                raise ValueError(f"/{group} has tables of unequal length")


def _read_table(stream: BinaryIO, header: _Header, name: str) -> NDArray[Any]:
    place = header.tables[name]
    content = read_piece(stream, place.offset, place.bytes_of(name))
    return cut_table(content, _kind_of(name), 0, place.shape).copy()


def _find_rows(path: Path, header: _Header, runs: list[Runs | None]) -> list[FeatureRows]:
    """The features of images and captions; the maps of shards are shared."""
    shards = {shard for one in runs if one is not None for shard in one.paths}
    maps = mapped_shards(len(shards), header.dim)
    return [
        _map_rows(path, header, name) if one is None else JoinedRows(one, header.dim, maps)
        for one, name in zip(runs, ("image", "caption"), strict=True)
    ]


def _map_rows(path: Path, header: _Header, name: str) -> JoinedRows:
    """The rows that stand in the file itself, as one run of them."""
    content = map_file(path)
    table = f"{name}/features"
    features, checksums = (
        cut_table(content, _kind_of(part), header.tables[part].offset, header.tables[part].shape)
        for part in (table, f"{name}/checksums")
    )
    rows = CheckedRows(path, features, checksums, table=table)
    start = np.zeros(1, np.int64)
    runs = Runs([path], start, start, start, len(features))
    return JoinedRows(runs, features.shape[1], lambda _: rows)


def _read_runs(path: Path, stream: BinaryIO, header: _Header, name: str) -> Runs | None:
    """Where the rows of images or captions are, if not in the file itself."""
    if f"{name}/runs" not in header.tables:
        return None
    names = _read_table(stream, header, f"{name}/files")
    shards = [Path(os.fsdecode(bytes(one).rstrip(b"\0"))) for one in names]
    for shard in shards:
        if not shard.is_file():
            raise InputError(
                f"{path} points to {one_line(str(shard), _LONGEST)}, which is gone.", _REDO
            )
    runs = _read_table(stream, header, f"{name}/runs")
    file, source, start = np.ascontiguousarray(runs.T)
    rows = header.tables[f"{name}/ids"].shape[0]
    bounds = np.concatenate([[0], start[1:], [rows]])
    if start[:1] != 0 or (np.diff(bounds) <= 0).any() or not np.isin(file, range(len(names))).all():
        raise ValueError(f"/{name}/runs are no runs of its rows")
    return Runs(shards, file, source, start, rows)


def _load_rows(rows: FeatureRows) -> Float16[np.ndarray, "rows dim"]:
    loaded = np.empty(rows.shape, np.float16)
    for start, block in blocks(rows):
        loaded[start : start + len(block)] = block
    return loaded


def _check_identity(path: Path, found: dict[str, Any], teacher: TeacherParams, corpus: str) -> None:
    wanted = {
        "schema": SCHEMA,
        "model": teacher.model,
        "pretrained": teacher.pretrained or "",
        "source": hash_teacher_source(teacher.model),
        "corpus": corpus,
    }
    for key, value in wanted.items():
        if found.get(key) != value:
            raise StaleArtifactError(
                f"{path} was made by another {_MEANING[key]}: "
                f"{_short(found.get(key))} instead of {_short(value)}.",
                _REDO,
            )


_MEANING = {
    "schema": "version of the project",
    "model": "teacher",
    "pretrained": "teacher (teacher.pretrained)",
    "source": "teacher: the files in its folder changed since, hash",
    "corpus": "set of images and captions, hash",
}


def _short(value: object) -> str:
    """Hashes by their first digits, everything else whole."""
    text = str(value)
    return text[:12] if re.fullmatch("[0-9a-f]{64}", text) else text or "none"


def _check_values(path: Path, features: Features) -> None:
    if not len(features.captions) or not len(features.images):
        raise InputError(f"{path} has no rows.", _REDO)
    if features.caption_image.min() < 0 or features.caption_image.max() >= len(features.images):
        raise InputError(f"{path}: /caption/image names a row that /image does not have.", _REDO)
    for name, values in (("image", features.images), ("caption", features.captions)):
        if isinstance(values, np.ndarray):  # mapped rows have their checksums
            _check_finite(path, name, values)


def _check_finite(path: Path, name: str, rows: FeatureRows) -> None:
    for start, block in blocks(rows):
        finite = (block.view(np.uint16) & _EXPONENT) != _EXPONENT
        if not finite.all():
            row = start + int(np.argmin(finite.all(axis=1)))
            raise InputError(f"{path}: /{name}/features row {row} is not finite.", _REDO)


_EXPONENT = np.uint16(0x7C00)
"""All exponent bits of a float16: set in infinities and NaN only. On integers this test runs many
times faster than numpy's on float16."""
