"""Write a finished run as a folder for the model hub, and optionally upload it."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.core.errors import ParamsError
from pipeline.core.extras import require_extra
from pipeline.core.progress import log
from pipeline.evaluate import suite as evaluation_suite
from pipeline.publish.collect import Facts, RunPaths, collect
from pipeline.publish.push import check_names, copy_student, push, write_folder
from stages import paths
from stages._cli import read_params, run_stage


def main(
    seed: Annotated[
        int | None, typer.Option(help="Default: the seed with the best score on STS dev.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder to write.")] = paths.DATA / "publish",
    form: Annotated[
        Literal["student", "sentence-transformers"],
        typer.Option(
            "--format",
            help="The student as it is, or a sentence-transformers Router for texts and pictures.",
        ),
    ] = "student",
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Add onnx/model.onnx and model_int8.onnx with their STS.")
    ] = False,
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
    evaluation: Path = paths.EVALUATION,
    pairs: Path = paths.PAIRS,
    text: Path = paths.TEXT,
    lock: Path = Path("dvc.lock"),
) -> None:
    """Write a student with its model card and provenance; print the folder or its address."""
    check_names(licence, repository)
    _check_form(form, onnx=onnx)
    run, params = RunPaths(models, train, evaluate, summary, features, lock), read_params()
    facts = collect(run, params, seed=seed, licence=licence, repository=repository)
    chosen = facts["selection"]["seed"]

    def write_model(folder: Path) -> Facts:
        if form == "sentence-transformers":
            from pipeline.publish.router import write_router

            return {"onnx": None, **write_router(folder, models / str(chosen), params.teacher)}
        copy_student(folder, models / str(chosen))
        scores = None
        if onnx:
            from pipeline.publish.onnx_files import write_onnx

            settings = params.evaluate.model_copy(update={"tasks": ["sts"]})
            data = evaluation_suite.RunPaths(evaluation, pairs, text, features)
            suite = evaluation_suite.read_suite(data, params.teacher, settings)
            scores = write_onnx(folder, suite, evaluate / f"{chosen}.json")
        return {"format": form, "image_tower": None, "onnx": scores}

    write_folder(out, facts, write_model)
    log.info("seed %d is in %s", chosen, out)
    url = push(out, repository, private=private) if repository else None
    result = {"folder": str(out), "seed": chosen, "url": url}
    typer.echo(json.dumps(result, indent=2) if as_json else url or str(out))


def _check_form(form: str, *, onnx: bool) -> None:
    """Refuse what cannot be written, before any work."""
    if form == "student":
        return
    require_extra("publish", f"--format {form}", "sentence_transformers")
    if onnx:
        raise ParamsError(
            f"--onnx does not go with --format {form}: sentence-transformers runs all routes of a "
            "Router by one library, and has none that runs an image tower as ONNX.",
            "publish twice, with two names for --out.",
        )


app = run_stage(main)

if __name__ == "__main__":
    app()
