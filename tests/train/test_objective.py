"""Every variant of the objective, put together again from the losses alone."""

import itertools

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.core.errors import ParamsError
from pipeline.features.teacher_rows import TeacherBatch
from pipeline.params.schema import Params
from pipeline.student.encoder import GroundingHeads, SentenceEncoder
from pipeline.train.losses import adap_acse_loss, simcse_loss
from pipeline.train.objective import Distillation, build_model
from pipeline.train.run_params import RunParams
from tests.conftest import TINY, merge, read_default_params

SENTENCES = ["a red circle", "a blue square above a green star", "two small circles", "a star"]
DIM = 12


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder.load(TINY["student"]["encoder"], "mean").eval()  # no dropout: one view


@pytest.fixture(scope="module")
def teacher() -> TeacherBatch:
    generator = torch.Generator().manual_seed(0)
    images, captions = torch.randn(2, len(SENTENCES), DIM, generator=generator)
    return TeacherBatch(images * 19, captions)


def run_params(objective="kdmcse", student=None, **loss: object) -> RunParams:
    changes = {"train": {"objective": objective}, "student": student or {}, "loss": loss}
    params = Params.model_validate(merge(merge(read_default_params(), TINY), changes))
    return RunParams(params.student, params.loss, params.train)


def build(encoder, objective="kdmcse", matryoshka=(), **loss) -> Distillation:
    torch.manual_seed(0)
    heads = GroundingHeads(encoder.dim, DIM, 8)
    return Distillation(encoder, heads, run_params(objective, **loss).loss, matryoshka).eval()


def expected_terms(model: Distillation, teacher, **setting) -> dict[str, torch.Tensor]:
    """The text loss and both grounded ones, by their definitions."""
    h = model.encoder(model.encoder.tokenize(SENTENCES))
    images, captions, _ = teacher
    v, t = (F.normalize(x, dim=1) for x in teacher[:2])
    adaptive = setting.pop("adaptive", True)
    p = model.heads.ground_sentences(h)
    z = model.heads.text(h)
    targets = {
        "image": (model.heads.ground_images(images), v @ v.T),
        "caption": (model.heads.ground_captions(captions), t @ t.T),
    }
    grounded = {
        name: adap_acse_loss(p, target, alpha if adaptive else alpha * 0, **setting)
        for name, (target, alpha) in targets.items()
    }
    return {"text": simcse_loss(z, z, temperature=setting["temperature"]), **grounded}


@pytest.mark.parametrize(
    ("kind", "gate", "terms"),
    list(
        itertools.product(
            ["none", "fixed", "adaptive"],
            ["margin", "shift"],
            [["image", "caption"], ["caption"], ["image"]],
        )
    ),
)
def test_every_variant_is_the_sum_of_its_terms(encoder, teacher, kind, gate, terms):
    model = build(
        encoder,
        margin=0.3,
        margin_kind=kind,
        gate=gate,
        terms=terms,
        grounding_weight=0.7,
    )
    loss = model([encoder.tokenize(SENTENCES)] * 2, [teacher] * 2)
    expected = expected_terms(
        model,
        teacher,
        margin=0.0 if kind == "none" else 0.3,
        temperature=0.05,
        gate=gate,
        adaptive=kind == "adaptive",
    )
    grounded = sum(expected[term] for term in terms)
    torch.testing.assert_close(loss.total, expected["text"] + 0.7 * grounded)
    for term in ("image", "caption"):
        assert (getattr(loss, term) is not None) == (term in terms)
    assert (float(loss.applied_margin) > 0) == (kind != "none")


