"""Fetch or make the corpora: pairs, text and evaluation."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pipeline.core.files import write_json
from pipeline.core.redact import one_line
from pipeline.download.corpora import Fetcher, make_evaluation, make_pairs, make_text
from pipeline.download.fetch import MIRROR_VARIABLE
from pipeline.download.preview import Part, Rows, preview
from pipeline.download.sources import OWN_KINDS, SOURCES
from pipeline.params.places import expanded
from stages import paths
from stages._cli import note_times, read_params, run_stage, wide_console


def main(
    pairs: Path = paths.PAIRS,
    text: Path = paths.TEXT,
    evaluation: Path = paths.EVALUATION,
    downloads: Annotated[
        Path,
        typer.Option(envvar=paths.DOWNLOADS_VARIABLE, help="Where fetched files are kept."),
    ] = paths.DOWNLOADS,
    metrics: Path = paths.REPORTS / "download.json",
    list_: Annotated[bool, typer.Option("--list", help="List the known sources and exit.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show your own data as they are read, copy nothing, exit."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print --list or --dry-run as JSON.")
    ] = False,
) -> None:
    """Fetch or make the corpora: pairs, text and evaluation."""
    if list_:
        _print_sources(as_json=as_json)
        return
    params = read_params().download
    if dry_run:
        parts = preview(params, downloads, (lambda _rows: None) if as_json else _print_rows)
        _print_parts(parts, as_json=as_json)
        return
    fetcher = Fetcher(downloads, expanded(os.environ.get(MIRROR_VARIABLE, "")))
    counts = {
        "pairs": make_pairs(pairs, params, fetcher),
        "text": make_text(text, params, fetcher),
        "evaluation": make_evaluation(evaluation, params, fetcher),
    }
    write_json(metrics, counts)
    note_times(metrics)


def _print_rows(rows: Rows) -> None:
    """As they were read; the counts may take longer."""
    table = Table(*rows[0], box=None)
    for row in rows:
        table.add_row(*(one_line(cell, 100) for cell in row.values()))
    wide_console().print(table, "")


def _print_parts(parts: Mapping[str, Part], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({name: asdict(part) for name, part in parts.items()}, indent=2))
        return
    for name, part in parts.items():
        counts = ", ".join(f"{key} {count:,}" for key, count in part.counts.items())
        note = "" if part.is_read else " (not yours, nothing was read)"
        typer.echo(f"{name}: {part.source}{note}{': ' if counts else ''}{counts}")
        for warning in part.warnings:
            typer.echo(f"  warning: {warning}")


def _print_sources(*, as_json: bool) -> None:
    sources = (*SOURCES, *OWN_KINDS.values())
    if as_json:
        typer.echo(json.dumps([asdict(source) for source in sources], indent=2))
        return
    table = Table("name", "kind", "size", "files", "licence", "citation")
    for source in sources:
        megabytes = sum(file.megabytes for file in source.files)
        size = f"{megabytes:,} MB" if source.files else "yours"
        candidates = (file.candidates() for file in source.files)
        files = "\n".join("\n  or ".join(one.address for one in several) for several in candidates)
        table.add_row(source.name, source.kind, size, files, source.licence, source.citation)
    Console().print(table)


app = run_stage(main)

if __name__ == "__main__":
    app()
