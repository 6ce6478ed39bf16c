"""Features that others computed: vectors in .npy or Parquet files, joined with the pairs by name.

clip-retrieval writes a folder of vectors a side, img_emb/img_emb_0.npy and text_emb/text_emb_0.npy,
and metadata/metadata_0.parquet with a row a vector: image_path and caption. Here a side is a file
or a folder of files, and what its rows are is said by another file or folder with the same numbers
in its names, or by further columns of the same Parquet files.

An image is found by its name in its archive: whole, without its ending, or without what follows the
first dot, which is a webdataset key; or else by the last part of that path. Folders before the name
do not matter. A caption is found by its text. Whole numbers are ids of data/pairs.

The files do not say which model made the vectors. That the two sides belong together can be seen:
captions must be closer to their own images than to others.
"""

import functools
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int64
from numpy.typing import NDArray

from pipeline.core.errors import InputError
from pipeline.core.files import reports_unreadable
from pipeline.core.progress import counter, log
from pipeline.core.redact import first_line
from pipeline.download.packed_images import Rejection
from pipeline.download.pairing import MOST_CHARACTERS, clean_caption
from pipeline.download.parquet import ParquetRows, has_names, has_vectors
from pipeline.download.records import Pairs
from pipeline.features.extract import Extraction, Kept, Side, join_sides, with_text
from pipeline.features.identity import TeacherIdentity
from pipeline.features.rows import Features, JoinedRows
from pipeline.features.store import write_features
from pipeline.features.text_teacher import TextTeacher
from pipeline.params.features import FeaturesParams, ImportParams
from pipeline.params.places import why_missing
from pipeline.params.teacher import TeacherParams

_BLOCK = "features.import"
_AT_ONCE = 1 << 14
"""Rows that are looked at together."""
_DEEPEST = 64
"""Folders of an image's path that are looked at."""
_COMPARED = 2000
"""Captions that are compared with their own image and with another one."""
_FEWEST_COMPARED = 30
_CLEAR = 3.0
"""Standard errors by which they must be closer to their own."""
_ROUNDING = 0.01
"""How far, of their length, two vectors of one image may be apart, computed in two batches."""
_ENDINGS = (".npy", ".parquet")
_SPELLINGS = (r"^$", r"\.[^./]*$", r"\.[^/]*$")
"""What is taken from an image's path: nothing, the ending, all after the first dot of its name."""

Rows = Int64[np.ndarray, " _"]
"""For each image or caption the row of its vector, -1 where it has none."""


def write_imported(
    out: Path,
    pairs: Pairs,
    teacher: TeacherParams,
    params: FeaturesParams,
    text: TextTeacher | None,
) -> Extraction:
    """Join the vectors of `params.import_` with the pairs, and write them to `out`.

    Raises:
        InputError: a file cannot be used, names do not fit, or the sides do not belong together.
        TooManyRejectedError: too many images or captions have no usable vector.
        ResourceError: a file cannot be read or written.
    """
    images, captions = _read_sides(params.import_)
    table = pairs.images
    by_id = images.has_ids
    found = images.by_id(table["image_id"]) if by_id else _by_path(images.names, table["member"])
    extraction = join_sides(
        pairs,
        images.side(images.rows_of(found, len(table))),
        lambda texts: captions.side(_find_captions(captions, pairs.captions, texts)),
        params.max_rejected,
    )
    _require_fit(extraction.features)
    if text is not None:
        extraction = with_text(extraction, pairs, text, params)
    attributes = None if text is None else text.attributes
    identity = _identity(teacher, images.vectors)
    write_features(out, extraction.features, identity, pairs.fingerprint(), attributes)
    return extraction


def _identity(teacher: TeacherParams, vectors: JoinedRows) -> TeacherIdentity:
    """The teacher by its name, which is all that is known of it."""
    return TeacherIdentity(
        model=teacher.model,
        pretrained=teacher.pretrained or "",
        source="",
        architecture="",
        weights=f"{teacher.model} {teacher.pretrained or ''}".strip(),
        preprocessing="",
        tokenizer="",
        library="imported",
        dtype=str(vectors.read(vectors.paths[0]).dtype),
    )


