"""The losses, recomputed in float64 through acos, pair by pair."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from pipeline.train.losses import adap_acse, adap_acse_loss, applied_margins, simcse_loss
from pipeline.train.noise import teacher_cosines

sizes = st.integers(2, 7)
seeds = st.integers(0, 2**32 - 1)
margins = st.floats(0, 1.5)
temperatures = st.floats(0.02, 2)


def draw_batch(size: int, seed: int, dim: int = 5) -> tuple[torch.Tensor, ...]:
    rng = np.random.default_rng(seed)
    anchors, candidates, features = rng.standard_normal((3, size, dim))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return tuple(torch.from_numpy(x).float() for x in (anchors, candidates, features @ features.T))


def reference_loss(
    anchors, candidates, teacher, *, margin, temperature, keep=None, gate="margin"
) -> float:
    """The definition, in plain Python floats: angles, one pair at a time."""
    a, c = anchors.double().tolist(), candidates.double().tolist()
    total = 0.0
    for i in range(len(a)):
        logits = []
        for j in range(len(c)):
            dot = sum(x * y for x, y in zip(a[i], c[j], strict=True))
            norms = math.sqrt(sum(x * x for x in a[i])) * math.sqrt(sum(x * x for x in c[j]))
            theta = math.acos(max(-1.0, min(1.0, dot / norms)))
            delta = abs(1 - float(teacher[i][j]))
            if i != j and keep is not None and not keep[i][j]:
                logits.append(-math.inf)
            elif i != j and theta > margin * (delta if gate == "shift" else 1):
                logits.append(math.cos(theta - margin * delta) / temperature)
            else:
                logits.append(math.cos(theta) / temperature)
        top = max(logits)
        total += top + math.log(sum(math.exp(x - top) for x in logits)) - logits[i]
    return total / len(a)


@given(sizes, seeds, margins, temperatures, st.sampled_from(["margin", "shift"]))
def test_adap_acse_is_its_definition(size, seed, margin, temperature, gate):
    anchors, candidates, teacher = draw_batch(size, seed)
    keep = torch.from_numpy(np.random.default_rng(seed).random((size, size)) > 0.3)
    for mask in (None, keep):
        setting = {"margin": margin, "temperature": temperature, "keep": mask, "gate": gate}
        loss = adap_acse_loss(anchors, candidates, teacher, **setting)
        expected = reference_loss(anchors, candidates, teacher, **setting)
        assert float(loss) == pytest.approx(expected, rel=2e-4, abs=2e-4)


@given(sizes, seeds, margins, temperatures)
def test_simcse_is_a_fixed_margin(size, seed, margin, temperature):
    first, second, _ = draw_batch(size, seed)
    expected = reference_loss(
        first, second, torch.zeros(size, size), margin=margin, temperature=temperature
    )
    loss = simcse_loss(first, second, temperature=temperature, margin=margin)
    assert float(loss) == pytest.approx(expected, rel=2e-4, abs=2e-4)


@given(sizes, seeds)
def test_without_margin_it_is_info_nce(size, seed):
    anchors, candidates, teacher = draw_batch(size, seed)
    cosines = F.cosine_similarity(anchors[:, None], candidates[None], dim=-1)
    expected = F.cross_entropy(cosines / 0.05, torch.arange(size))
    loss = adap_acse_loss(anchors, candidates, teacher, margin=0.0, temperature=0.05)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)


@given(sizes, seeds, st.floats(0.1, 100))
def test_scale_and_order_do_not_matter(size, seed, scale):
    anchors, candidates, teacher = draw_batch(size, seed)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(size))
    loss = adap_acse_loss(anchors, candidates, teacher, margin=0.2, temperature=0.1)
    changed = adap_acse_loss(
        anchors[order] * scale,
        candidates[order] / scale,
        teacher[order][:, order],
        margin=0.2,
        temperature=0.1,
    )
    torch.testing.assert_close(loss, changed, rtol=1e-4, atol=1e-5)


def test_more_margin_makes_unlike_negatives_harder():
    anchors, candidates, teacher = draw_batch(6, 0)
    losses = [
        float(adap_acse_loss(anchors, candidates, teacher, margin=m, temperature=0.05))
        for m in (0.0, 0.1, 0.2)
    ]
    assert losses == sorted(losses)
    assert losses[0] < losses[-1]


def test_negatives_within_the_margin_keep_their_angle():
    """theta = 0.1 is not above the margin of 0.2, so the teacher's view does not count."""
    angles = torch.tensor([0.0, 0.1])
    points = torch.stack([angles.cos(), angles.sin()], dim=1)
    losses = [
        adap_acse_loss(points, points, torch.full((2, 2), s), margin=0.2, temperature=0.05)
        for s in (0.0, 1.0)
    ]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_duplicates_have_finite_gradients(dtype):
    points = torch.ones(4, 3, dtype=dtype, requires_grad=True)
    loss = adap_acse_loss(points, points, torch.ones(4, 4), margin=0.0, temperature=0.05)
    shifted = adap_acse_loss(points, points, torch.zeros(4, 4), margin=0.15, temperature=0.05)
    (loss + shifted).backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(points.grad).all()


