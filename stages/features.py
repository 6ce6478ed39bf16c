"""Encode all images and captions with the frozen teacher, once."""

import contextlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pipeline.core.device import choose_device
from pipeline.core.errors import InputError, ParamsError
from pipeline.core.files import write_csv, write_json
from pipeline.download.records import read_pairs, read_sentences
from pipeline.features import cache as caches
from pipeline.features.extract import TooManyRejectedError, make_engine, write_extraction
from pipeline.features.imported import write_imported
from pipeline.features.teacher import Teacher
from pipeline.features.text_teacher import open_text_teacher
from stages import paths
from stages._cli import note_times, read_params, run_stage


def main(
    pairs: Path = paths.PAIRS,
    text: Path = paths.TEXT,
    out: Path = paths.FEATURES,
    metrics: Path = paths.REPORTS / "features.json",
    rejected: Path = paths.REPORTS / "rejected.csv",
    store: Annotated[
        Path, typer.Option(envvar=paths.STORE_VARIABLE, help="Where features are cached.")
    ] = paths.STORE,
    status: Annotated[bool, typer.Option(help="Only list what is cached.")] = False,
    prune: Annotated[bool, typer.Option(help="Only delete the cache.")] = False,
    teacher: Annotated[
        str, typer.Option(help="With --prune: only teachers whose name in --status starts so.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Encode all images and captions with the frozen teacher, once, or import their vectors.

    Features are cached by content. A run that was stopped or killed resumes, and another data set
    with the same images or captions does not encode them again.
    """
    if status or prune:
        _show(caches.prune(store, teacher) if prune else caches.list_cached(store), as_json)
        return
    if teacher:
        fix = "set teacher.model in params.yaml instead."
        raise ParamsError("--teacher is given without --prune.", fix)
    params, corpus, device = read_params(), read_pairs(pairs), choose_device()
    with contextlib.ExitStack() as stack:
        texts = None
        if params.teacher.text.encoders:
            opened = open_text_teacher(params.teacher.text, store, read_sentences(text), device)
            texts = stack.enter_context(opened)
        try:
            if params.teacher.is_imported:
                teacher_params, settings = params.teacher, params.features
                extraction = write_imported(out, corpus, teacher_params, settings, texts)
            else:
                frozen = Teacher(params.teacher, device, params.features.precision)
                cache = caches.FeatureCache(store, frozen.identity, frozen.probe())
                stack.enter_context(cache.in_use())
                engine = stack.enter_context(make_engine(params.features, frozen, cache))
                extraction = write_extraction(out, corpus, engine, cache, params.features, texts)
        except TooManyRejectedError as error:
            write_csv(rejected, error.rejected)
            raise InputError(error.what, f"{rejected} lists them all; {error.fix}") from None
    write_csv(rejected, extraction.rejected)
    write_json(metrics, extraction.metrics)
    note_times(metrics, **extraction.times)


def _show(teachers: list[caches.CacheEntry], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([asdict(teacher) for teacher in teachers], indent=2))
        return
    table = Table("name", "teacher", "type", "images", "captions", "shards", "size")
    for one in teachers:
        label = f"{one.model} {one.pretrained}".strip()
        counts = [f"{count:,}" for count in (one.images, one.captions, one.shards)]
        table.add_row(one.name, label, one.dtype, *counts, f"{one.bytes / 1e6:,.1f} MB")
    Console().print(table)


app = run_stage(main)

if __name__ == "__main__":
    app()
