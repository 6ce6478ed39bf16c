"""CONTRACT of the teacher features: one HDF5 file a data set.

    /image/features    (images, dim) float16, as the teacher gives them, not normalised
    /image/ids         (images,) int64, image_id
    /caption/features  (captions, dim) float16
    /caption/ids       (captions,) int64, caption_id
    /caption/image     (captions,) int64, row of the caption's image in /image
    attributes         schema, the teacher's identity, corpus fingerprint, digest, normalised

The file is written whole under a temporary name, synced and renamed; equal content gives equal
bytes. It is not compressed: reading random rows of a compressed file is hundreds of times slower.
Reading takes features of up to IN_MEMORY bytes into memory and maps larger ones, so that only the
rows in use are read, by the operating system and not through HDF5.

In the layout `virtual`, instead of features:

    /image/files       (files,) absolute paths of shards of the cache
    /image/runs        (runs, 3) int64: number of the file, row there, row here, of each run of rows
                       that follow each other in both; attribute dim
    /caption/...       the same

and, where they are up to VIRTUAL_RUNS, features as a virtual data set, which any HDF5 reader shows
as one table; HDF5's time to write one grows with the square of their number. Such a file belongs to
one machine and cache; it may be moved, the cache may not.

The digest is the sha256 over shapes and the first 8 bytes of each row's own sha256, which need no
order to be computed: it is the same for equal rows, in both layouts.
"""

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

import h5py
import numpy as np
from jaxtyping import Float16, Int64, UInt8

from pipeline.errors import InputError, MissingArtifactError, StaleArtifactError
from pipeline.features.files import map_table, mapped_shards, open_hdf5, place_of
from pipeline.features.identity import TeacherIdentity, hash_teacher_source
from pipeline.features.rows import JoinedRows, Places, Runs
from pipeline.params.teacher import TeacherParams
from pipeline.runtime import atomic_file, counter

if TYPE_CHECKING:
    from tqdm import tqdm

SCHEMA = 3
IN_MEMORY = 1 << 30
"""Features of images and captions together that are read into memory, bytes."""
VIRTUAL_RUNS = 1 << 12
"""Runs of rows that are given to HDF5 as a virtual data set."""

FeatureRows = Float16[np.ndarray, "_ _"] | JoinedRows
"""Features, in memory, mapped from one file, or from many; a slice or places give an array."""

Layout = Literal["file", "virtual"]