@pytest.mark.parametrize("gate", ["margin", "shift"])
@pytest.mark.parametrize("seed", range(4))
def test_gradients_are_those_of_finite_differences(gate, seed):
    anchors, candidates, teacher = (x.double() for x in draw_batch(4, seed))
    keep = torch.from_numpy(np.random.default_rng(seed).random((4, 4)) > 0.3)
    assert torch.autograd.gradcheck(
        lambda a, c: adap_acse_loss(
            a, c, teacher, margin=0.15, temperature=0.5, gate=gate, keep=keep
        ),
        (anchors.requires_grad_(), candidates.requires_grad_()),
    )


def test_the_gates_differ_between_the_shift_and_the_margin():
    """theta = 0.15 lies above m * Delta = 0.1 and below m = 0.2."""
    angles = torch.tensor([0.0, 0.15])
    points = torch.stack([angles.cos(), angles.sin()], dim=1)
    teacher = torch.full((2, 2), 0.5)
    cosine = points @ points.T
    for gate, expected in (("margin", 0.0), ("shift", 0.1)):
        shift = applied_margins(cosine, teacher, margin=0.2, gate=gate)
        torch.testing.assert_close(shift, expected * (1 - torch.eye(2)))


@pytest.mark.parametrize("gate", ["margin", "shift"])
def test_an_angle_of_just_the_margin_is_not_moved(gate):
    cosine = torch.tensor(0.2).cos().repeat(2, 2)
    teacher = torch.zeros(2, 2)
    assert not applied_margins(cosine, teacher, margin=0.2, gate=gate).any()
    below = applied_margins(cosine.nextafter(teacher), teacher, margin=0.2, gate=gate)
    torch.testing.assert_close(below, 0.2 * (1 - torch.eye(2)))


def test_the_loss_comes_with_the_margins_that_it_applied():
    """The gate is that of the margin where nothing is said; at 1.2 some pair is within it."""
    anchors, candidates, teacher = draw_batch(6, 0)
    loss, margins = adap_acse(anchors, candidates, teacher, margin=1.2, temperature=0.1)
    cosine = F.cosine_similarity(anchors[:, None], candidates[None], dim=-1)
    is_open = (cosine.acos() > 1.2) & ~torch.eye(6, dtype=torch.bool)
    assert 0 < int(is_open.sum()) < 30
    torch.testing.assert_close(margins, 1.2 * (1 - teacher).abs() * is_open)
    assert float(loss) == pytest.approx(
        reference_loss(anchors, candidates, teacher, margin=1.2, temperature=0.1), rel=2e-4
    )


def test_margins_have_the_precision_of_the_students_cosines():
    cosine, teacher = torch.zeros(2, 2, dtype=torch.float64), torch.full((2, 2), 0.1)
    margins = applied_margins(cosine, teacher.bfloat16(), margin=0.2, gate="margin")
    expected = 0.2 * (1 - float(teacher.bfloat16()[0, 1]))
    assert margins.dtype == torch.float64
    assert float(margins[0, 1]) == pytest.approx(expected, rel=1e-15)


@given(sizes, seeds, st.floats(0.1, 50))
def test_the_scale_of_teacher_features_does_not_matter(size, seed, scale):
    rng = np.random.default_rng(seed)
    images, captions = (torch.from_numpy(x).float() for x in rng.standard_normal((2, size, 5)))
    one, other = (
        teacher_cosines(images, captions),
        teacher_cosines(images * scale, captions / scale),
    )
    for name, values in one.by_name().items():
        torch.testing.assert_close(values, other.by_name()[name], rtol=1e-4, atol=1e-5)


def test_autocast_does_not_reach_the_similarities():
    """bf16 is for the forward pass: its cosines near 1 are 2^-8 apart."""
    torch.manual_seed(0)
    anchors = torch.randn(8, 16)
    candidates = anchors + 0.05 * torch.randn(8, 16)
    teacher = teacher_cosines(anchors, candidates)
    settings = {"margin": 0.15, "temperature": 0.05}
    plain = adap_acse_loss(anchors, candidates, teacher.caption, **settings)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.mm(anchors, candidates.T).dtype == torch.bfloat16  # autocast is on
        cast = teacher_cosines(anchors, candidates)
        loss = adap_acse_loss(anchors, candidates, cast.caption, **settings)
    for name, scores in vars(teacher).items():
        assert torch.equal(getattr(cast, name), scores), name
    assert torch.equal(loss, plain)
