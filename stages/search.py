"""Search captions, or pictures, by text or by a picture."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.download.archives import reports_unreadable
from pipeline.errors import InputError
from pipeline.index import Kind
from pipeline.search import Answer, Searcher, Window, check_query, read_picture, read_queries
from stages import paths
from stages._cli import read_params, run_stage

_AT_ONCE = 64
"""Queries that are answered before the first of them is printed."""


def main(
    query: Annotated[
        str | None, typer.Argument(help="What to look for; without it, one query a line of stdin.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="One query a line.")] = None,
    by_image: Annotated[Path | None, typer.Option(help="A picture to look for.")] = None,
    k: Annotated[int, typer.Option("-k", help="Results to show.")] = 10,
    offset: Annotated[int, typer.Option(help="Results to leave out before them.")] = 0,
    min_score: Annotated[float, typer.Option(help="The lowest cosine to show.")] = -1.0,
    images: Annotated[bool, typer.Option(help="Rank pictures instead of captions.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON lines, as where the output is no terminal.")
    ] = False,
    save: Annotated[Path | None, typer.Option(help="Also write an HTML page of them.")] = None,
    model: Annotated[Path | None, typer.Option(help="Default: the first seed's student.")] = None,
    index: Path = paths.INDEX,
    pairs: Path = paths.PAIRS,
) -> None:
    """Search captions, or pictures, by text or by a picture; scores are cosines."""
    window = Window(k, offset, min_score)
    kind: Kind = "image" if images else "caption"
    picture = None if by_image is None else read_picture(by_image)
    queries = _read_queries(query, file, by_image)
    searcher = Searcher.open(model or paths.first_model(read_params()), index)
    if picture is None:
        answers = _answer(searcher, queries, kind, window)
    else:
        answers = _answer_picture(searcher, queries[0], picture, kind, window)
    show = _print_json if as_json or not sys.stdout.isatty() else _print_table
    kept = [show(answer) for answer in answers]
    if save is not None:
        from pipeline.gallery import save_gallery

        save_gallery(save, kept, pairs)


def _answer(searcher: Searcher, queries: list[str], kind: Kind, window: Window) -> Iterator[Answer]:
    for start in range(0, len(queries), _AT_ONCE):
        part = queries[start : start + _AT_ONCE]
        yield from map(Answer, part, searcher.search(part, kind=kind, window=window))


def _answer_picture(
    searcher: Searcher, name: str, picture: bytes, kind: Kind, window: Window
) -> Iterator[Answer]:
    from pipeline.features.teacher import Teacher

    teacher = Teacher(read_params().teacher, torch.device("cpu"))
    yield Answer(name, searcher.search_by_image(picture, teacher, kind=kind, window=window))


def _read_queries(query: str | None, file: Path | None, by_image: Path | None) -> list[str]:
    """The queries of the one source that was named; a picture's is its name."""
    given = [source for source in (query, file, by_image) if source is not None]
    if len(given) > 1:
        raise InputError("there is more than one of query, --file and --by-image.", "use one.")
    if query is not None:
        check_query(query)
        return [query]
    if by_image is not None:
        return [by_image.name]
    if file is not None:
        with reports_unreadable(file):
            return read_queries(file.read_bytes(), str(file))
    if sys.stdin.isatty():
        raise InputError("there is no query.", 'name one, such as "a red circle".')
    return read_queries(sys.stdin.buffer.read(), "stdin")


def _print_json(answer: Answer) -> Answer:
    typer.echo(json.dumps(asdict(answer), ensure_ascii=False))
    return answer


def _print_table(answer: Answer) -> Answer:
    table = Table("rank", "cosine", "caption", "image", title=Text(answer.query))
    for hit in answer.hits:
        table.add_row(str(hit.rank), f"{hit.score:.4f}", Text(hit.caption), Text(hit.image))
    Console().print(table)
    return answer


app = run_stage(main)

if __name__ == "__main__":
    app()
