"""CONTRACT of the teacher features: one HDF5 file a data set.

    /image/features    (images, dim) float16, as the teacher gives them, not normalised
    /image/ids         (images,) int64, image_id
    /caption/features  (captions, dim) float16
    /caption/ids       (captions,) int64, caption_id
    /caption/image     (captions,) int64, row of the caption's image in /image
    attributes         schema, the teacher's identity, corpus fingerprint, digest, normalised

The file is written whole under a temporary name, synced and renamed; equal content gives equal
bytes. It is not compressed: reading random rows of a compressed file is hundreds of times slower.
In the layout `virtual` both features are virtual data sets over shards of the cache, which any HDF5
reader shows as one table, too. Reading takes features of up to IN_MEMORY bytes into memory and maps
larger ones, so that only the rows in use are read, by the operating system and not through HDF5.
"""

import functools
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from jaxtyping import Float16, Int64

from pipeline.errors import InputError, MissingArtifactError, StaleArtifactError
from pipeline.features.identity import TeacherIdentity, hash_teacher_source
from pipeline.features.rows import JoinedRows, Run
from pipeline.params.teacher import TeacherParams
from pipeline.runtime import atomic_file

SCHEMA = 2
IN_MEMORY = 1 << 30
"""Features of images and captions together that are read into memory, bytes."""

FeatureRows = Float16[np.ndarray, "_ _"] | JoinedRows
"""Features, in memory, mapped from one file, or from many; a slice or places give an array."""

Layout = Literal["file", "virtual"]

