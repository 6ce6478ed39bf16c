"""The student as ONNX where sentence-transformers looks for it, and the STS of each file."""

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from pipeline.core.errors import ModelError
from pipeline.core.extras import require_extra
from pipeline.core.progress import log
from pipeline.evaluate.report import headline, read_report, require_same_ground
from pipeline.evaluate.suite import Suite, evaluate
from pipeline.student.encoder import Student, Tokens, run_padded
from pipeline.student.export import export_backbone

_FILES = ("onnx/model.onnx", "onnx/model_int8.onnx")
_TOLERANCE = 0.01
"""Of Spearman x100, between torch and 32-bit ONNX."""


def write_onnx(folder: Path, suite: Suite, report: Path) -> dict[str, dict[str, float]]:
    """Add the ONNX files to a student directory, in 32 bits and in 8.

    Args:
        folder: the directory.
        suite: the STS tasks to score the files on.
        report: the student's own evaluation.

    Returns:
        The headline STS by file and task.

    Raises:
        ModelError: the student cannot be exported, or its graph has another STS than itself.
        StaleArtifactError: the report was measured on other data.
    """
    require_extra("repro", "--onnx", "onnx", "onnxruntime", "onnxscript")
    system = read_report(report)[0]
    require_same_ground(suite, system, report)
    student = Student.load(folder, torch.device("cpu"))
    whole, small = (folder / name for name in _FILES)
    whole.parent.mkdir()
    try:
        export_backbone(student.encoder, whole, small)
    except ValueError as error:
        raise ModelError(f"the student has no ONNX: {error}.", "omit --onnx.") from None
    found = {name: _score(student, folder / name, suite) for name in _FILES}
    own = headline(system.scores)["sts"]
    for task, value in found[_FILES[0]].items():
        if abs(value - own[task]) > _TOLERANCE:
            raise ModelError(
                f"{_FILES[0]} has {value:.2f} on {task}, the student itself {own[task]:.2f}.",
                "omit --onnx: this encoder is not exported correctly.",
            )
    return found


def _score(student: Student, graph: Path, suite: Suite) -> dict[str, float]:
    """The headline STS of the student whose backbone is this graph."""
    import onnxruntime

    log.info("STS of %s", graph.name)
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])

    def run(_: nn.Module, tokens: Tokens) -> Tensor:
        given = {name: ids.numpy() for name, ids in tokens.items()}
        return torch.from_numpy(session.run(None, given)[0])

    student.encoder.run_backbone = run
    try:
        scores = headline(evaluate(student.encoder, suite))["sts"]
    finally:
        student.encoder.run_backbone = run_padded
    return cast(dict[str, float], scores)
