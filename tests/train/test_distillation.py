"""Distillation of similarity rows, recomputed in float64 from the formulas, one row at a time."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from pipeline.features.teacher_rows import TeacherBatch
from pipeline.params.loss import ConsistencyParams, DistillationParams, LossParams
from pipeline.params.schema import Params
from pipeline.student.encoder import GroundingHeads, SentenceEncoder
from pipeline.train.batches import TrainingData, pair_stream, text_stream
from pipeline.train.gradients import add_gradients
from pipeline.train.loop import TrainingRun
from pipeline.train.losses import (
    CONSISTENCY_MARGIN,
    cosines,
    distillation_loss,
    pair_consistency,
    simcse_loss,
    view_divergence,
)
from pipeline.train.objective import Distillation
from pipeline.train.run_params import RunParams
from tests.conftest import TINY, merge, read_default_params
from tests.train.test_loop import data as data  # noqa: PLC0414  # the fixture

KINDS = ("kl", "listnet", "listmle")
SENTENCES = ["a red circle", "a blue square above a green star", "two small circles", "a star"]


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def by_hand(student, teacher, *, kind, temperature, teacher_temperature) -> float:
    """The loss row by row, as METHOD has it."""
    total = 0.0
    for i in range(len(student)):
        s, t = np.delete(student[i], i) / temperature, np.delete(teacher[i], i)
        if kind == "listmle":
            left = s[sorted(range(len(t)), key=lambda j: (-t[j], j))]
            total -= sum(left[k] - np.log(np.exp(left[k:]).sum()) for k in range(len(left)))
        else:
            p, q = softmax(t / teacher_temperature), softmax(s)
            entropy = sum(x * math.log(x) for x in p if x > 0)
            total += -(p * np.log(q)).sum() + (entropy if kind == "kl" else 0.0)
    return total / len(student)


def random_cosines(seed: int, size: int, levels: int | None = None) -> np.ndarray:
    """A square of numbers from -1 to 1; few levels give ties and constant rows."""
    rng = np.random.default_rng(seed)
    if levels is None:
        return rng.uniform(-1, 1, (size, size))
    return rng.integers(levels, size=(size, size)) / levels


@given(
    st.integers(0, 10**6),
    st.integers(2, 7),
    st.sampled_from([None, 1, 2]),
    st.sampled_from(KINDS),
    st.sampled_from([0.05, 0.3, 1.0]),
    st.sampled_from([0.05, 0.5]),
)
def test_the_loss_is_its_formula(seed, size, levels, kind, temperature, teacher_temperature):
    student, teacher = random_cosines(seed, size), random_cosines(seed + 1, size, levels)
    setting = {
        "kind": kind,
        "temperature": temperature,
        "teacher_temperature": teacher_temperature,
    }
    loss = distillation_loss(torch.from_numpy(student), torch.from_numpy(teacher), **setting)
    assert loss.dtype == torch.float64
    assert float(loss) == pytest.approx(by_hand(student, teacher, **setting), abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_diagonal_is_never_in_it(kind):
    student = torch.from_numpy(random_cosines(0, 5)).requires_grad_()
    teacher = torch.from_numpy(random_cosines(1, 5))
    loss = distillation_loss(student, teacher, kind=kind)
    loss.backward()
    assert not student.grad.diagonal().any()
    assert student.grad.abs().sum() > 0
    other = distillation_loss(student + torch.eye(5), teacher - 3 * torch.eye(5), kind=kind)
    assert torch.equal(other, loss)


def test_rows_that_agree_cost_nothing_and_others_more():
    teacher = torch.from_numpy(random_cosines(2, 6))
    assert float(distillation_loss(teacher, teacher)) == pytest.approx(0, abs=1e-12)
    assert float(distillation_loss(-teacher, teacher)) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_low_precision_is_left(kind):
    student, teacher = (torch.from_numpy(random_cosines(s, 6)).bfloat16() for s in (3, 4))
    with torch.autocast("cpu", torch.bfloat16):
        low = distillation_loss(student, teacher, kind=kind)
    wide = distillation_loss(student.double(), teacher.double(), kind=kind)
    assert low.dtype == torch.float32
    assert float(low) == pytest.approx(float(wide), rel=1e-5)


def test_view_divergence_is_that_of_both_directions():
    cosine = random_cosines(5, 5)
    expected = 0.0
    for i in range(5):
        p, q = softmax(cosine[i] / 0.1), softmax(cosine[:, i] / 0.1)
        middle = (p + q) / 2
        expected += sum((x * np.log(x / middle)).sum() for x in (p, q)) / 2 / 5
    got = view_divergence(torch.from_numpy(cosine), temperature=0.1)
    assert float(got) == pytest.approx(expected, rel=1e-5)
    symmetric = torch.from_numpy(cosine + cosine.T)
    assert float(view_divergence(symmetric, temperature=0.1)) == pytest.approx(0, abs=1e-6)


def test_pair_consistency_is_the_cosine_embedding_loss_of_matched_and_shuffled_pairs():
    sentences, images = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(6))
    both = torch.cat([sentences, sentences]), torch.cat([images, images.roll(1, 0)])
    sign = torch.cat([torch.ones(6), -torch.ones(6)])
    expected = F.cosine_embedding_loss(*both, sign, margin=CONSISTENCY_MARGIN)
    torch.testing.assert_close(pair_consistency(sentences, images), expected)


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder.load(TINY["student"]["encoder"], "mean").eval()  # no dropout: one view


def build(encoder, **distillation) -> Distillation:
    torch.manual_seed(0)
    consistency = ConsistencyParams(**distillation.pop("consistency", {}))
    rows = DistillationParams(**{"weight": 0.0, **distillation})
    loss = LossParams(distillation=rows, consistency=consistency, grounding_weight=1.0)
    return Distillation(encoder, GroundingHeads(encoder.dim, 12, 8), loss).eval()


@pytest.fixture(scope="module")
def features() -> torch.Tensor:
    """Features of images, of captions, of their siblings, and of a text teacher for both."""
    return torch.randn(5, len(SENTENCES), 12, generator=torch.Generator().manual_seed(1))


def rows_of(target: str, features: torch.Tensor) -> torch.Tensor:
    """What the student's rows are pulled towards, from the definition."""
    v, t, s, a, b = F.normalize(features, dim=-1)
    named = {"caption": t @ s.T, "image": v @ v.T, "cross-modal": t @ v.T, "text": a @ b.T}
    named["mean"] = (named["caption"] + named["image"] + named["cross-modal"]) / 3
    return named[target]