@pytest.mark.parametrize(("kind", "threshold"), [("cosine", 0.1), ("percentile", 80.0)])
def test_every_term_is_told_as_it_is_with_filter_and_margins(encoder, teacher, kind, threshold):
    """Both losses have a filter of their own, the text loss its own margin."""
    noise = {
        "kind": kind,
        "similarity": {"image": "cross-modal", "caption": "cross-modal"},
        "drop": "above",
        "threshold": threshold,
    }
    setting = {
        "margin": 1.2,
        "gate": "shift",
        "text_margin": 0.2,
        "grounding_weight": 0.7,
        "filter": noise,
    }
    model = build(encoder, **setting, terms=["image", "caption"])
    tokens = encoder.tokenize(SENTENCES)
    loss = model([tokens] * 2, [teacher] * 2)
    v, t = (F.normalize(x, dim=1) for x in teacher[:2])
    off = ~torch.eye(len(v), dtype=torch.bool)
    negatives = (t @ v.T)[off].sort().values
    limit = 0.1 if kind == "cosine" else negatives[round(0.8 * (len(negatives) - 1))]
    keeps = {"image": t @ v.T <= limit, "caption": v @ t.T <= limit}
    assert not torch.equal(keeps["image"] & off, keeps["caption"] & off)
    removed = sum(int((~keep & off).sum()) for keep in keeps.values())
    assert float(loss.masked_share) == pytest.approx(removed / (2 * int(off.sum())))
    h = encoder(tokens)
    z, p = model.heads.text(h), model.heads.ground_sentences(h)
    sides = {
        "image": (model.heads.ground_images(teacher[0]), v @ v.T),
        "caption": (model.heads.ground_captions(teacher[1]), t @ t.T),
    }
    for name, (target, alpha) in sides.items():
        expected = adap_acse_loss(
            p, target, alpha, margin=1.2, gate="shift", temperature=0.05, keep=keeps[name]
        )
        torch.testing.assert_close(getattr(loss, name), expected)
    torch.testing.assert_close(loss.text, simcse_loss(z, z, temperature=0.05, margin=0.2))
    torch.testing.assert_close(loss.total, loss.text + 0.7 * (loss.image + loss.caption))
    shift = 1.2 * (1 - v @ v.T).abs()
    moved = ((p @ sides["image"][0].T).acos() > shift) & off
    assert 0 < int(moved.sum()) < int(off.sum())
    torch.testing.assert_close(loss.applied_margin, shift[moved].sum() / off.sum())


def test_a_grounded_loss_is_the_mean_over_both_views(encoder, teacher):
    model = build(encoder, terms=["image"], grounding_weight=1.0)
    views = torch.randn(2, len(SENTENCES), encoder.dim, generator=torch.Generator().manual_seed(1))
    first, second = (model.loss_of_views((view, view), [teacher] * 2).image for view in views)
    both = model.loss_of_views((views[0], views[1]), [teacher] * 2)
    torch.testing.assert_close(both.image, (first + second) / 2)
    assert float((first - second).abs().detach()) > 0.01
    z = [model.heads.text(view) for view in views]
    torch.testing.assert_close(both.text, simcse_loss(*z, temperature=0.05))


def test_mcse_is_kdmcse_without_margin_filter_and_captions(encoder, teacher):
    noise = {
        "kind": "percentile",
        "similarity": {"image": "image", "caption": "image"},
        "threshold": 50,
    }
    mcse = build(encoder, "mcse", margin=0.3, text_margin=0.2, filter=noise)
    special = build(encoder, margin_kind="none", terms=["image"])
    batch = [encoder.tokenize(SENTENCES)] * 2, [teacher] * 2
    torch.testing.assert_close(mcse(*batch).total, special(*batch).total)
    assert mcse(*batch).masked_share is None


def test_simcse_reads_no_teacher(encoder, teacher):
    model = build(encoder, "simcse", text_margin=0.2)
    tokens = [encoder.tokenize(SENTENCES)] * 2
    with_teacher, without = model(tokens, [teacher] * 2), model(tokens)
    torch.testing.assert_close(with_teacher.total, without.total)
    torch.testing.assert_close(without.total, expected_terms(model, teacher, margin=0.0,
                                                             temperature=0.05)["text"])  # fmt: skip


