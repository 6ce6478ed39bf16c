"""Vectors of a user's own texts or pictures, in files for other programs.

    OUT.npy                  (rows, dim) float32; row i is line i + 1, or row i of the OUT.csv
    OUT.csv                  beside the .npy of pictures: their names, from the folder on
    OUT.parquet, OUT.jsonl   a row each: the text, or the name of the image, and its vector
    <kept>/own/<key>.arrow   the rows of some texts, an Arrow stream

The key of a part is a hash of the student, the settings and the texts, so that a run that was
killed finds the parts that exist, whether its texts come from a file or from stdin, and so does one
that writes another kind of file. Deleting the folder costs nothing but time.
"""

import io
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.core.checksums import add_checksum, hash_strings, is_whole
from pipeline.core.errors import InputError
from pipeline.core.files import atomic_file, write_csv
from pipeline.core.plaintext import is_blank, read_lines
from pipeline.core.progress import counter, log
from pipeline.download.caption_table import join_captions, read_cells
from pipeline.download.packed_images import IMAGE_ENDINGS
from pipeline.features.cache import FeatureCache
from pipeline.features.cached_teacher import ImageFiles
from pipeline.features.encode import FeatureExtractor, collect
from pipeline.features.store import blocks
from pipeline.index.embed import ROWS_A_PART
from pipeline.index.format import Vectors, VectorSpace, normalise
from pipeline.student.encoder import Student

_CHARACTERS_A_PART = 1 << 26
_JSON_ROWS = 1024
_WARNINGS = 5


@dataclass(frozen=True)
class TextEmbedder:
    """A student, and which of its vectors are wanted.

    Raises:
        InputError: it was not trained for so few dimensions.
        ModelError: it was trained without images, and has no shared space.
    """

    student: Student
    space: VectorSpace = "text"
    dimensions: int | None = None
    """The first ones of a sentence embedding; None: all."""
    is_normalised: bool = False
    """Whether vectors are scaled to length 1; those of the shared space always are."""
    batch_size: int = 128
    """Texts a forward pass."""

    def __post_init__(self) -> None:
        if self.space == "shared":
            self.student.require_images()
        if self.dimensions is None:
            return
        if self.space == "shared":
            raise InputError(
                "vectors of the shared space cannot be shortened.",
                "leave out --dimensions, or use --space text.",
            )
        trained = (self.student.encoder.dim, *self.student.matryoshka)
        if self.dimensions not in trained:
            raise InputError(
                f"the student was not trained for {self.dimensions} dimensions.",
                f"use one of {', '.join(map(str, trained))}, or train with student.matryoshka.",
            )

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """One vector a text.

        Raises:
            ModelError: a value is not finite.
        """
        vectors = self.student.encode(texts, batch_size=self.batch_size)
        if self.space == "shared":
            return self.student.ground_sentences(vectors)
        vectors = vectors[:, : self.dimensions]
        return normalise(vectors) if self.is_normalised else vectors


def read_texts(stream: io.BufferedIOBase, name: str) -> Iterator[str]:
    """All lines of a text; a blank line is a text too, so that rows are lines."""
    return (line.removesuffix("\n") for _, line in read_lines(stream, name))


def read_column(path: Path, column: str) -> Iterator[str]:
    """The cells of a table's column, each one text; an empty cell is a blank text.

    Raises:
        InputError: the table cannot be read, has no such column, or a cell with several texts.
    """
    key = "--column"
    for where, cells in read_cells(path, "the input", {key: column}):
        texts = join_captions(cells[key], where)
        if len(texts) != 1:
            raise InputError(
                f"{where}: {column} holds {len(texts)} texts.", "write a table with one a row."
            )
        yield texts[0]


def in_parts(texts: Iterable[str], name: str) -> Iterator[list[str]]:
    """The texts, a part at a time.

    Raises:
        InputError: there is none.
    """
    part: list[str] = []
    characters = rows = blank = 0
    for text in texts:
        part.append(text)
        rows += 1
        characters += len(text)
        blank += is_blank(text)
        if len(part) == ROWS_A_PART or characters >= _CHARACTERS_A_PART:
            yield part
            part, characters = [], 0
    if part:
        yield part
    if not rows:
        raise InputError(f"{name} holds no text.", "give one text a line.")
    if blank:
        log.warning("%s: %s of %s texts are blank, and have a vector too", name, blank, rows)


def text_tables(parts: Iterable[list[str]], embed: TextEmbedder) -> Iterator[pa.Table]:
    """The vectors of texts as tables, a part at a time, which are not kept."""
    for texts in parts:
        yield _table("text", texts, embed(texts))


def write_text_vectors(
    out: Path, parts: Iterable[list[str]], embed: TextEmbedder, model_hash: str, kept: Path
) -> None:
    """Embed texts into a file; see the module's docstring.

    Args:
        out: the file; its ending says which kind.
        parts: the texts.
        embed: how they are embedded.
        model_hash: of the student.
        kept: where parts are kept.

    Raises:
        ModelError: a value is not finite.
        ResourceError: the disk is full, or the place cannot be written.
    """
    settings = (model_hash, embed.space, str(embed.dimensions), str(embed.is_normalised))
    done: list[Path] = []
    rows = 0
    with counter("embedding", "text", None) as bar:
        for texts in parts:
            done.append(kept / f"own/{hash_strings([*settings, *texts])[:32]}.arrow")
            if not is_whole(done[-1]):
                (table,) = text_tables([texts], embed)
                with atomic_file(done[-1]) as temporary:
                    temporary.write_bytes(_as_stream(table))
                    add_checksum(temporary)
            rows += len(texts)
            bar.update(len(texts))
    write_vectors(out, map(_read_part, done), rows=rows)


