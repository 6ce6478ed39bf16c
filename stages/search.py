"""Search texts, or pictures, by text or by a picture."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.core.errors import InputError
from pipeline.core.files import reports_unreadable
from pipeline.core.redact import one_line
from pipeline.index.format import Target, Window
from pipeline.index.milvus.collection import DEFAULT_PREFIX, Address, MilvusIndex
from pipeline.params.places import expanded
from pipeline.search.searcher import (
    MAX_QUERY_CHARACTERS,
    Answer,
    Searcher,
    check_query,
    read_queries,
)
from stages import paths
from stages._cli import read_params, run_stage

if TYPE_CHECKING:
    from rich.text import Text

_AT_ONCE = 64
"""Queries that are answered together, before the first answer is printed."""
_MAX_IMAGE_BYTES = 64 * 1024**2


def main(
    query: Annotated[
        str | None, typer.Argument(help="What to look for; without it, one query a line of stdin.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="One query a line.")] = None,
    by_image: Annotated[Path | None, typer.Option(help="A picture to look for.")] = None,
    k: Annotated[int, typer.Option("-k", help="Results to show.")] = 10,
    offset: Annotated[int, typer.Option(help="Results to skip before them.")] = 0,
    min_score: Annotated[float, typer.Option(help="The lowest cosine to show.")] = -1.0,
    images: Annotated[bool, typer.Option(help="Rank pictures instead of texts.")] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print JSON lines, the default if the output is not a terminal."
        ),
    ] = False,
    save: Annotated[
        Path | None, typer.Option(help="Also write the results as an HTML page.")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Default: the first seed's student.")] = None,
    index: Path = paths.INDEX,
    pairs: Path = paths.PAIRS,
    uri: Annotated[
        str | None, typer.Option(help="Search in Milvus: http://host:port or x.db.")
    ] = None,
    token_env: Annotated[
        str | None, typer.Option(help="The environment variable that holds Milvus' token.")
    ] = None,
    collection_prefix: Annotated[
        str, typer.Option(help="Prefix of the names of Milvus' collections.")
    ] = DEFAULT_PREFIX,
) -> None:
    """Search texts, or pictures, by text or by a picture; scores are cosines."""
    window = Window(k, offset, min_score)
    target: Target = "images" if images else "texts"
    picture = None if by_image is None else _read_picture(by_image)
    queries = _read_queries(query, file, by_image)
    address = None if uri is None else Address(expanded(uri), token_env, collection_prefix)
    with _open(model or paths.first_model(read_params()), index, address) as searcher:
        if picture is None:
            answers = _answer(searcher, queries, target, window)
        else:
            import torch

            from pipeline.features.teacher import Teacher

            teacher = Teacher(read_params().teacher, torch.device("cpu"))
            hits = searcher.search_by_image(picture, teacher, target=target, window=window)
            answers = iter([Answer(queries[0], hits)])
        show = _print_json if as_json or not sys.stdout.isatty() else _print_table
        kept = [show(answer) for answer in answers]
    if save is not None:
        from pipeline.search.gallery import save_gallery

        save_gallery(save, kept, pairs, searcher.corpus)


@contextlib.contextmanager
def _open(model: Path, index: Path, address: Address | None) -> Iterator[Searcher]:
    """The index in files, or its vectors in Milvus."""
    if address is None:
        yield Searcher.open(model, index)
        return
    with MilvusIndex.open(address) as vectors:
        searcher = Searcher.open(model, index, vectors)
        vectors.require_fit(index)
        yield searcher


def _answer(
    searcher: Searcher, queries: list[str], target: Target, window: Window
) -> Iterator[Answer]:
    for start in range(0, len(queries), _AT_ONCE):
        part = queries[start : start + _AT_ONCE]
        yield from map(Answer, part, searcher.search(part, target=target, window=window))


def _read_queries(query: str | None, file: Path | None, by_image: Path | None) -> list[str]:
    """The queries of the one source that was named; for a picture, its name."""
    given = [source for source in (query, file, by_image) if source is not None]
    if len(given) > 1:
        raise InputError("there is more than one of query, --file and --by-image.", "use one.")
    if query is not None:
        check_query(query)
        return [query]
    if by_image is not None:
        return [os.fsencode(by_image.name).decode(errors="replace")]
    if file is not None:
        with reports_unreadable(file):
            return read_queries(file.read_bytes(), str(file))
    if sys.stdin.isatty():
        raise InputError("there is no query.", 'name one, such as "a red circle".')
    return read_queries(sys.stdin.buffer.read(), "stdin")


def _read_picture(path: Path) -> bytes:
    if not path.is_file():
        raise InputError(f"{path} is not a file.", "name a picture.")
    with reports_unreadable(path):
        if path.stat().st_size > _MAX_IMAGE_BYTES:
            raise InputError(f"{path} is larger than 64 MiB.", "use a smaller picture.")
        return path.read_bytes()


def _print_json(answer: Answer) -> Answer:
    text = json.dumps(asdict(answer), ensure_ascii=False)
    typer.echo("".join(part if part.isprintable() else json.dumps(part)[1:-1] for part in text))
    return answer


def _print_table(answer: Answer) -> Answer:
    from rich.console import Console
    from rich.table import Table

    table = Table("rank", "cosine", "text", "count", "image", title=_plain(answer.query))
    for hit in answer.hits:
        cells = (_plain(hit.text), str(hit.count), _plain(hit.member))
        table.add_row(str(hit.rank), f"{hit.score:.4f}", *cells)
    Console().print(table)
    return answer


def _plain(text: str) -> "Text":
    """Text that cannot steer a terminal."""
    from rich.text import Text

    return Text(one_line(text, MAX_QUERY_CHARACTERS))


app = run_stage(main)

if __name__ == "__main__":
    app()
