"""Search captions, or pictures, by text."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.search import Hit, Searcher
from stages import paths
from stages._cli import read_params, run_stage


def main(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    k: Annotated[int, typer.Option("-k", help="Results to show.")] = 10,
    images: Annotated[bool, typer.Option(help="Rank pictures instead of captions.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    model: Annotated[Path | None, typer.Option(help="Default: the first seed's student.")] = None,
    index: Path = paths.INDEX,
) -> None:
    """Search captions, or pictures, by text; scores are cosines."""
    searcher = Searcher.open(model or paths.first_model(read_params()), index)
    hits = searcher.search([query], kind="image" if images else "caption", k=k)[0]
    if as_json:
        typer.echo(json.dumps([asdict(hit) for hit in hits], indent=2))
    else:
        _print(hits)


def _print(hits: list[Hit]) -> None:
    table = Table("rank", "score", "caption", "image")
    for hit in hits:
        table.add_row(str(hit.rank), f"{hit.score:.4f}", Text(hit.caption), Text(hit.image))
    Console().print(table)


app = run_stage(main)

if __name__ == "__main__":
    app()
