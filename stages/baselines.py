"""Score what training starts from: the untrained student and the teacher."""

from pathlib import Path

from pipeline.core.device import choose_device
from pipeline.evaluate.report import (
    System,
    check_report_path,
    describe,
    describe_encoder,
    write_report,
)
from pipeline.evaluate.suite import RunPaths, Suite, evaluate, read_suite, teacher_retrieval
from pipeline.features.teacher import Teacher
from pipeline.params.student import StudentParams
from pipeline.params.teacher import TeacherParams
from pipeline.student.encoder import SentenceEncoder
from stages import paths
from stages._cli import note_times, read_params, run_stage
from stages._tables import print_systems


def main(
    evaluation: Path = paths.EVALUATION,
    pairs: Path = paths.PAIRS,
    text: Path = paths.TEXT,
    features: Path = paths.FEATURES,
    out: Path = paths.REPORTS / "baselines.json",
) -> None:
    """Score what training starts from: the untrained student and the teacher."""
    params = read_params()
    check_report_path(out)
    run = RunPaths(evaluation, pairs, text, features)
    suite = read_suite(run, params.teacher, params.evaluate)
    systems = [_untrained(params.student, suite), _teacher(params.teacher, suite)]
    write_report(out, systems)
    note_times(out)
    print_systems(systems)


def _untrained(params: StudentParams, suite: Suite) -> System:
    encoder = SentenceEncoder.load(params.encoder, params.pooling).to(choose_device())
    scores = evaluate(encoder, suite)
    facts = {"model": params.encoder, **describe_encoder(encoder)}
    return System("untrained", describe(suite, str(encoder.device), **facts), scores)


def _teacher(params: TeacherParams, suite: Suite) -> System:
    """Its text tower as a sentence encoder, and its own retrieval."""
    teacher = Teacher(params, choose_device())
    scores = evaluate(teacher, suite) + teacher_retrieval(suite)
    facts = {"model": params.model, "weights": teacher.identity.weights}
    return System("teacher", describe(suite, str(teacher.device), **facts), scores)


app = run_stage(main)

if __name__ == "__main__":
    app()