_BLOCK = 1 << 22
"""Bytes that are read at a time."""
_PIECE = 128 << 20
"""Bytes of rows that are put in order before they are written."""
_SLACK = 1 << 20
"""Bytes that HDF5 itself takes at most."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNKNOWN = "digest".ljust(64, "-")
"""Stands where the digest is written once it is known."""
_REDO = "run `dvc repro -f features`."


@dataclass(frozen=True)
class Features:
    """Features with the ids of their rows; see the module's docstring."""

    images: FeatureRows
    image_ids: Int64[np.ndarray, " images"]
    captions: FeatureRows
    caption_ids: Int64[np.ndarray, " captions"]
    caption_image: Int64[np.ndarray, " captions"]
    teacher: str = ""
    """sha256 over the weights that made them; empty where that is not recorded."""
    digest: str = ""
    """Hash of all features as written; empty where they were never in a file."""

    @property
    def dim(self) -> int:
        """Width of the teacher's space."""
        return int(self.images.shape[1])


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
        DamagedShardError: a shard of the cache is damaged; nothing is written then.
        ResourceError: a shard cannot be read, or the file cannot be written.
    """
    tables = {"image": features.images, "caption": features.captions}
    digest = hashlib.sha256()
    with atomic_file(path) as temporary:
        digest_at = _reserve(temporary, features, _attributes(teacher, corpus), layout)
        with _open_to_write(temporary) as file:
            _add_ids(file, features)
            offsets = {name: _add_table(file[name], tables[name], layout) for name in tables}
        bar = counter("joined", "row", sum(map(len, tables.values())), show=show_progress)
        with bar, temporary.open("r+b", buffering=0) as stream:
            for name, rows in tables.items():
                digest.update(_copy_rows(rows, stream.fileno(), offsets[name], bar))
            _write_all(stream.fileno(), memoryview(digest.hexdigest().encode()), digest_at)


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
    if not path.is_file():
        raise MissingArtifactError(path, made_by="features")
    try:
        with open_hdf5(path) as file:
            _check_identity(path, dict(file.attrs), teacher, corpus)
            features = _read_datasets(path, file)
    except ValueError as error:
        raise InputError(f"{path} is no readable feature file: {error}.", _REDO) from None
    _check_values(path, features)
    return features


def read_identity(path: Path) -> TeacherIdentity:
    """The teacher that made a feature file, without reading its features.

    Raises:
        MissingArtifactError: there is no such file.
        InputError: it is not a feature file.
        ResourceError: it cannot be read.
    """
    if not path.is_file():
        raise MissingArtifactError(path, made_by="features")
    try:
        with open_hdf5(path) as file:
            return TeacherIdentity(
                **{field.name: str(file.attrs[field.name]) for field in fields(TeacherIdentity)}
            )
    except ValueError as error:
        raise InputError(f"{path} is no readable feature file: {error}.", _REDO) from None


def blocks(rows: FeatureRows) -> Iterator[tuple[int, Float16[np.ndarray, "block dim"]]]:
    """The rows in pieces of some megabytes, each with its first row."""
    step = max(1, _BLOCK // (2 * max(1, rows.shape[1])))
    for start in range(0, len(rows), step):
        yield start, rows[start : start + step]


def _attributes(teacher: TeacherIdentity, corpus: str) -> dict[str, Any]:
    known = {"schema": SCHEMA, "corpus": corpus, "normalised": False, **asdict(teacher)}
    return known | {"digest": _UNKNOWN}


def _reserve(path: Path, features: Features, attributes: dict[str, Any], layout: Layout) -> int:
    """Write an HDF5 file of attributes alone, and make room on the disk for all the rest.

    Of a full disk HDF5 would speak on stderr, and long after; here it is an error of the system's.

    Returns:
        Where the digest is to be written.
    """
    with h5py.File("features", "w", driver="core", backing_store=False) as file:
        file.attrs.update(attributes)
        file.flush()
        content = bytes(file.id.get_file_image())
    with path.open("wb", buffering=0) as stream:
        _write_all(stream.fileno(), memoryview(content), 0)
        _allocate(stream.fileno(), len(content) + _size_of(features, layout))
    return content.index(_UNKNOWN.encode())


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
            size += 24 * len(rows.runs) + 512 * (len(rows.runs.paths) + VIRTUAL_RUNS)
        else:
            size += 2 * rows.shape[0] * rows.shape[1]
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


def _add_table(group: h5py.Group, rows: FeatureRows, layout: Layout) -> int | None:
    """Make room for features, or point to them.

    Returns:
        Where the rows go in the file, in bytes; None where they stay where they are.
    """
    if _is_pointed_to(rows, layout):
        _add_pointers(group, rows)
        return None
    at_once = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    at_once.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    table = group.create_dataset("features", rows.shape, np.float16, dcpl=at_once)
    return place_of(table)[0]


def _add_pointers(group: h5py.Group, rows: JoinedRows) -> None:
    paths = [path.resolve() for path in rows.runs.paths]
    names = np.array([os.fsencode(path) for path in paths], dtype=object)
    group.create_dataset("files", data=names, dtype=h5py.string_dtype())
    columns = (rows.runs.file, rows.runs.source, rows.runs.start)
    group["runs"] = np.stack(columns, axis=1)
    group["runs"].attrs["dim"] = rows.shape[1]
    if len(rows.runs) <= VIRTUAL_RUNS:
        group.create_virtual_dataset("features", _virtual_table(rows))


def _virtual_table(rows: JoinedRows) -> h5py.VirtualLayout:
    table = h5py.VirtualLayout(shape=rows.shape, dtype=np.float16)
    for run in rows.runs:
        name = str(run.path.resolve()).replace("%", "%%")  # HDF5 takes %b for a pattern
        stop = run.source + run.count  # the source may have more rows than it is said to have
        source = h5py.VirtualSource(name, "features", (stop, rows.shape[1]))
        table[run.start : run.start + run.count] = source[run.source : stop]
    return table


def _copy_rows(rows: FeatureRows, handle: int, offset: int | None, bar: "tqdm[Any]") -> bytes:
    """Read all rows, and write them where they are to go; returns what identifies them."""
    hashes = np.empty((len(rows), 8), np.uint8)
    for places, piece in _pieces(rows):
        hashes[places] = _hash_rows(piece)
        if offset is not None:
            _put_rows(handle, offset, places, piece)
        bar.update(len(places))
    return str(rows.shape).encode() + hashes.tobytes()


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


def _read_datasets(path: Path, file: h5py.File) -> Features:
    images, captions = _find_rows(path, file["image"], file["caption"])
    if (len(images) + len(captions)) * 2 * images.shape[1] <= IN_MEMORY:
        images, captions = _load_rows(images), _load_rows(captions)
    return Features(
        images=images,
        image_ids=file["image/ids"][:],
        captions=captions,
        caption_ids=file["caption/ids"][:],
        caption_image=file["caption/image"][:],
        teacher=str(file.attrs["weights"]),
        digest=str(file.attrs["digest"]),
    )


def _find_rows(path: Path, *groups: h5py.Group) -> list[FeatureRows]:
    """The features of each group, mapped; the maps of shards are shared."""
    runs = [_read_runs(path, group) if "runs" in group else None for group in groups]
    maps = mapped_shards(len({shard for one in runs if one is not None for shard in one.paths}))
    return [
        map_table(path, *place_of(group["features"]))
        if one is None
        else JoinedRows(one, int(group["runs"].attrs["dim"]), maps)
        for one, group in zip(runs, groups, strict=True)
    ]


def _read_runs(path: Path, group: h5py.Group) -> Runs:
    shards = [Path(os.fsdecode(name)) for name in group["files"][:]]
    for shard in shards:
        if not shard.is_file():
            raise InputError(f"{path} points to {shard}, which is gone.", _REDO)
    file, source, start = np.ascontiguousarray(group["runs"][:].T)
    return Runs(shards, file, source, start, len(group["ids"]))


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
    rows = len(features.captions)
    aligned = len(features.caption_ids) == len(features.caption_image) == rows
    if not aligned or len(features.image_ids) != len(features.images) or rows == 0:
        raise InputError(f"{path} has no rows, or tables of unequal length.", _REDO)
    for name, values in (("image", features.images), ("caption", features.captions)):
        if _is_in_memory(values):
            _check_finite(path, name, values)


def _is_in_memory(rows: FeatureRows) -> bool:
    """Mapped rows are not read for a check; they were verified when they were written."""
    return isinstance(rows, np.ndarray) and not isinstance(rows, np.memmap)


def _check_finite(path: Path, name: str, rows: FeatureRows) -> None:
    for start, block in blocks(rows):
        finite = (block.view(np.uint16) & _EXPONENT) != _EXPONENT
        if not finite.all():
            row = start + int(np.argmin(finite.all(axis=1)))
            raise InputError(f"{path}: /{name}/features row {row} is not finite.", _REDO)


_EXPONENT = np.uint16(0x7C00)
"""All exponent bits of a float16: set in infinities and NaN only. On integers this test runs many
times faster than numpy's on float16."""