@dataclass(frozen=True)
class Pictures:
    """The pictures of a folder that can be used, by name, with their vectors."""

    names: list[str]
    """From the folder on."""
    tables: Iterator[pa.Table]


def embed_pictures(
    folder: Path, student: Student, extractor: FeatureExtractor, cache: FeatureCache
) -> Pictures:
    """Encode the pictures of a folder, and of those below it, in the order of their names.

    Their features are kept in the cache, where a run that was killed finds them. Those that cannot
    be used are left out, and logged.

    Raises:
        InputError: no picture can be used.
        ModelError: the teacher gives features that are not finite.
    """
    endings = {f".{ending}" for ending in IMAGE_ENDINGS}
    every = sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings)
    results = extractor.encode_images(ImageFiles(every), cache.known("images"))
    keys, rejected, _ = collect(results, len(every))
    kept = [row for row in range(len(every)) if row not in rejected]
    for row, why in itertools.islice(rejected.items(), _WARNINGS):
        log.warning("left out %s: %s (%s)", every[row], why.reason, why.detail)
    if rejected:
        reasons = dict(Counter(why.reason for why in rejected.values()))
        log.warning("%s of %s pictures are left out: %s", len(rejected), len(every), reasons)
    if not kept:
        raise InputError(
            f"{folder} holds no picture that can be used ({len(every)} files are named like one).",
            "name a folder of pictures.",
        )
    names = [_plain(every[row].relative_to(folder).as_posix()) for row in kept]
    features = cache.rows("images", keys[kept])
    return Pictures(
        names,
        (
            _table("image", names[start : start + len(block)], student.ground_images(block))
            for start, block in blocks(features)
        ),
    )


def write_picture_vectors(out: Path, pictures: Pictures) -> None:
    """Write the vectors of pictures, for .npy their names beside it; errors as `write_vectors`."""
    write_vectors(out, pictures.tables, rows=len(pictures.names))
    if out.suffix == ".npy":
        write_csv(out.with_suffix(".csv"), pd.DataFrame({"image": pictures.names}))


def require_known_ending(out: Path) -> None:
    """Refuse, with an InputError, a file whose ending says no kind that can be written."""
    if out.suffix not in _WRITERS:
        raise InputError(f"--out {out} has no known ending.", f"end it in {', '.join(_WRITERS)}.")


def write_vectors(out: Path, tables: Iterator[pa.Table], *, rows: int) -> None:
    """Write tables of `rows` rows together, one after another.

    Raises:
        ResourceError: the disk is full, or the place cannot be written.
    """
    with atomic_file(out) as temporary:
        _WRITERS[out.suffix](temporary, tables, rows)


def json_lines(table: pa.Table) -> Iterator[str]:
    """A line of JSON for each row; numbers are as short as float32 allows."""
    for batch in table.to_batches(max_chunksize=_JSON_ROWS):
        names, vectors = batch.columns
        width = vectors.type.list_size
        ends = pa.array(np.arange(0, len(batch) * width + 1, width, dtype=np.int32))
        numbers = pc.cast(vectors.flatten(), pa.string())
        lists = pc.binary_join(pa.ListArray.from_arrays(ends, numbers), ", ").to_pylist()
        for name, vector in zip(names.to_pylist(), lists, strict=True):
            yield f'{{"{batch.schema.names[0]}": {json.dumps(name)}, "vector": [{vector}]}}\n'


def _write_npy(path: Path, tables: Iterator[pa.Table], rows: int) -> None:
    with path.open("wb") as stream:
        for number, table in enumerate(tables):
            vectors = table["vector"].combine_chunks()
            if not number:
                shape = (rows, vectors.type.list_size)
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(stream, header)
            stream.write(vectors.flatten().to_numpy().astype("<f4", copy=False).data)


def _write_parquet(path: Path, tables: Iterator[pa.Table], _rows: int) -> None:
    first = next(tables)
    with pq.ParquetWriter(path, first.schema) as writer:
        for table in itertools.chain([first], tables):
            writer.write_table(table)


def _write_json_lines(path: Path, tables: Iterator[pa.Table], _rows: int) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for table in tables:
            stream.writelines(json_lines(table))


_WRITERS: dict[str, Callable[[Path, Iterator[Any], int], None]] = {
    ".npy": _write_npy,
    ".parquet": _write_parquet,
    ".jsonl": _write_json_lines,
}


def _table(column: str, names: Sequence[str], vectors: Vectors) -> pa.Table:
    values = pa.array(np.ascontiguousarray(vectors).ravel())
    lists = pa.FixedSizeListArray.from_arrays(values, vectors.shape[1])
    return pa.table({column: pa.array(names, pa.string()), "vector": lists})


def _as_stream(table: pa.Table) -> memoryview:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue())


def _read_part(path: Path) -> pa.Table:
    """The rows of a part; the reader ends before its checksum."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_stream(source).read_all()


def _plain(name: str) -> str:
    """A file name as text, where its bytes may be none."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