@dataclass(frozen=True)
class _Vectors:
    """One side: its vectors, and what says of each row what it is."""

    kind: str
    """`image` or `caption`."""
    vectors: JoinedRows
    names: "pd.Series[Any]"
    """Of each row, text or whole numbers."""
    places: list[Path]
    """The files that hold the names."""

    @property
    def has_ids(self) -> bool:
        """Whether the names are ids of data/pairs."""
        return self.names.dtype.kind in "iu"

    def side(self, rows: Rows) -> Side:
        """The features of images or captions by the rows of their vectors."""
        unnamed = Rejection("missing", f"no row of {_BLOCK}.{self.kind}s names it")
        unusable = Rejection("unreadable", "its vector is zero, or not finite as float16")
        refused = np.flatnonzero((rows < 0) | ~self._are_usable()[rows]).tolist()
        rejected = {one: unnamed if rows[one] < 0 else unusable for one in refused}

        def chosen(kept: Kept) -> JoinedRows:
            every, wanted = self.vectors, rows[kept]
            return replace(every, file=every.file[wanted], row=every.row[wanted])

        return Side(rejected, chosen)

    def rows_of(self, found: Rows, count: int) -> Rows:
        """The row of each of `count` images or captions, from what each row is."""
        rows, named = np.full(count, -1), np.flatnonzero(found >= 0)
        rows[found[named][::-1]] = named[::-1]
        again = named[rows[found[named]] != named]
        for start in range(0, len(again), _AT_ONCE):
            some = again[start : start + _AT_ONCE]
            self._require_equal(rows[found[some]], some)
        log.info("%s of %s %s vectors are used", f"{named.size:,}", f"{len(found):,}", self.kind)
        return rows

    def by_id(self, ids: "pd.Series[int]") -> Rows:
        """What each row is, by its id."""
        found = pd.Index(ids).get_indexer(pd.Index(self.names))
        if (found < 0).any():
            row = int(np.argmin(found))
            raise InputError(
                f"{self._where(row)} has the {self.kind}_id {self.names[row]}, which is not in "
                "data/pairs.",
                "number the rows as data/pairs does, or name them as text.",
            )
        return found

    def _require_equal(self, first: Rows, again: Rows) -> None:
        """Refuse rows that are the same image or caption with another vector than its first."""
        with np.errstate(over="ignore", invalid="ignore"):
            one, other = (self.vectors[rows].astype(np.float32) for rows in (first, again))
            moved, lengths = np.linalg.norm(one - other, axis=1), np.linalg.norm(one, axis=1)
        unlike = np.flatnonzero(~(moved <= _ROUNDING * lengths))
        if unlike.size:
            place = int(unlike[0])
            raise InputError(
                f"{self._where(int(first[place]))} and {self._where(int(again[place]))} name the "
                f"same {self.kind}, but their vectors differ.",
                "leave one of them out; folders before a name are not compared.",
            )

    def _where(self, row: int) -> str:
        return f"{self.places[self.vectors.file[row]]} row {self.vectors.row[row]:,}"

    def _are_usable(self) -> Kept:
        """Which vectors have a direction in float16."""
        usable = np.zeros(len(self.vectors), dtype=bool)
        with (
            counter(f"{self.kind} vectors", "row", len(usable)) as bar,
            np.errstate(over="ignore"),
        ):
            for places, piece in self.vectors.pieces(_AT_ONCE):
                lengths = np.linalg.norm(piece.astype(np.float32), axis=1)
                usable[places] = np.isfinite(lengths) & (lengths > 0)
                bar.update(len(piece))
        return usable


def _read_sides(params: ImportParams) -> tuple[_Vectors, _Vectors]:
    images = _read_side("image", params)
    captions = _read_side("caption", params)
    dims = images.vectors.dim, captions.vectors.dim
    if dims[0] != dims[1]:
        raise InputError(
            f"the image vectors have {dims[0]:,} dimensions, the caption vectors {dims[1]:,}.",
            f"name vectors of one model in its common space as {_BLOCK}.images and .captions.",
        )
    return images, captions