@pytest.mark.parametrize("target", ["caption", "image", "cross-modal", "mean", "text"])
@pytest.mark.parametrize("space", ["sentence", "head"])
@pytest.mark.parametrize("kind", ["kl", "listmle+kl"])
def test_sentences_are_pulled_towards_the_rows_of_the_target(
    encoder, features, target, space, kind
):
    setting = {"temperature": 0.1, "teacher_temperature": 0.3}
    model = build(encoder, weight=0.5, target=target, space=space, kind=kind, **setting)
    v, t, s, a, b = features
    views = model.encode_views([encoder.tokenize(SENTENCES), encoder.tokenize(SENTENCES[::-1])])
    loss = model.loss_of_views(views, [TeacherBatch(v, t), TeacherBatch(v, s)], [a, b])
    first, second = map(model.heads.text, views) if space == "head" else views
    seen = cosines(first, second).detach().double().numpy()
    teacher = rows_of(target, features).double().numpy()
    expected = sum(by_hand(seen, teacher, kind=one, **setting) for one in kind.split("+"))
    assert float(loss.distillation.detach()) == pytest.approx(expected, rel=1e-4)
    without = loss.text + loss.image + loss.caption
    torch.testing.assert_close(loss.total, without + 0.5 * loss.distillation)


def test_text_batches_have_rows_only_where_there_is_a_text_teacher(encoder, features):
    model = build(encoder, weight=2.0)
    tokens = [encoder.tokenize(SENTENCES)] * 2
    alone, taught = model(tokens), model(tokens, text=[features[3]] * 2)
    assert alone.distillation is None
    torch.testing.assert_close(alone.total, alone.text)
    torch.testing.assert_close(taught.total, taught.text + 2 * taught.distillation)
    text_only = build(encoder, weight=2.0, target="text")
    assert text_only(tokens, [TeacherBatch(*features[:2])] * 2).distillation is None


