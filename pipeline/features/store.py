"""CONTRACT of the teacher features: one HDF5 file a data set.

    /image/features      (images, dim) float16, as the teacher gives them, not normalised
    /image/ids           (images,) int64, image_id
    /caption/features    (captions, dim) float16
    /caption/ids         (captions,) int64, caption_id
    /caption/image       (captions,) int64, row of the caption's image in /image
    attributes           schema, the teacher's identity, corpus fingerprint, normalised

and, where there is a text teacher (teacher.text),

    /caption/text_features   (captions, width) float16, vectors of its encoders side by side:
                             the dot product of rows is the average of the encoders' cosines
    /sentence/text_features  (sentences, width) float16, of text-only sentences, in order
    attributes               text_teacher, text_source, sentences: names, files, fingerprint

All tables are contiguous: reading random rows of a compressed file is hundreds of times slower, and
features that take more than IN_MEMORY bytes are mapped, so that only rows in use are read. The file
is written whole under a temporary name, synced and renamed; equal content gives equal bytes. Its
last line is its sha256, which is verified before anything else is read (`hdf5.py`).
"""

import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from jaxtyping import Float16
from numpy.typing import NDArray

from pipeline.core.checksums import add_checksum, hash_strings
from pipeline.core.errors import InputError, StaleArtifactError
from pipeline.core.files import atomic_file
from pipeline.core.progress import counter
from pipeline.core.redact import one_line
from pipeline.features.hdf5 import offset_of, open_verified, table_of
from pipeline.features.identity import (
    TeacherIdentity,
    describe_text_teacher,
    hash_teacher_source,
)
from pipeline.features.rows import FeatureRows, Features, JoinedRows, Places, StackedRows
from pipeline.params.teacher import TeacherParams

if TYPE_CHECKING:
    from tqdm import tqdm

SCHEMA = 5
IN_MEMORY = 1 << 30
"""All features together that are read into memory, bytes."""

