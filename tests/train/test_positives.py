"""Siblings as positives: who is drawn, what the losses read of them, and that runs resume."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.download.records import read_pairs, read_sentences
from pipeline.features.store import read_features
from pipeline.features.teacher_rows import pairs_of_split
from pipeline.params.schema import Params
from pipeline.train.batches import Siblings, TrainingData, pair_stream
from pipeline.train.checkpoint import Checkpoint
from pipeline.train.gradients import add_gradients
from pipeline.train.loop import Training, TrainingRun
from pipeline.train.run_params import RunParams
from tests.conftest import TINY, merge, read_default_params


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(0, 99), st.integers(0, 3))
def test_a_sibling_is_another_caption_of_the_same_image(image_rows, seed, epoch):
    image_rows = np.array(image_rows)
    rows = np.arange(len(image_rows))
    drawn = Siblings(image_rows, seed)(rows, epoch)
    assert (image_rows[drawn] == image_rows).all()
    counts = Counter(image_rows.tolist())
    alone = np.array([counts[image] == 1 for image in image_rows.tolist()])
    assert (drawn[alone] == rows[alone]).all()
    assert (drawn[~alone] != rows[~alone]).all()
    assert Siblings(image_rows, seed).share == pytest.approx(1 - alone.mean())


def test_siblings_change_with_the_epoch_and_depend_on_nothing_else():
    image_rows = np.repeat(np.arange(50), 5)
    rows = np.random.default_rng(0).permutation(250)
    siblings = Siblings(image_rows, seed=3)
    first, second = siblings(rows, 0), siblings(rows, 1)
    assert (first != second).mean() > 0.5
    assert np.array_equal(Siblings(image_rows, seed=3)(rows[:9], 1), second[:9])
    assert not np.array_equal(Siblings(image_rows, seed=4)(rows, 1), second)


def test_every_other_caption_is_drawn_equally_often():
    siblings = Siblings(np.zeros(4, np.int64), seed=0)
    drawn = Counter(int(siblings(np.array([1]), epoch)[0]) for epoch in range(900))
    assert set(drawn) == {0, 2, 3}
    assert all(240 < count < 360 for count in drawn.values())


VIEWS = {"dropout": "aa", "sibling": "ab", "both": "aab"}


@pytest.fixture(scope="module")
def data(tiny_run: Path) -> TrainingData:
    pairs = read_pairs(tiny_run / "data/pairs")
    teacher = Params.model_validate(merge(read_default_params(), TINY)).teacher
    features = read_features(tiny_run / "data/features.h5", teacher, pairs.fingerprint())
    return TrainingData(
        read_sentences(tiny_run / "data/text"), pairs_of_split(pairs, features, "train")
    )


def run_params(positives: str, **train_params) -> RunParams:
    changes = {"loss": {"positives": positives}, "train": {"pair_every": 1, **train_params}}
    params = Params.model_validate(merge(merge(read_default_params(), TINY), changes))
    return RunParams(params.student, params.loss, params.train)


def train(data, positives, checkpoint=None, report=lambda *_: None, **train_params) -> Training:
    run = TrainingRun(data, run_params(positives, **train_params), seed=0)
    return run.train(lambda _: {"sts_dev": 0.0}, checkpoint, report=report)


@pytest.mark.parametrize("positives", VIEWS)
def test_a_step_reads_the_captions_and_features_of_its_views(positives, data, monkeypatch):
    batches = []

    def look(model, batch, **settings):
        batches.append((batch, model.encoder.tokenizer))
        return add_gradients(model, batch, **settings)

    monkeypatch.setattr("pipeline.train.loop.add_gradients", look)
    train(data, positives, steps=1)
    [(batch, tokenizer)] = batches
    pairs, views = data.pairs, VIEWS[positives]
    params = run_params(positives)
    rows = next(pair_stream(pairs, np.zeros(len(pairs), np.int64), params, seed=0))
    wanted = {"a": rows, "b": Siblings(pairs.image_rows, seed=0)(rows, 0)}
    assert (wanted["a"] != wanted["b"]).all()
    assert len(batch.tokens) == len(batch.teacher) == len(views)
    for view, tokens, (images, captions, _) in zip(views, batch.tokens, batch.teacher, strict=True):
        chosen = wanted[view]
        texts = [pairs.captions[row] for row in chosen]
        expected = tokenizer(texts, padding="longest", return_tensors="pt")["input_ids"]
        width = expected.shape[1]
        assert torch.equal(tokens["input_ids"][:, :width], expected)
        assert not tokens["attention_mask"][:, width:].any()
        for got, table, of in (
            (images, pairs.features.images, pairs.image_rows),
            (captions, pairs.features.captions, pairs.caption_rows),
        ):
            torch.testing.assert_close(got, torch.from_numpy(table[of[chosen]]).float())


@pytest.mark.parametrize(
    ("positives", "mini_batch_size"),
    [
        pytest.param("sibling", None, marks=pytest.mark.slow),
        pytest.param("sibling", 12, marks=pytest.mark.slow),
        pytest.param("both", None, marks=pytest.mark.slow),
        pytest.param("both", 5, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_with_siblings_resumes_with_the_same_bits(
    positives, mini_batch_size, data, tmp_path
):
    """The stop is in the second epoch; with four captions an image, other siblings are drawn."""
    some = data.pairs.take(np.arange(8 * 16))
    fours = replace(some, image_rows=some.image_rows // 2)
    data = TrainingData(data.sentences, fours)
    setting = {"steps": 12, "evaluate_every": 12, "mini_batch_size": mini_batch_size}
    whole = train(data, positives, **setting)

    class StoppedError(Exception):
        pass

    def stop(step, values):
        if step == 10:
            raise StoppedError

    kept = Checkpoint(tmp_path, "run", every=0.0)
    with pytest.raises(StoppedError):
        train(data, positives, kept, stop, **setting)
    assert any(tmp_path.iterdir())
    resumed = train(data, positives, kept, **setting)
    assert resumed.curves == whole.curves
    for name, value in whole.student.encoder.state_dict().items():
        assert torch.equal(value, resumed.student.encoder.state_dict()[name]), name


def test_the_gradient_with_mini_batches_is_that_of_the_whole_batch(data):
    """Without dropout, whose masks depend on what is encoded together."""
    losses = [train(data, "both", steps=2, mini_batch_size=size).curves[-1] for size in (None, 16)]
    assert losses[0] == losses[1]


def test_a_caption_without_siblings_keeps_its_dropout_view(data, caplog):
    """One caption an image: siblings change nothing, which is said."""
    _, first = np.unique(data.pairs.image_rows, return_index=True)
    data = TrainingData(data.sentences, data.pairs.take(first))
    one, other = (train(data, positives, steps=3) for positives in ("dropout", "sibling"))
    for point, same in zip(one.curves, other.curves, strict=True):
        assert same == (*point[:2], pytest.approx(point[2], rel=1e-4))
    assert "0.0 % of the captions have a sibling" in caplog.text
    assert one.metrics["paired_share"] == 1.0