def test_caption_to_image_rows_follow_both_sides_of_the_teacher(encoder, features):
    model = build(encoder, cross_weight=0.5, temperature=0.45, teacher_temperature=0.5)
    v, t, *_ = features
    loss = model([encoder.tokenize(SENTENCES)] * 2, [TeacherBatch(v, t)] * 2)
    h = model.encoder(encoder.tokenize(SENTENCES))
    seen = (model.heads.ground_sentences(h) @ model.heads.ground_images(v).T).detach().double()
    v, t = F.normalize(v.double(), dim=-1), F.normalize(t.double(), dim=-1)
    setting = {"kind": "kl", "temperature": 0.45, "teacher_temperature": 0.5}
    expected = by_hand(seen.numpy(), (t @ t.T).numpy(), **setting)
    expected += by_hand(seen.T.numpy(), (v @ v.T).numpy(), **setting)
    assert float(loss.cross_distillation.detach()) == pytest.approx(expected, rel=1e-4)
    without = loss.text + loss.image + loss.caption
    torch.testing.assert_close(loss.total, without + 0.5 * loss.cross_distillation)


@pytest.mark.parametrize("kind", ["views", "pairs"])
def test_consistency_is_added_with_its_weight(encoder, features, kind):
    model = build(encoder, consistency={"weight": 0.7, "kind": kind})
    v, t, *_ = features
    tokens = [encoder.tokenize(SENTENCES), encoder.tokenize(SENTENCES[::-1])]
    views = model.encode_views(tokens)
    loss = model.loss_of_views(views, [TeacherBatch(v, t)] * 2)
    if kind == "views":
        heads = map(model.heads.text, views)
        expected = view_divergence(cosines(*heads), temperature=0.05)
    else:
        grounded = [model.heads.ground_sentences(view) for view in views]
        parts = [pair_consistency(one, model.heads.ground_images(v)) for one in grounded]
        expected = torch.stack(parts).mean()
    torch.testing.assert_close(loss.consistency, expected)
    without = loss.text + loss.image + loss.caption
    torch.testing.assert_close(loss.total, without + 0.7 * loss.consistency)
    text = model(tokens)
    assert (text.consistency is not None) == (kind == "views")


def test_three_views_are_compared_with_the_first(encoder, features):
    model = build(encoder, weight=1.0)
    v, t, s, *_ = features
    tokens = [encoder.tokenize(some) for some in (SENTENCES, SENTENCES, SENTENCES[::-1])]
    views = model.encode_views(tokens)
    loss = model.loss_of_views(views, [TeacherBatch(v, t)] * 2 + [TeacherBatch(v, s)])
    z = [model.heads.text(view) for view in views]
    text = [simcse_loss(z[0], other, temperature=0.05) for other in z[1:]]
    torch.testing.assert_close(loss.text, torch.stack(text).mean())
    setting = {"temperature": 0.05, "teacher_temperature": 0.05}
    v, t, s = F.normalize(features[:3], dim=-1)
    rows = [
        distillation_loss(cosines(views[0], view), teacher, **setting)
        for view, teacher in ((views[1], t @ t.T), (views[2], t @ s.T))
    ]
    torch.testing.assert_close(loss.distillation, torch.stack(rows).mean())


@pytest.mark.parametrize("pair_every", [1, 10**9])
def test_a_step_reads_the_text_teachers_rows_of_its_sentences(data, monkeypatch, pair_every):
    """Of captions in a batch of pairs, of sentences in a batch of text."""
    batches = []

    def look(model, batch, **settings):
        batches.append(batch)
        return add_gradients(model, batch, **settings)

    monkeypatch.setattr("pipeline.train.loop.add_gradients", look)
    rng, pairs = np.random.default_rng(0), data.pairs
    of_captions, of_sentences = (
        rng.standard_normal((size, 4)).astype(np.float16)
        for size in (len(pairs.features.captions), len(data.sentences))
    )
    features = replace(pairs.features, caption_text=of_captions, sentence_text=of_sentences)
    taught = TrainingData(data.sentences, replace(pairs, features=features))
    changes = {
        "loss": {"distillation": {"weight": 1.0}},
        "train": {"objective": "simcse", "steps": 1, "pair_every": pair_every},
    }
    params = Params.model_validate(merge(merge(read_default_params(), TINY), changes))
    run_params = RunParams(params.student, params.loss, params.train)
    metrics = TrainingRun(taught, run_params, 0).train(lambda _: {"sts_dev": 0.0})
    assert "loss_distillation" in {name for _, name, _ in metrics.curves}
    if pair_every == 1:
        rows = next(pair_stream(pairs, np.zeros(len(pairs), np.int64), run_params, 0))
        expected = of_captions[pairs.caption_rows[rows]]
    else:
        lengths = np.zeros(len(data.sentences), np.int64)
        expected = of_sentences[next(text_stream(lengths, params.train, 0))]
    for view in batches[0].text:
        torch.testing.assert_close(view, torch.from_numpy(expected).float())
