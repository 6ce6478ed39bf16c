"""Score what training starts from: the untrained student and the teacher."""

from pathlib import Path

from pipeline.core.device import choose_device
from pipeline.evaluate.report import System, check_report_path, describe, describe_encoder
from pipeline.evaluate.suite import RunPaths, evaluate, read_suite, teacher_retrieval
from pipeline.features.teacher import Teacher
from pipeline.student.encoder import SentenceEncoder
from stages import paths
from stages._cli import read_params, run_stage
from stages._tables import finish


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
    encoder = SentenceEncoder.load(params.student.encoder, params.student.pooling)
    encoder = encoder.to(choose_device())
    scores = evaluate(encoder, suite)
    facts = {"model": params.student.encoder, **describe_encoder(encoder)}
    untrained = System("untrained", describe(suite, str(encoder.device), **facts), scores)
    teacher = Teacher(params.teacher, choose_device())
    scores = evaluate(teacher, suite) + teacher_retrieval(suite)
    facts = {"model": params.teacher.model, "weights": teacher.identity.weights}
    about = describe(suite, str(teacher.device), **facts)
    finish(out, [untrained, System("teacher", about, scores)])


app = run_stage(main)

if __name__ == "__main__":
    app()