_FEATURES = ("image/features", "caption/features")
_TEXT = ("caption/text_features", "sentence/text_features")
_IDS = ("image/ids", "caption/ids", "caption/image")
_BLOCK = 1 << 22
"""Bytes of rows that are looked at together."""
_PIECE = 128 << 20
"""Bytes of rows that are put in order before they are written."""
_SLACK = 1 << 20
"""Bytes that HDF5 itself takes at most, and the attributes."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REDO = "run `dvc repro -f features`."


def write_features(
    path: Path,
    features: Features,
    teacher: TeacherIdentity,
    corpus: str,
    text: Mapping[str, str] | None = None,
) -> None:
    """Write features with the identity of their teacher and the corpus fingerprint.

    Every shard of joined rows is read once, which verifies it, whatever the order of the rows.

    Args:
        path: the file.
        features: rows may be in memory, or joined from the cache.
        teacher: made them.
        corpus: fingerprint of their pairs.
        text: attributes of the text teacher, where there is one (`TextTeacher.attributes`).

    Raises:
        DamagedFeaturesError: a shard of the cache is damaged; nothing is written then.
        ResourceError: a shard cannot be read, or the file cannot be written.
    """
    tables = _tables_of(features)
    columns = (features.image_ids, features.caption_ids, features.caption_image)
    rows = sum(map(len, tables.values()))
    values = sum(len(table) * table.shape[1] for table in tables.values())
    with atomic_file(path) as temporary, counter("joined", "row", rows) as bar:
        _reserve(temporary, _SLACK + 8 * 3 * rows + 2 * values)
        with h5py.File(temporary, "r+", locking=False) as file:
            file.attrs.update(schema=SCHEMA, corpus=corpus, normalised=False, **asdict(teacher))
            file.attrs.update(text or {})
            for name, column in zip(_IDS, columns, strict=True):
                file[name] = column
            offsets = {name: _make_table(file, name, table) for name, table in tables.items()}
        for name, table in tables.items():
            _copy_rows(table, temporary, offsets[name], bar)
        add_checksum(temporary)


def read_features(
    path: Path, teacher: TeacherParams, corpus: str, sentences: Sequence[str] | None = None
) -> Features:
    """Read features, or map them, after verifying the file.

    Args:
        path: the HDF5 file.
        teacher: the teacher that must have made them.
        corpus: fingerprint of the pairs that they must belong to.
        sentences: the text-only sentences that the text teacher's rows must belong to, where there
            is one; None: those rows are not used.

    Raises:
        MissingArtifactError: there is no such file.
        InputError: it is damaged, not a feature file, or holds values that are not finite.
        ResourceError: it cannot be read.
        StaleArtifactError: another teacher, corpus or text made it.
    """
    with open_verified(path) as (file, digest):
        _check_identity(path, dict(file.attrs), teacher, corpus, sentences)
        ids = [table_of(file, name, np.int64, 1)[()] for name in _IDS]
        names = (*_FEATURES, *(_TEXT if teacher.text.encoders else ()))
        tables = [table_of(file, name, np.float16, 2) for name in names]
        lengths = [len(table) for table in (*ids, *tables[:3])]
        images, captions = lengths[:2]
        if lengths != [images, captions, captions, images, captions, captions][: len(lengths)]:
            raise ValueError("it has tables of unequal length")
        is_mapped = sum(table.nbytes for table in tables) > IN_MEMORY
        rows = [_map(path, table) if is_mapped and table.size else table[()] for table in tables]
        weights = str(file.attrs["weights"])
    features = Features(rows[0], ids[0], rows[1], ids[1], ids[2], weights, digest, *rows[2:])
    if not images or not captions:
        raise InputError(f"{path} has no rows.", _REDO)
    if ids[2].min() < 0 or ids[2].max() >= images:
        raise InputError(f"{path}: /caption/image names a row that /image does not have.", _REDO)
    if not is_mapped:
        _check_finite(path, features)
    return features


def read_identity(path: Path) -> TeacherIdentity:
    """The teacher that made a feature file.

    Raises:
        MissingArtifactError: there is no such file.
        InputError: it is damaged, or not a feature file.
        ResourceError: it cannot be read.
    """
    with open_verified(path) as (file, _):
        return TeacherIdentity(
            **{field.name: str(file.attrs[field.name]) for field in fields(TeacherIdentity)}
        )


def _tables_of(features: Features) -> dict[str, FeatureRows]:
    rows = (features.images, features.captions, features.caption_text, features.sentence_text)
    named = zip((*_FEATURES, *_TEXT), rows, strict=True)
    return {name: table for name, table in named if table is not None}


def blocks(rows: FeatureRows) -> Iterator[tuple[int, Float16[np.ndarray, "block dim"]]]:
    """The rows in pieces of some megabytes, each with its first row."""
    step = max(1, _BLOCK // (2 * max(1, rows.shape[1])))
    for start in range(0, len(rows), step):
        yield start, rows[start : start + step]


def _reserve(path: Path, size: int) -> None:
    """Write an HDF5 file without tables, and reserve room for them on the disk.

    libhdf5 must not meet a full disk: it ends the process. Here it is an error like any other.
    """
    with h5py.File.in_memory() as file:
        file.flush()
        content = file.id.get_file_image()
    with path.open("wb", buffering=0) as stream:
        stream.write(content)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(stream.fileno(), 0, size)
        except OSError as error:
            if error.errno in _NO_ROOM:  # of a file system that cannot reserve, nothing is asked
                raise


def _make_table(file: h5py.File, name: str, rows: FeatureRows) -> int:
    """Make a contiguous table whose place in the file is fixed at once; returns its offset."""
    at_once = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    at_once.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    at_once.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    return offset_of(file.create_dataset(name, rows.shape, np.float16, dcpl=at_once))


def _copy_rows(rows: FeatureRows, path: Path, offset: int, bar: "tqdm[Any]") -> None:
    """Write rows into the table at an offset of the file, as they come from the shards."""
    if not len(rows):
        return
    table = np.memmap(path, np.float16, "r+", offset, rows.shape)
    pieces: Iterable[tuple[Places | slice, NDArray[np.float16]]]
    if isinstance(rows, JoinedRows | StackedRows):
        pieces = rows.pieces(max(1, _PIECE // (2 * max(1, rows.shape[1]))))
    else:
        pieces = [(slice(None), rows)]
    for places, piece in pieces:
        table[places] = piece
        bar.update(len(piece))
    table.flush()


def _map(path: Path, table: h5py.Dataset) -> NDArray[np.float16]:
    """A table of the file, mapped copy-on-write: writing to the array leaves the file alone."""
    return np.asarray(np.memmap(path, np.float16, "c", offset_of(table), table.shape))


def _check_identity(
    path: Path,
    found: dict[str, Any],
    teacher: TeacherParams,
    corpus: str,
    sentences: Sequence[str] | None,
) -> None:
    wanted = {
        "schema": SCHEMA,
        "model": teacher.model,
        "pretrained": teacher.pretrained or "",
        "source": hash_teacher_source(teacher.model),
        "corpus": corpus,
        **describe_text_teacher(teacher.text),
    }
    if teacher.text.encoders and sentences is not None:
        wanted["sentences"] = hash_strings(sentences)
    for key, value in wanted.items():
        if found.get(key, "") != value:
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
    "text_teacher": "text teacher (teacher.text)",
    "text_source": "text teacher: the files in its folders changed since, hash",
    "sentences": "set of text-only sentences, hash",
}


def _short(value: object) -> str:
    """Hashes by their first digits, everything else up to a sane length."""
    text = str(value)
    return text[:12] if re.fullmatch("[0-9a-f]{64}", text) else one_line(text, 300) or "none"


def _check_finite(path: Path, features: Features) -> None:
    for name, rows in _tables_of(features).items():
        for start, block in blocks(rows):
            finite = (block.view(np.uint16) & _EXPONENT) != _EXPONENT
            if not finite.all():
                row = start + int(np.argmin(finite.all(axis=1)))
                raise InputError(f"{path}: /{name} row {row} is not finite.", _REDO)


_EXPONENT = np.uint16(0x7C00)
"""All exponent bits of a float16: set in infinities and NaN only. On integers this test runs many
times faster than numpy's on float16."""
