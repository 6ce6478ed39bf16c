"""The loop: reproducible, selects the best, and every objective trains what it should."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.download.records import read_pairs, read_sentences, read_sts
from pipeline.evaluate.selection import DevScorer
from pipeline.features.store import read_features
from pipeline.features.teacher_rows import TeacherRows, pairs_of_split
from pipeline.params.schema import Params
from pipeline.student.encoder import GroundingHeads, SentenceEncoder
from pipeline.train.batches import TrainingData
from pipeline.train.loop import Training, TrainingRun, count_steps
from pipeline.train.losses import adap_acse_loss, simcse_loss
from pipeline.train.objective import Distillation
from pipeline.train.run_params import RunParams
from tests.conftest import TINY, merge, read_default_params

GOLDEN = Path(__file__).parent / "golden_losses.json"
"""Written anew with KDMCSE_WRITE_GOLDEN=1 where a change of the losses is meant."""


def run_params(**changes: dict) -> RunParams:
    params = Params.model_validate(merge(merge(read_default_params(), TINY), changes))
    return RunParams(params.student, params.loss, params.train)


@pytest.fixture(scope="module")
def data(tiny_run: Path) -> TrainingData:
    pairs = read_pairs(tiny_run / "data/pairs")
    teacher = Params.model_validate(merge(read_default_params(), TINY)).teacher
    features = read_features(tiny_run / "data/features.h5", teacher, pairs.fingerprint())
    sentences = read_sentences(tiny_run / "data/text")
    return TrainingData(sentences, pairs_of_split(pairs, features, "train"))


def train(
    data: TrainingData, params: RunParams, score=None, *, seed: int = 0, checkpoint=None
) -> tuple[Training, dict]:
    training = TrainingRun(data, params, seed).train(score or constant(0.0), checkpoint)
    curves: dict[str, dict[int, float]] = {}
    for step, name, value in training.curves:
        curves.setdefault(name, {})[step] = value
    return training, curves


def constant(value: float):
    return lambda encoder: {"sts_dev": value}


def weights(training: Training) -> dict[str, torch.Tensor]:
    student = training.student
    return {**student.encoder.state_dict(), **student.heads.state_dict()}


def test_the_same_seed_gives_the_same_bits_and_another_one_others(data):
    one, curves = train(data, run_params())
    two, again = train(data, run_params())
    assert curves == again
    for name, value in weights(one).items():
        assert torch.equal(value, weights(two)[name]), name
    other, _ = train(data, run_params(), seed=1)
    assert not torch.equal(one.student.heads.image[0].weight, other.student.heads.image[0].weight)


def test_what_is_drawn_between_loading_and_training_changes_nothing(data):
    one, _ = train(data, run_params())
    run = TrainingRun(data, run_params(), 0)
    torch.rand(3)
    two = run.train(constant(0.0))
    assert one.metrics == two.metrics
    for name, value in weights(one).items():
        assert torch.equal(value, weights(two)[name]), name


def test_the_best_student_is_kept(data):
    """Scores 1, 5, 3: before, at step 3, at step 6; the students differ."""
    seen = []

    def score(encoder) -> dict[str, float]:
        seen.append({key: value.clone() for key, value in encoder.state_dict().items()})
        return {"sts_dev": [1.0, 5.0, 3.0][len(seen) - 1]}

    training, curves = train(data, run_params(), score)
    assert curves["sts_dev"] == {0: 1.0, 3: 5.0, 6: 3.0}
    assert (training.metrics["dev_before"], training.metrics["dev_best"]) == (1.0, 5.0)
    assert training.metrics["best_step"] == 3
    kept = training.student.encoder.state_dict()
    assert all(torch.equal(kept[key], value) for key, value in seen[1].items())
    assert not all(torch.equal(kept[key], value) for key, value in seen[2].items())


@pytest.mark.parametrize(
    ("objective", "trained"),
    [("simcse", {"text"}), ("mcse", {"text", "grounding", "image"}),
     ("kdmcse", {"text", "grounding", "image", "caption"})],
)  # fmt: skip
def test_each_objective_trains_its_heads(data, objective, trained):
    params = run_params(train={"objective": objective})
    fresh = TrainingRun(data, params, 0).model.heads.state_dict()
    before = {name: value.clone() for name, value in fresh.items()}
    training, curves = train(data, params)
    after = training.student.heads.state_dict()
    changed = {name.split(".")[0] for name, value in before.items() if not value.equal(after[name])}
    assert changed == trained
    losses = {"text": "loss_text", "image": "loss_image", "caption": "loss_caption"}
    assert set(curves) - {"sts_dev", "loss", "applied_margin"} == {
        losses[h] for h in trained if h in losses
    }


def test_the_loss_is_the_sum_of_its_terms(data):
    """One paired step, put together again from the losses alone."""
    params = run_params(
        loss={"text_margin": 0.1, "grounding_weight": 0.3, "margin": 0.2,
              "filter": {"kind": "percentile", "similarity": "cross-modal", "threshold": 80}}
    )  # fmt: skip
    torch.manual_seed(0)
    encoder = SentenceEncoder.load(params.student.encoder, "mean").eval()  # no dropout: one view
    heads = GroundingHeads(encoder.dim, data.pairs.features.dim, 8)
    model = Distillation(encoder, heads, params.loss)
    rows = np.arange(0, 24, 2)
    teacher = TeacherRows(data.pairs, torch.device("cpu"))(rows)
    images, captions = teacher[:2]
    tokens = encoder.tokenize([data.pairs.captions[row] for row in rows])
    loss = model(tokens, teacher)

    h = encoder(tokens)
    v, t = (x / x.norm(dim=1, keepdim=True) for x in (images, captions))
    text = simcse_loss(heads.text(h), heads.text(h), temperature=0.05, margin=0.1)
    off = ~torch.eye(len(rows), dtype=torch.bool)
    parts = []
    for target, alpha, cross in (
        (heads.ground_images(images), v @ v.T, t @ v.T),
        (heads.ground_captions(captions), t @ t.T, v @ t.T),
    ):
        keep = cross <= cross[off].sort().values[round(0.8 * (off.sum().item() - 1))]
        assert 0 < (~keep & off).sum() < off.sum() / 2
        p = heads.ground_sentences(h)
        parts.append(adap_acse_loss(p, target, alpha, margin=0.2, temperature=0.05, keep=keep))
    torch.testing.assert_close(loss.text, text)
    torch.testing.assert_close(loss.image, parts[0])
    torch.testing.assert_close(loss.caption, parts[1])
    torch.testing.assert_close(loss.total, text + 0.3 * (parts[0] + parts[1]))
    assert float(loss.masked_share) == pytest.approx(0.2, abs=0.03)


def test_golden_losses_of_a_seeded_run(data):
    """Guards against silent changes of data order, initialisation or maths."""
    _, curves = train(data, run_params(train={"steps": 20, "evaluate_every": 20}))
    if os.environ.get("KDMCSE_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(curves, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    for name, values in golden.items():
        found = {str(step): value for step, value in curves[name].items()}
        assert found == pytest.approx(values, rel=2e-2), name


def test_steps_win_over_epochs(data):
    sentences, pairs = len(data.sentences) // 16, len(data.pairs) // 16
    epochs = run_params(train={"steps": None, "epochs": 2}).train
    assert count_steps(data, epochs) == 2 * (sentences + pairs)
    assert count_steps(data, run_params(train={"steps": 5, "epochs": 2}).train) == 5


@pytest.mark.slow
def test_training_raises_the_score_on_dev(data, tiny_run):
    params = run_params(
        train={"steps": 40, "batch_size": 16, "evaluate_every": 40, "pair_every": 1},
        loss={"grounding_weight": 1.0},
    )
    score_dev = DevScorer(read_sts(tiny_run / "data/evaluation"), batch_size=64)
    training, _ = train(data, params, score_dev)
    assert training.metrics["dev_best"] > training.metrics["dev_before"] + 3
    assert 0 < training.times["selection_share"] < 1