def test_two_views_are_one_forward_pass_each_in_the_order_of_the_rows(encoder):
    """Without dropout both are the encoder's vectors."""
    model = build(encoder)
    tokens = encoder.tokenize([*SENTENCES, SENTENCES[0]])
    first, second = model.encode_views([tokens, tokens])
    torch.testing.assert_close(first, encoder(tokens), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(second, encoder(tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", [(32,), (32, 16)])
def test_matryoshka_is_the_mean_over_shortened_vectors(encoder, teacher, sizes):
    tokens = encoder.tokenize(SENTENCES)
    batch = [tokens] * 2, [teacher] * 2
    whole = build(encoder)(*batch)
    model = build(encoder, matryoshka=sizes)
    totals = [whole.total]
    for size in sizes:
        cut = build(encoder)
        h = encoder(tokens) * (torch.arange(encoder.dim) < size)
        cut.encode_views = lambda _, h=h: (h, h)
        totals.append(cut(*batch).total)
    torch.testing.assert_close(model(*batch).total, torch.stack(totals).mean())
    assert len({float(total.detach()) for total in totals}) == 1 + len(sizes)


def test_bf16_gives_finite_float32_losses(encoder, teacher):
    """Duplicates too: two equal sentences, and teacher features that are equal."""
    model = build(encoder, margin=0.15).train()
    images, captions = (x[[0, 0, 1, 2]] for x in teacher[:2])
    tokens = encoder.tokenize([SENTENCES[0], *SENTENCES[:3]])
    with torch.autocast("cpu", torch.bfloat16):
        loss = model([tokens] * 2, [TeacherBatch(images, captions)] * 2)
    loss.total.backward()
    assert loss.total.dtype == torch.float32
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    model.zero_grad()
    model.eval()


@pytest.mark.parametrize("kind", ["none", "cosine", "percentile", "dot"])
def test_a_step_takes_no_product_of_a_batch_twice(encoder, teacher, kind):
    """One of the text loss, one a view and term, three of the teacher; its filter may need others.

    The margin that is reported is the one that the loss applied.
    """
    products = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            result = function(*arguments, **(options or {}))
            if function is torch.ops.aten.mm.default and result.shape == (4, 4):
                products.append(tuple(tuple(one.flatten().tolist()) for one in arguments))
            return result

    model = build(encoder, margin=0.3, filter={"kind": kind, "threshold": 0.5})
    views = model.encode_views([encoder.tokenize(SENTENCES)] * 2)
    views = views[0], views[1] + 0.1 * torch.randn_like(views[1])
    with torch.no_grad(), Count():
        loss = model.loss_of_views(views, [teacher] * 2)
    assert len(products) == 1 + 2 * 2 + 3 * (2 if kind == "dot" else 1)
    assert len(set(products)) == len(products)
    anchors, targets = (
        F.normalize(one.detach().double(), dim=1)
        for one in (model.heads.ground_sentences(views[0]), model.heads.ground_images(teacher[0]))
    )
    v = F.normalize(teacher[0].double(), dim=1)
    angle, shift = (anchors @ targets.T).acos(), 0.3 * (1 - v @ v.T).abs()
    others = ~torch.eye(4, dtype=torch.bool)
    expected = torch.where(angle > 0.3, shift, 0.0)[others].mean()
    torch.testing.assert_close(loss.applied_margin.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_model_has_fresh_heads_of_the_random_state_and_shorter_dimensions():
    params = run_params(student={"matryoshka": [32], "grounding_dim": 8})
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model = build_model(params, DIM)
        states.append(model.heads.image[0].weight)
    assert states[0].shape == (8, DIM)
    assert model.dimensions == (model.encoder.dim, 32)
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    for sizes, is_fine in (([127], True), ([128], False), ([200, 4], False)):
        params = run_params(student={"matryoshka": sizes})
        if is_fine:
            build_model(params, DIM)
            continue
        with pytest.raises(ParamsError, match=f"names {sizes[0]} dimensions.* has 128"):
            build_model(params, DIM)
