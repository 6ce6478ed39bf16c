"""Write a finished run as a folder for the model hub, and optionally upload it."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.core.progress import log
from pipeline.publish.collect import RunPaths, collect
from pipeline.publish.push import check_names, push, write_folder
from stages import paths
from stages._cli import read_params, run_stage


def main(
    seed: Annotated[
        int | None, typer.Option(help="Default: the seed with the best score on STS dev.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder to write.")] = paths.DATA / "publish",
    repository: Annotated[
        str | None, typer.Option("--push", metavar="ORG/NAME", help="Upload it to this repository.")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Upload to a private repository only.")
    ] = False,
    licence: Annotated[
        str | None, typer.Option(metavar="ID", help="The hub's identifier, such as cc-by-nc-4.0.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    models: Path = paths.MODELS,
    train: Path = paths.TRAIN_REPORTS,
    evaluate: Path = paths.EVALUATE_REPORTS,
    summary: Path = paths.REPORTS / "summary.json",
    features: Path = paths.FEATURES,
    lock: Path = Path("dvc.lock"),
) -> None:
    """Write a student with its model card and provenance; print the folder or its address."""
    check_names(licence, repository)
    run = RunPaths(models, train, evaluate, summary, features, lock)
    facts = collect(run, read_params(), seed=seed, licence=licence, repository=repository)
    chosen = facts["selection"]["seed"]
    write_folder(out, models / str(chosen), facts)
    log.info("seed %d is in %s", chosen, out)
    url = push(out, repository, private=private) if repository else None
    result = {"folder": str(out), "seed": chosen, "url": url}
    typer.echo(json.dumps(result, indent=2) if as_json else url or str(out))


app = run_stage(main)

if __name__ == "__main__":
    app()