def _read_side(kind: str, params: ImportParams) -> _Vectors:
    paths = _files(str(getattr(params, f"{kind}s")), f"{_BLOCK}.{kind}s")
    places = _places(paths, getattr(params, f"{kind}_rows"), f"{_BLOCK}.{kind}_rows")
    read = functools.lru_cache(maxsize=1)(
        functools.partial(_read_vectors, column=getattr(params, f"{kind}_vector_column"), kind=kind)
    )
    dims: list[int] = []
    parts: list[pd.Series[Any]] = []
    for path, place in zip(paths, places, strict=True):
        count, dim = read(path).shape
        names = _read_names(place, kind, getattr(params, f"{kind}_column"))
        if len(names) != count:
            raise InputError(
                f"{path} has {count:,} vectors, {place} {len(names):,} rows.",
                "both must have a row a vector, in one order.",
            )
        if dims and (dim, names.dtype) != (dims[0], parts[0].dtype):
            raise InputError(
                f"{path} has {dim:,} dimensions and names of type {names.dtype}, {paths[0]} "
                f"{dims[0]:,} and {parts[0].dtype}.",
                "name files of one model, with names of one kind.",
            )
        dims.append(dim)
        parts.append(names)
    file = np.repeat(np.arange(len(parts)), [len(names) for names in parts])
    row = np.concatenate([np.arange(len(names)) for names in parts])
    vectors = JoinedRows(paths, file, row, dims[0], read)
    return _Vectors(kind, vectors, pd.concat(parts, ignore_index=True), places)


def _files(written: str, key: str) -> list[Path]:
    """The file of vectors or names, or those of a folder, by name."""
    path = Path(written)
    with reports_unreadable(path):
        if not path.exists():
            raise InputError(*why_missing(written, key))
        files = sorted(path.iterdir()) if path.is_dir() else [path]
    files = [one for one in files if one.suffix in _ENDINGS]
    if len({one.suffix for one in files}) != 1:
        raise InputError(
            f"{written} is neither a .npy or .parquet file nor a folder of either kind.",
            f"name such a file or folder as {key}.",
        )
    return files


def _places(paths: list[Path], named: str | None, key: str) -> list[Path]:
    """For each file of vectors, the file that names its rows."""
    if named is None and paths[0].suffix == ".parquet":
        return paths
    beside = paths[0].parent.parent / "metadata"
    if named is None and not beside.is_dir():
        raise InputError(
            f"{paths[0]} does not say what its rows are, and there is no {beside}.",
            f"set {key} to a .parquet or .npy with a row a vector.",
        )
    found = _files(named or str(beside), key)
    if len(paths) == len(found) == 1:
        return found
    by_number = {_number(one): one for one in found}
    missing = [path for path in paths if _number(path) not in by_number]
    if missing or len(by_number) < len(found) or len({*map(_number, paths)}) < len(paths):
        raise InputError(
            f"the {len(found):,} files of {found[0].parent} do not go with the {len(paths):,} of "
            f"{paths[0].parent}" + (f": none is for {missing[0].name}." if missing else "."),
            "parts go together by the last number in their names: img_emb_0.npy, "
            "metadata_0.parquet.",
        )
    return [by_number[_number(path)] for path in paths]


def _number(path: Path) -> str:
    numbers: list[str] = re.findall(r"\d+", path.stem)
    return numbers[-1].lstrip("0") if numbers else ""


def _read_vectors(path: Path, column: str, kind: str) -> Float[np.ndarray, "rows dim"]:
    """The vectors of a file, mapped where it is a .npy; a missing one is 0."""
    if path.suffix == ".npy":
        return _load(path, 2, "f", "a row of floats a vector, such as float16 or float32")
    key, table = f"{_BLOCK}.{kind}_vector_column", ParquetRows(path, str(path))
    table.find({key: column}, has_vectors)
    batches = [batch.column(0) for batch in table.batches([column], _AT_ONCE)]
    sizes = [pc.fill_null(pc.list_value_length(batch), 0) for batch in batches]
    lengths = np.concatenate([*(size.to_numpy(zero_copy_only=False) for size in sizes), []])
    dim = int(lengths.max(initial=0))
    unlike = np.flatnonzero((lengths != dim) & (lengths != 0))
    if not dim or unlike.size:
        row = int(unlike[0]) if unlike.size else 0
        raise InputError(
            f"{path} row {row:,} has a vector of other than {dim:,} numbers, or there is none.",
            f"name vectors of one model as {key}.",
        )
    vectors = np.zeros((len(lengths), dim), np.float16)
    values = [batch.flatten().to_numpy(zero_copy_only=False) for batch in batches]
    with np.errstate(over="ignore"):
        vectors[lengths > 0] = np.concatenate(values).reshape(-1, dim)
    return vectors


def _load(path: Path, dimensions: int, kinds: str, wanted: str) -> NDArray[Any]:
    """The array of a .npy, mapped."""
    with reports_unreadable(path):
        path.stat()
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # noqa: BLE001  # damaged headers make numpy raise anything
        raise InputError(
            f"{path} cannot be read as .npy: {first_line(error, 200)}.", "write it again."
        ) from None
    if array.ndim != dimensions or array.dtype.kind not in kinds or not array.size:
        raise InputError(
            f"{path} holds an array of {array.dtype} with the shape {array.shape}, not {wanted}.",
            "save another array, or convert it.",
        )
    return np.asarray(array)