_BLOCK = 1 << 22
"""Bytes that are copied or read at a time."""
_OPEN_MAPS = 4096
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
    """sha256 over all features as written; empty where they were never in a file."""

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
) -> None:
    """Write features with the identity of their teacher and the corpus fingerprint.

    Args:
        path: the file.
        features: rows may be in memory, or joined from the cache.
        teacher: who made them.
        corpus: fingerprint of their pairs.
        layout: file copies the rows; virtual points to them, and asks for joined rows.

    Raises:
        DamagedShardError: a shard of the cache is damaged; nothing is written then.
    """
    digest = hashlib.sha256()
    add = functools.partial(_add_rows, layout=layout, digest=digest, folder=path.parent)
    ids = {
        "image/ids": features.image_ids,
        "caption/ids": features.caption_ids,
        "caption/image": features.caption_image,
    }
    with atomic_file(path) as temporary, h5py.File(temporary, "w") as file:
        for name, values in ids.items():
            file.create_dataset(name, data=values)
        add(file, "image/features", features.images)
        add(file, "caption/features", features.captions)
        file.attrs.update(schema=SCHEMA, corpus=corpus, normalised=False, **asdict(teacher))
        file.attrs["digest"] = digest.hexdigest()


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
        StaleArtifactError: another teacher or corpus made it.
    """
    if not path.is_file():
        raise MissingArtifactError(path, made_by="features")
    try:
        with h5py.File(path, "r") as file:
            _check_identity(path, dict(file.attrs), teacher, corpus)
            features = _read_datasets(path, file)
    except (OSError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is no readable feature file: {reason}.", _REDO) from None
    _check_values(path, features)
    return features


def read_identity(path: Path) -> TeacherIdentity:
    """The teacher that made a feature file, without reading its features.

    Raises:
        MissingArtifactError: there is no such file.
        InputError: it is not a feature file.
    """
    if not path.is_file():
        raise MissingArtifactError(path, made_by="features")
    try:
        with h5py.File(path, "r") as file:
            return TeacherIdentity(
                **{field.name: str(file.attrs[field.name]) for field in fields(TeacherIdentity)}
            )
    except (OSError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is no readable feature file: {reason}.", _REDO) from None


def blocks(rows: FeatureRows) -> Iterator[tuple[int, Float16[np.ndarray, "block dim"]]]:
    """The rows in pieces of some megabytes, each with its first row."""
    step = max(1, _BLOCK // (2 * max(1, rows.shape[1])))
    for start in range(0, len(rows), step):
        yield start, rows[start : start + step]


def _add_rows(
    file: h5py.File,
    name: str,
    rows: FeatureRows,
    *,
    layout: Layout,
    digest: "hashlib._Hash",
    folder: Path,
) -> None:
    """Copy the rows into the file, or point to them; both read every row, which verifies it."""
    if layout == "virtual" and isinstance(rows, JoinedRows):
        _add_pointers(file, name, rows, folder)
    else:
        file.create_dataset(name, shape=rows.shape, dtype=np.float16)
    for start, block in blocks(rows):
        digest.update(block.tobytes())
        if layout == "file":
            file[name][start : start + len(block)] = block


def _add_pointers(file: h5py.File, name: str, rows: JoinedRows, folder: Path) -> None:
    table = h5py.VirtualLayout(shape=rows.shape, dtype=np.float16)
    lengths = _source_rows(rows.runs)
    for run in rows.runs:
        path, shape = os.path.relpath(run.path, folder), (lengths[run.path], rows.shape[1])
        source = h5py.VirtualSource(path, "features", shape)
        chosen = source[run.source : run.source + run.count]
        table[run.start : run.start + run.count] = chosen
    file.create_virtual_dataset(name, table)


def _source_rows(runs: Sequence[Run]) -> dict[Path, int]:
    rows = {}
    for path in {run.path for run in runs}:
        with h5py.File(path, "r") as file:
            rows[path] = int(file["features"].shape[0])
    return rows


def _read_datasets(path: Path, file: h5py.File) -> Features:
    size = sum(file[name]["features"].size * 2 for name in ("image", "caption"))
    read = _map_rows if size > IN_MEMORY else _load_rows
    return Features(
        images=read(path, file["image/features"]),
        image_ids=file["image/ids"][:],
        captions=read(path, file["caption/features"]),
        caption_ids=file["caption/ids"][:],
        caption_image=file["caption/image"][:],
        teacher=str(file.attrs["weights"]),
        digest=str(file.attrs["digest"]),
    )


def _load_rows(path: Path, dataset: h5py.Dataset) -> Float16[np.ndarray, "rows dim"]:
    rows = _map_rows(path, dataset)
    loaded = np.empty(rows.shape, np.float16)
    for start, block in blocks(rows):
        loaded[start : start + len(block)] = block
    return loaded


def _map_rows(path: Path, dataset: h5py.Dataset) -> FeatureRows:
    if not dataset.is_virtual:
        return _map_dataset(path, dataset)
    runs = [_run_of(path.parent, source) for source in dataset.virtual_sources()]
    for run in runs:
        if not run.path.is_file():
            raise InputError(f"{path} points to {run.path}, which is gone.", _REDO)
    return JoinedRows(runs, dataset.shape[1], _map_shard, keep=_OPEN_MAPS)


def _run_of(folder: Path, source: Any) -> Run:
    (start, _), (stop, _) = source.vspace.get_select_bounds()
    first = source.src_space.get_select_bounds()[0][0]
    return Run(folder / source.file_name, int(first), int(start), int(stop - start + 1))


def _map_shard(path: Path) -> Float16[np.ndarray, "rows dim"]:
    with h5py.File(path, "r") as file:
        return _map_dataset(path, file["features"])


def _map_dataset(path: Path, dataset: h5py.Dataset) -> Float16[np.ndarray, "rows dim"]:
    """The rows of a contiguous data set, mapped; nothing is read yet."""
    if 0 in dataset.shape:
        return np.empty(dataset.shape, np.float16)
    if dataset.dtype != np.float16 or dataset.id.get_offset() is None:
        raise ValueError(f"{dataset.name} is no contiguous table of float16")
    return np.memmap(path, np.float16, "r", dataset.id.get_offset(), dataset.shape)


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
