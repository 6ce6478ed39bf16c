"""Embed your own texts or pictures for other programs."""

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, cast

import pyarrow as pa
import typer

from pipeline.core.device import choose_device
from pipeline.core.errors import InputError
from pipeline.core.files import reports_unreadable
from pipeline.download.caption_table import READERS
from pipeline.features.cache import FeatureCache
from pipeline.features.encode import FeatureExtractor
from pipeline.features.teacher import Teacher
from pipeline.index.format import VectorSpace
from pipeline.params.places import why_missing
from pipeline.search.vectors import (
    TextEmbedder,
    embed_pictures,
    in_parts,
    json_lines,
    read_column,
    read_texts,
    require_known_ending,
    text_tables,
    write_picture_vectors,
    write_text_vectors,
)
from pipeline.student.directory import hash_student
from pipeline.student.encoder import Student
from stages import paths
from stages._cli import read_params, run_stage

_BINARY = {".arrow", ".feather", ".npy", ".npz", ".xlsx"}


def main(
    texts: Annotated[
        Path | None,
        typer.Argument(help="One text a line, or a table; without it, or -: stdin."),
    ] = None,
    column: Annotated[str, typer.Option(help="Of a table: .csv, .jsonl, .parquet ...")] = "text",
    images: Annotated[Path | None, typer.Option(help="A folder of pictures instead.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help=".npy, .parquet or .jsonl; without it, JSON lines on stdout."),
    ] = None,
    space: Annotated[
        VectorSpace | None,
        typer.Option(help="Sentence embeddings, or the space that texts share with pictures."),
    ] = None,
    dimensions: Annotated[
        int | None, typer.Option(help="Only the first ones, of a Matryoshka student.")
    ] = None,
    normalise: Annotated[
        bool, typer.Option("--normalise", help="Scale sentence embeddings to length 1.")
    ] = False,
    model: Annotated[Path | None, typer.Option(help="Default: the first seed's student.")] = None,
    batch_size: Annotated[int, typer.Option(help="Texts a forward pass.", min=1)] = 128,
    vectors: Annotated[
        Path, typer.Option(envvar=paths.VECTORS_VARIABLE, help="Where texts' vectors are kept.")
    ] = paths.VECTORS,
    store: Annotated[
        Path, typer.Option(envvar=paths.STORE_VARIABLE, help="Where pictures' features are kept.")
    ] = paths.STORE,
) -> None:
    """Embed your own texts, one a line or row, or a folder of pictures.

    A run into a file that was stopped or killed resumes with the same command.
    """
    if out is not None:
        require_known_ending(out)
    if images is not None:
        _require_alone(images, texts, space, dimensions)
    model = model or paths.first_model(read_params())
    student = Student.load(model, choose_device())
    if images is not None:
        _embed_images(images, student, store, out)
        return
    embed = TextEmbedder(student, space or "text", dimensions, normalise, batch_size)
    with _opened(texts, column) as (rows, name):
        parts = in_parts(rows, name)
        if out is None:
            _print(text_tables(parts, embed))
        else:
            write_text_vectors(out, parts, embed, hash_student(model), vectors)


def _require_alone(
    images: Path, texts: Path | None, space: VectorSpace | None, dimensions: int | None
) -> None:
    """Refuse options that do not go with pictures."""
    if texts is not None:
        raise InputError("there are both texts and --images.", "embed one at a time.")
    if space == "text" or dimensions is not None:
        option = "--space text" if space == "text" else "--dimensions"
        raise InputError(f"{option} is for texts, not for --images.", f"leave out {option}.")
    with reports_unreadable(images):
        if not images.is_dir():
            raise InputError(*why_missing(str(images), "--images", "is not a folder"))


def _embed_images(images: Path, student: Student, store: Path, out: Path | None) -> None:
    student.require_images()
    params = read_params()
    teacher = Teacher(params.teacher, choose_device(), params.features.precision)
    student.require_teacher(teacher.identity.weights)
    cache = FeatureCache(store, teacher.identity, teacher.probe())
    with cache.in_use():
        extractor = FeatureExtractor(teacher, cache, params.features)
        pictures = embed_pictures(images, student, extractor, cache)
        if out is None:
            _print(pictures.tables)
        else:
            write_picture_vectors(out, pictures)


@contextlib.contextmanager
def _opened(texts: Path | None, column: str) -> Iterator[tuple[Iterator[str], str]]:
    """The texts, and what their source is called."""
    if texts is None or str(texts) == "-":
        if sys.stdin.isatty():
            raise InputError("there is no text.", "name a file of one text a line, or pipe it in.")
        yield read_texts(cast(io.BufferedIOBase, sys.stdin.buffer), "stdin"), "stdin"
        return
    if texts.suffix.lower() in {*READERS} - {".txt"}:
        yield read_column(texts, column), str(texts)
        return
    if texts.suffix.lower() in _BINARY:
        raise InputError(
            f"{texts} is neither lines of text nor a table of {', '.join(READERS)}.",
            "write it as one of these, or one text a line.",
        )
    with reports_unreadable(texts):
        stream = texts.open("rb")
    with stream:
        yield read_texts(stream, str(texts)), str(texts)


def _print(tables: Iterator[pa.Table]) -> None:
    for table in tables:
        sys.stdout.writelines(json_lines(table))


app = run_stage(main)

if __name__ == "__main__":
    app()
