"""The loop: reproducible, selects the best, and every objective trains what it should."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.core.errors import InputError
from pipeline.download.records import read_pairs, read_sentences, read_sts
from pipeline.evaluate.selection import DevScorer
from pipeline.features.store import read_features
from pipeline.features.teacher_rows import pairs_of_split
from pipeline.params.schema import Params
from pipeline.train.batches import TrainingData
from pipeline.train.checkpoint import Checkpoint
from pipeline.train.loop import Training, TrainingRun, count_steps
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
    """Whatever is drawn between loading and training."""
    one, curves = train(data, run_params())
    run = TrainingRun(data, run_params(), 0)
    torch.rand(3)
    two = run.train(constant(0.0))
    assert (one.curves, one.metrics) == (two.curves, two.metrics)
    for name, value in weights(one).items():
        assert torch.equal(value, weights(two)[name]), name
    _, others = train(data, run_params(), seed=1)
    assert others["loss"] != curves["loss"]


@pytest.mark.parametrize(("after", "best"), [((5.0, 3.0), 3), ((3.0, 5.0), 6), ((1.0, 1.0), 3)])
def test_the_best_student_is_kept(data, after, best):
    """Scores are of the start, of step 3 and of step 6; a student that learnt nothing counts."""
    seen: dict[int, dict] = {}
    scores = {0: 1.0, 3: after[0], 6: after[1]}

    def score(encoder) -> dict[str, float]:
        step = 3 * len(seen)
        seen[step] = {key: value.clone() for key, value in encoder.state_dict().items()}
        return {"sts_dev": scores[step]}

    training, curves = train(data, run_params(), score)
    assert curves["sts_dev"] == scores
    assert (training.metrics["dev_before"], training.metrics["dev_best"]) == (1.0, max(after))
    assert training.metrics["best_step"] == best
    kept = training.student.encoder.state_dict()
    for step, state in seen.items():
        assert all(torch.equal(kept[key], state[key]) for key in kept) == (step == best)


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


def test_the_heads_into_the_shared_space_have_a_rate_of_their_own(data, tmp_path):
    """AdamW's first step moves every weight with a gradient by its rate; a stopped run resumes."""
    moved = {}
    for rate in (None, 0.03):
        settings = {"steps": 1, "pair_every": 1, "learning_rate": 0.001, "head_learning_rate": rate}
        params = run_params(train=settings)
        model = TrainingRun(data, params, 0).model
        before = {name: value.clone() for name, value in model.named_parameters()}
        run = TrainingRun(data, params, 0)
        run.train(constant(0.0))
        for name, value in run.model.named_parameters():
            change = (value - before[name]).abs().median().item()
            moved.setdefault(".".join(name.split(".")[:2]), []).append(change)
    heads = ("heads.grounding", "heads.image", "heads.caption")
    for name in ("heads.text", *heads):
        own = 0.03 if name in heads else 0.001
        assert moved[name] == pytest.approx([0.001, 0.001, own, own], rel=0.05), name
    params = run_params(train={"head_learning_rate": 0.03})
    checkpoint = Checkpoint(tmp_path / "kept", "fingerprint", 0.0)
    _, curves = train(data, params, checkpoint=checkpoint)
    _, resumed = train(data, params, checkpoint=checkpoint)
    assert curves == resumed


def test_golden_losses_of_a_seeded_run(data):
    """Guards against silent changes of data order, initialisation or maths."""
    _, curves = train(data, run_params(train={"steps": 20, "evaluate_every": 20}))
    if os.environ.get("KDMCSE_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(curves, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    for name, values in golden.items():
        found = {str(step): value for step, value in curves[name].items()}
        assert found == pytest.approx(values, rel=2e-2), name


def test_without_text_every_step_takes_pairs_and_a_stopped_run_resumes(data, tmp_path):
    captions = TrainingData([], data.pairs.take(np.arange(80)))
    changes = {"pair_every": "auto", "steps": None, "epochs": 1}
    params = run_params(train=changes)
    training, curves = train(captions, params)
    assert training.metrics["paired_share"] == 1
    assert training.metrics["steps"] == len(captions.pairs) // params.train.batch_size
    checkpoint = Checkpoint(tmp_path / "kept", "fingerprint", 0.0)
    again, resumed = train(captions, params, checkpoint=checkpoint)
    assert resumed == curves
    last = TrainingRun(captions, params, 0).train(constant(0.0), checkpoint)  # from its last step
    assert torch.equal(*(next(iter(weights(one).values())) for one in (again, last)))
    with pytest.raises(InputError, match=r"train\.pair_every is 2, but there are no text-only"):
        TrainingRun(captions, run_params(), 0)


def test_steps_win_over_epochs(data):
    sentences, pairs = len(data.sentences) // 16, len(data.pairs) // 16
    epochs = run_params(train={"steps": None, "epochs": 2}).train
    assert count_steps(data, epochs) == 2 * (sentences + pairs)
    assert count_steps(data, run_params(train={"steps": 5, "epochs": 2}).train) == 5


@pytest.mark.parametrize(
    ("pair_every", "streams"), [(1, "pairs"), (2, "both"), ("auto", "both"), (10**9, "text")]
)
def test_an_epoch_has_the_batches_of_the_streams_that_are_read(data, pair_every, streams):
    sentences, pairs = len(data.sentences) // 16, len(data.pairs) // 16
    params = run_params(train={"steps": None, "epochs": 3, "pair_every": pair_every}).train
    read = {"text": sentences, "pairs": pairs, "both": sentences + pairs}
    assert count_steps(data, params) == 3 * read[streams]


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
