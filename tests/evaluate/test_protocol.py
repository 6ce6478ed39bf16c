"""The evaluator against the reference toolkits' figures, on the real tasks and a real model."""

import json
from pathlib import Path

import pytest

from pipeline.download.records import write_sts
from pipeline.download.senteval import read_senteval
from tests.conftest import SHARED, invoke, write_params

PROTOCOL = {
    "STS12": 41.3981,
    "STS13": 63.3648,
    "STS14": 52.5322,
    "STS15": 67.2147,
    "STS16": 69.6706,
    "STS-B": 55.8791,
    "SICK-R": 60.0299,
    "avg": 58.5842,
}


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_minilm_meets_the_reference_figures(tmp_path: Path, monkeypatch, tiny_run):
    sts, _ = read_senteval(SHARED / "mirror" / "senteval.tar")
    write_sts(tmp_path, sts)
    write_params(tmp_path)
    monkeypatch.chdir(tmp_path)
    result = invoke(
        "evaluate",
        *("--model", str(SHARED / "models" / "minilm-l3"), "--pooling", "mean"),
        *("--evaluation", str(tmp_path), "--out", "scores.json"),
        *("--pairs", str(tiny_run / "data/pairs"), "--text", str(tiny_run / "data/text")),
    )
    assert result.exit_code == 0, result.output
    scores = json.loads(Path("scores.json").read_text())["sts"]
    assert {task: scores[task] for task in PROTOCOL} == pytest.approx(PROTOCOL, abs=0.01)
