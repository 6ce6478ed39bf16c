"""Score what training starts from: the untrained student and the teacher."""

from pathlib import Path

from pipeline.core.device import choose_device
from pipeline.core.progress import log
from pipeline.evaluate.report import System, check_report_path, describe, describe_encoder
from pipeline.evaluate.suite import RunPaths, Suite, evaluate, read_suite, teacher_retrieval
from pipeline.features.teacher import Teacher
from pipeline.params.teacher import TeacherParams
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
    finish(out, [untrained, *_score_teacher(params.teacher, suite)])


def _score_teacher(params: TeacherParams, suite: Suite) -> list[System]:
    """The teacher's scores; of imported vectors, which encode no sentence, only the retrieval."""
    scores, device = teacher_retrieval(suite), choose_device()
    facts = {"model": params.model}
    if not params.is_imported:
        teacher = Teacher(params, device)
        scores = evaluate(teacher, suite) + scores
        facts["weights"] = teacher.identity.weights
    elif suite.retrieval is not None:
        log.info("the teacher's own sentence vectors are not scored: it is imported")
        facts["weights"] = suite.retrieval.teacher
    else:
        return []
    return [System("teacher", describe(suite, str(device), **facts), scores)]


app = run_stage(main)

if __name__ == "__main__":
    app()
