"""The family of methods: the loss that each preset gives is the published formula."""

import math

import pytest
import torch
from torch.nn import functional as F

from pipeline.features.teacher_rows import TeacherBatch
from pipeline.params.changes import apply_changes
from pipeline.params.presets import Method, read_preset
from pipeline.params.schema import Params
from pipeline.student.encoder import GroundingHeads, SentenceEncoder
from pipeline.train.objective import Distillation, StepLoss
from pipeline.train.run_params import RunParams
from tests.conftest import TINY, read_default_params

FIRST = ["a red circle", "a blue square above a green star", "two small circles", "a star"]
SECOND = ["red circle", "a green star below a blue square", "two circles", "one star"]
DIM = 12
TAU = 0.05


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder.load(TINY["student"]["encoder"], "cls").eval()


class World:
    """One batch under a preset: what the formulas are written with."""

    def __init__(self, encoder: SentenceEncoder, method: Method) -> None:
        torch.manual_seed(0)
        values = apply_changes(read_default_params(), read_preset("demo", method))
        self.params = Params.model_validate(values)
        run = RunParams(self.params.student, self.params.loss, self.params.train)
        heads = GroundingHeads(encoder.dim, DIM, 8)
        self.model = Distillation(encoder, heads, run.loss).eval()
        generator = torch.Generator().manual_seed(1)
        features = torch.randn(3, len(FIRST), DIM, generator=generator)
        self.images, self.captions, self.text = features
        h = [self.model.encoder(encoder.tokenize(some)) for some in (FIRST, SECOND)]
        self.z = [F.normalize(heads.text(one), dim=-1) for one in h]
        self.p = [heads.ground_sentences(one) for one in h]
        self.a, self.b = heads.ground_images(self.images), heads.ground_captions(self.captions)
        self.v, self.t, self.u = (F.normalize(one, dim=-1) for one in features)

    def loss(self, *, pairs: bool) -> StepLoss:
        """As training computes it; both views have the features of one caption."""
        tokens = [self.model.encoder.tokenize(some, 32) for some in (FIRST, SECOND)]
        width = max(one["input_ids"].shape[1] for one in tokens)
        padded = [
            {key: F.pad(value, (0, width - value.shape[1])) for key, value in one.items()}
            for one in tokens
        ]
        teacher = [TeacherBatch(self.images, self.captions)] * 2 if pairs else None
        return self.model(padded, teacher, [self.text] * 2)


def contrast(anchors, candidates, margin=0.0, alpha=None, keep=None) -> torch.Tensor:
    """AdapACSE in its acos form; without margin InfoNCE."""
    theta = (anchors @ candidates.T).clamp(-1, 1).acos()
    eye = torch.eye(len(theta), dtype=torch.bool)
    delta = 1.0 if alpha is None else (1 - alpha).abs()
    shifted = torch.where((theta > margin) & ~eye, theta - margin * delta, theta)
    logits = shifted.cos() / TAU
    if keep is not None:
        logits = logits.masked_fill(~(keep | eye), -math.inf)
    return -logits.log_softmax(-1).diagonal().mean()


def both(views, function) -> torch.Tensor:
    return (function(views[0]) + function(views[1])) / 2


def without_diagonal(square) -> torch.Tensor:
    return torch.stack([torch.cat([row[:i], row[i + 1 :]]) for i, row in enumerate(square)])


def kl(student, teacher, student_tau, teacher_tau) -> torch.Tensor:
    p = (without_diagonal(teacher) / teacher_tau).softmax(-1)
    q = (without_diagonal(student) / student_tau).softmax(-1)
    return (p * (p / q).log()).sum(-1).mean()


def listmle(student, teacher, tau) -> torch.Tensor:
    losses = []
    for s, t in zip(without_diagonal(student), without_diagonal(teacher), strict=True):
        ranked = s[t.argsort(descending=True)] / tau
        losses.append(sum(ranked[k:].logsumexp(0) - ranked[k] for k in range(len(ranked))))
    return torch.stack(losses).mean()


def simcse(w: World) -> torch.Tensor:
    return contrast(*w.z)


def mcse(w: World) -> torch.Tensor:
    return contrast(*w.z) + 0.01 * both(w.p, lambda p: contrast(p, w.a))


def released(w: World) -> torch.Tensor:
    """A margin on the text loss too; image-image and caption-caption cosines; no filter."""
    image = both(w.p, lambda p: contrast(p, w.a, 0.15, w.v @ w.v.T))
    caption = both(w.p, lambda p: contrast(p, w.b, 0.15, w.t @ w.t.T))
    return contrast(*w.z, 0.15) + 0.01 * (image + caption)


def paper(w: World) -> torch.Tensor:
    """Caption-to-image cosines for the image loss, caption-to-caption ones for the caption loss."""
    cross, text = w.t @ w.v.T, w.t @ w.t.T
    image = both(w.p, lambda p: contrast(p, w.a, 0.125, cross, cross <= 0.9))
    caption = both(w.p, lambda p: contrast(p, w.b, 0.125, text, text <= 0.9))
    return contrast(*w.z) + 0.01 * (image + caption)


def dalr(w: World) -> torch.Tensor:
    taught, seen = w.u @ w.u.T, w.z[0] @ w.z[1].T
    cross = both(
        w.p,
        lambda p: kl(p @ w.a.T, w.t @ w.t.T, 0.45, 0.5) + kl(w.a @ p.T, w.v @ w.v.T, 0.45, 0.5),
    )
    shuffled = w.a.roll(1, 0)
    consistency = both(
        w.p,
        lambda p: torch.cat(
            [1 - (p * w.a).sum(-1), ((p * shuffled).sum(-1) - 0.2).clamp(min=0)]
        ).mean(),
    )
    ranking = listmle(seen, taught, 0.45) + kl(seen, taught, 0.45, 0.5)
    return mcse(w) + 0.1 * (consistency + cross) + 0.2 * ranking


def rankcse(w: World) -> torch.Tensor:
    seen = w.z[0] @ w.z[1].T
    p, q = (seen / TAU).softmax(-1), (seen.T / TAU).softmax(-1)
    middle = (p + q) / 2
    agreement = ((p * (p / middle).log() + q * (q / middle).log()) / 2).sum(-1).mean()
    return contrast(*w.z) + agreement + listmle(seen, w.u @ w.u.T, 0.05)


FORMULAS = {
    "simcse": simcse,
    "mcse": mcse,
    "released": released,
    "paper": paper,
    "dalr": dalr,
    "rankcse": rankcse,
}


@pytest.mark.parametrize("method", FORMULAS)
def test_the_loss_of_a_preset_is_the_published_formula(method, encoder):
    world = World(encoder, method)
    loss = world.loss(pairs=True).total
    assert float(loss.detach()) == pytest.approx(float(FORMULAS[method](world).detach()), rel=1e-4)


def test_text_batches_of_the_presets_have_what_needs_no_pictures(encoder):
    for method in ("simcse", "mcse", "paper"):
        world = World(encoder, method)
        text = world.loss(pairs=False).total
        assert float(text.detach()) == pytest.approx(float(simcse(world).detach()), rel=1e-4)
    world = World(encoder, "rankcse")
    text = world.loss(pairs=False).total
    assert float(text.detach()) == pytest.approx(float(rankcse(world).detach()), rel=1e-4)