def _read_names(path: Path, kind: str, column: str) -> "pd.Series[Any]":
    """What the rows of a file are: texts, or ids of data/pairs."""
    if path.suffix == ".npy":
        names = _load(path, 1, "Uiu", "a text or an id a vector")
        return pd.Series(names, dtype="str" if names.dtype.kind == "U" else None)
    key, table = f"{_BLOCK}.{kind}_column", ParquetRows(path, str(path))
    table.find({key: column}, has_names)
    cells = [cells[column] for _, cells in table.rows([column], _AT_ONCE)]
    if not table.has(column, pa.types.is_integer):
        return pd.Series([cell or "" for cell in cells], dtype="str")
    if column != f"{kind}_id" or None in cells:
        raise InputError(
            f"{path} has whole numbers in {column}" + (", and nulls." if None in cells else "."),
            f"name a column of text as {key}, or {kind}_id, the {kind}'s number in data/pairs.",
        )
    return pd.Series(cells)


def _by_path(names: "pd.Series[str]", members: "pd.Series[str]") -> Rows:
    """The image that each name is, -1 where it is none; names of several images do not count."""
    found = np.full(len(names), -1)
    tails = [*itertools.islice(_tails(names.str.replace("\\", "/")), _DEEPEST)]
    for folders, rest in itertools.product(("^$", "^.*/"), _SPELLINGS):
        known = members.str.replace(rest, "", regex=True).str.replace(folders, "", regex=True)
        places = np.flatnonzero(~known.duplicated(keep=False))
        index = pd.Index(known.iloc[places])
        for tail in tails:
            left = np.flatnonzero(found < 0)
            rows = index.get_indexer(pd.Index(tail.iloc[left]))
            found[left[rows >= 0]] = places[rows[rows >= 0]]
    return found


def _tails(paths: "pd.Series[str]") -> Iterator["pd.Series[str]"]:
    """The paths, the same without their first folders, and so on to their last parts."""
    while True:
        yield paths
        shorter = paths.str.replace(r"^[^/]*/", "", n=1, regex=True)
        if shorter.equals(paths):
            return
        paths = shorter


def _find_captions(side: _Vectors, captions: pd.DataFrame, texts: "pd.Series[str]") -> Rows:
    """The row of each text's vector; `texts` are of some of the captions."""
    if side.has_ids:
        rows = side.rows_of(side.by_id(captions["caption_id"]), len(captions))
        return rows[captions.index.get_indexer(texts.index)]
    known = pd.Index([clean_caption(name)[:MOST_CHARACTERS].rstrip() for name in side.names])
    first = np.flatnonzero(~known.duplicated() & (known != ""))
    found = known[first].get_indexer(pd.Index(texts))
    log.info("%s of %s captions have a vector", f"{(found >= 0).sum():,}", f"{len(texts):,}")
    return np.where(found < 0, -1, first[found])


def _require_fit(features: Features) -> None:
    """Refuse sides that do not belong together, by some captions, their images and others."""
    count = len(features.captions)
    chosen = np.unique(np.linspace(0, count - 1, min(count, _COMPARED)).astype(np.int64))
    own = features.caption_image[chosen]
    other = np.roll(own, len(own) // 2)
    rows = [features.captions[chosen], features.images[own], features.images[other]]
    lengths = [np.linalg.norm(one.astype(np.float32), axis=1, keepdims=True) for one in rows]
    captions, right, wrong = (one / size for one, size in zip(rows, lengths, strict=True))
    log.info(
        "mean length of image vectors %.3f, of caption vectors %.3f", *map(np.mean, lengths[1::-1])
    )
    cosines = [np.sum(captions * one, axis=1)[own != other] for one in (right, wrong)]
    gaps = cosines[0] - cosines[1]
    if len(gaps) < _FEWEST_COMPARED:
        log.warning("too few captions to see whether image and caption vectors belong together")
    elif gaps.mean() <= _CLEAR * gaps.std() / len(gaps) ** 0.5:
        raise InputError(
            "captions are not closer to their own images than to others (mean cosines "
            f"{cosines[0].mean():.3f} and {cosines[1].mean():.3f}, of {len(gaps):,}).",
            "check that all vectors are of one model, and that names and vectors have one order.",
        )
