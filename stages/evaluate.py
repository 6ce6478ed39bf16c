"""Score a sentence encoder: STS, transfer and retrieval."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.encoder import Pooling, SentenceEncoder, Student, is_student, load_student
from pipeline.errors import ModelError, ParamsError
from pipeline.evaluate.report import (
    System,
    describe,
    describe_encoder,
    read_report,
    require_same_ground,
    write_report,
)
from pipeline.evaluate.suite import Places, evaluate, read_suite
from pipeline.params.evaluate import PARTS, EvaluateParams
from pipeline.runtime import choose_device
from stages import paths
from stages._cli import read_params, run_stage
from stages._tables import print_systems


def main(
    model: Annotated[str, typer.Option(help="A model directory or hub name.")] = str(paths.MODEL),
    out: Annotated[Path, typer.Option(help="JSON to write; a CSV goes beside it.")] = (
        paths.REPORTS / "evaluate.json"
    ),
    tasks: Annotated[
        str | None, typer.Option(help="Of sts,transfer,retrieval; default: evaluate.tasks.")
    ] = None,
    pooling: Annotated[
        Literal["cls", "mean"] | None, typer.Option(help="Needed where the model names none.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What the tables call it; default: the folder's name.")
    ] = None,
    beside: Annotated[
        list[Path] | None, typer.Option(help="A report whose systems the tables show too.")
    ] = None,
    evaluation: Path = paths.EVALUATION,
    pairs: Path = paths.PAIRS,
    text: Path = paths.TEXT,
    features: Path = paths.FEATURES,
) -> None:
    """Score a sentence encoder: STS, transfer and retrieval, each distinct sentence read once."""
    params = read_params()
    if out.suffix == ".csv":
        raise ParamsError(f"--out {out} would be overwritten by its own CSV.", "end it in .json.")
    settings = _settings(params.evaluate, tasks)
    places = Places(evaluation, pairs, text, features)
    suite = read_suite(places, params.teacher, settings, required=tasks is not None)
    encoder, student = _load(model, pooling)
    if student is None and tasks is not None and "retrieval" in settings.tasks:
        raise ModelError(
            f"{model} has no grounding heads trained on pictures, and cannot retrieve any.",
            "leave retrieval out of --tasks, or train with train.objective mcse or kdmcse.",
        )
    shown = [(path, system) for path in beside or [] for system in read_report(path)]
    scores = evaluate(encoder, suite, student, show_progress=True)
    facts = {"model": model, "seed": student.seed if student else None}
    about = describe(suite, str(encoder.device), **facts, **describe_encoder(encoder))
    system = System(name or _default_name(model), about, scores)
    for path, other in shown:
        require_same_ground(system, other, path)
    systems = [system, *(other for _, other in shown)]
    write_report(out, systems)
    print_systems(systems)


def _default_name(model: str) -> str:
    return "student" if model == str(paths.MODEL) else Path(model).name


def _settings(params: EvaluateParams, tasks: str | None) -> EvaluateParams:
    if tasks is None:
        return params
    asked = [task.strip() for task in tasks.split(",")]
    if unknown := [task for task in asked if task not in PARTS]:
        raise ParamsError(
            f"--tasks names {unknown[0]!r}.", f"choose from {', '.join(PARTS)}, with commas."
        )
    return params.model_copy(update={"tasks": asked})


def _load(model: str, pooling: Pooling | None) -> tuple[SentenceEncoder, Student | None]:
    """The encoder, and the student where its heads can ground it."""
    path = Path(model)
    if model == str(paths.MODEL) or (pooling is None and is_student(path)):
        student = load_student(path, choose_device())
        return student.encoder, student if student.sees_images else None
    return SentenceEncoder.load(model, pooling).to(choose_device()), None


app = run_stage(main)

if __name__ == "__main__":
    app()
