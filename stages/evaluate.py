"""Score a sentence encoder: STS, transfer and retrieval."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pipeline.core.device import choose_device
from pipeline.core.errors import ModelError, ParamsError
from pipeline.core.extras import require_extra
from pipeline.core.progress import log
from pipeline.evaluate.leak import find_leak
from pipeline.evaluate.report import (
    System,
    check_report_path,
    describe,
    describe_encoder,
    read_report,
    require_same_ground,
    require_same_model,
)
from pipeline.evaluate.suite import RunPaths, Suite, evaluate, read_suite
from pipeline.params.evaluate import PARTS, EvaluateParams, Part
from pipeline.params.places import expanded
from pipeline.params.teacher import TeacherParams
from pipeline.student.encoder import SentenceEncoder, Student, is_student
from pipeline.student.settings import Pooling
from stages import paths
from stages._cli import read_params, run_stage
from stages._tables import finish


def main(
    model: Annotated[
        str | None,
        typer.Option(help="A model directory or hub name; default: the first seed's student."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="JSON, a CSV goes beside it; default: reports/evaluate/SEED.json for a student "
            "of this pipeline, else reports/others/FOLDER.json."
        ),
    ] = None,
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
    other: Annotated[
        Literal["mteb"] | None,
        typer.Option("--with", help="Score with its evaluators too, and say where they differ."),
    ] = None,
    evaluation: Path = paths.EVALUATION,
    pairs: Path = paths.PAIRS,
    text: Path = paths.TEXT,
    features: Path = paths.FEATURES,
) -> None:
    """Score a sentence encoder: STS, transfer and retrieval, each distinct sentence read once."""
    if other:
        require_extra("mteb", "--with mteb", "mteb")
    params = read_params()
    model = expanded(model or str(paths.first_model(params)))
    folder = Path(model).resolve()
    is_own = folder.parent == paths.MODELS.resolve()  # its report is tracked by DVC
    reports = paths.EVALUATE_REPORTS if is_own else paths.OTHER_REPORTS
    report = out or reports / f"{folder.name}.json"
    check_report_path(report)
    asked = _parse_tasks(tasks)
    encoder, student = _load(model, pooling)
    if report.parent != paths.EVALUATE_REPORTS:  # a student trained again replaces its own
        require_same_model(report, describe_encoder(encoder), asked_for=out is not None)
    can_retrieve = student is not None and student.sees_images
    settings = _settings(params.evaluate, asked, model, can_retrieve=can_retrieve)
    run = RunPaths(evaluation, pairs, text, features)
    suite = read_suite(run, params.teacher, settings)
    name = name or ("student" if student else folder.name)
    others = _read_others(beside or [], suite, name)
    dimensions = student.matryoshka if student else ()
    scores = evaluate(encoder, suite, student if can_retrieve else None, dimensions=dimensions)
    leak = find_leak(suite)
    facts: dict[str, Any] = {"model": model, "seed": student.seed if student else None}
    facts["leak"] = None if leak is None else [asdict(one) for one in leak]
    told = describe_encoder(encoder)
    about = describe(suite, str(encoder.device), **facts, **told)
    if other:
        ours, grounded = System(folder.name, told, scores), student if can_retrieve else None
        about["mteb"] = _by_mteb(ours, encoder, grounded, suite, params.teacher)
    finish(report, [System(name, about, scores), *others])


def _by_mteb(
    ours: System,
    encoder: SentenceEncoder,
    student: Student | None,
    suite: Suite,
    teacher: TeacherParams,
) -> list[dict[str, Any]]:
    """The numbers of mteb beside ours; its result files go to reports/mteb."""
    from pipeline.evaluate.with_mteb import MtebModel, MtebRun, describe_model
    from pipeline.features.teacher import Teacher

    meta = describe_model(ours.name, ours.about, student)
    model = MtebModel(meta, encoder, student, partial(Teacher, teacher, encoder.device))
    run = MtebRun(model, suite, ours.scores, paths.MTEB_RESULTS)
    return [asdict(one) for one in run.compare()]


def _read_others(reports: list[Path], suite: Suite, name: str) -> list[System]:
    """The systems of earlier reports, of other names and measured on the same suite."""
    read = [(path, system) for path in reports for system in read_report(path)]
    for path, system in read:
        require_same_ground(suite, system, path)
    names = [name, *(system.name for _, system in read)]
    if twice := [one for one in names if names.count(one) > 1]:
        raise ParamsError(
            f"two systems of the tables are called {twice[0]}.",
            "give this one another --name, and leave out reports that show a system again.",
        )
    return [system for _, system in read]


def _parse_tasks(text: str | None) -> list[Part] | None:
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in PARTS]:
        raise ParamsError(
            f"--tasks names {unknown[0]!r}.",
            f"choose from {', '.join(PARTS)}, separated by commas.",
        )
    return [part for part in PARTS if part in names]


def _settings(
    params: EvaluateParams, asked: list[Part] | None, model: str, *, can_retrieve: bool
) -> EvaluateParams:
    """The params with the tasks that were asked for; retrieval needs a model that can."""
    wanted = asked or params.tasks
    if can_retrieve or "retrieval" not in wanted:
        return params.model_copy(update={"tasks": wanted})
    others = [part for part in wanted if part != "retrieval"]
    if asked or not others:
        raise ModelError(
            f"{model} has no grounding heads trained on pictures, and cannot retrieve any.",
            "leave retrieval out of the tasks, or train with train.objective mcse or kdmcse.",
        )
    log.info("retrieval is left out: %s has no grounding heads trained on pictures", model)
    return params.model_copy(update={"tasks": others})


def _load(model: str, pooling: Pooling | None) -> tuple[SentenceEncoder, Student | None]:
    """The encoder, and the student that it belongs to, if any."""
    path, is_own = Path(model), paths.MODELS.resolve() in Path(model).resolve().parents
    if not is_own and not is_student(path):
        return SentenceEncoder.load(model, pooling).to(choose_device()), None
    student = Student.load(path, choose_device())
    if pooling not in {None, student.encoder.pooling}:
        raise ParamsError(
            f"--pooling {pooling} is not the {student.encoder.pooling} pooling of {model}.",
            "leave --pooling out: a student is scored as it was trained.",
        )
    return student.encoder, student


app = run_stage(main)

if __name__ == "__main__":
    app()
