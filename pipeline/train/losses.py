"""The losses of the method, as pure functions (AdapACSE: arXiv 2403.17486, section 3)."""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from pipeline.params.loss import Gate

RankingKind = Literal["kl", "listnet", "listmle"]

_EPS = 1e-8
"""Floor of sin^2: keeps the gradient finite for duplicates, whose cosine is 1."""

CONSISTENCY_MARGIN = 0.2
"""Cosine of a caption with another image that costs nothing (DALR)."""


def adap_acse(
    anchors: Float[Tensor, "batch dim"],
    candidates: Float[Tensor, "batch dim"],
    teacher_cosine: Float[Tensor, "batch batch"],
    *,
    margin: float,
    temperature: float,
    gate: Gate = "margin",
    keep: Bool[Tensor, "batch batch"] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, "batch batch"]]:
    """Contrastive loss whose negatives get a margin by how unlike the teacher finds them.

        Delta_ij = |1 - teacher_cosine_ij|,  theta_ij = angle(anchor_i, candidate_j)
        logit_ii = cos(theta_ii) / temperature
        logit_ij = cos(theta_ij - margin * Delta_ij) / temperature    where the gate is open
        logit_ij = cos(theta_ij) / temperature                        elsewhere
        loss     = mean_i cross_entropy(logit_i, target = i)

    The shifted cosine is cos(theta) cos(d) + sin(theta) sin(d): the slope of acos is infinite at
    cosine 1 and gives NaN gradients for duplicates in low precision. All is computed in float32
    or wider. `margin` 0 is InfoNCE; `teacher_cosine` 0 is a fixed margin on the negatives.

    Args:
        anchors: (B, D), any scale.
        candidates: (B, D), any scale; row i is the positive of anchor i.
        teacher_cosine: (B, B), similarity of samples i and j.
        margin: radians, 0 to below pi.
        temperature: above 0.
        gate: open where theta_ij > margin (`margin`), or > margin * Delta_ij (`shift`).
        keep: (B, B), False removes a negative from the denominator; the diagonal always stays.

    Returns:
        The scalar loss, and the margins that it applied (`applied_margins`), without gradient.
    """
    cosine = cosines(anchors, candidates)
    shift = applied_margins(cosine, teacher_cosine, margin=margin, gate=gate)
    logits = torch.where(shift > 0, _shift_angles(cosine, shift), cosine) / temperature
    if keep is not None:
        logits = logits.masked_fill(~(keep | _diagonal(logits)), -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device)), shift


def adap_acse_loss(
    anchors: Float[Tensor, "batch dim"],
    candidates: Float[Tensor, "batch dim"],
    teacher_cosine: Float[Tensor, "batch batch"],
    *,
    margin: float,
    temperature: float,
    gate: Gate = "margin",
    keep: Bool[Tensor, "batch batch"] | None = None,
) -> Float[Tensor, ""]:
    """The loss of `adap_acse` alone."""
    loss, _ = adap_acse(
        anchors,
        candidates,
        teacher_cosine,
        margin=margin,
        temperature=temperature,
        gate=gate,
        keep=keep,
    )
    return loss


def applied_margins(
    cosine: Float[Tensor, "batch batch"],
    teacher_cosine: Float[Tensor, "batch batch"],
    *,
    margin: float,
    gate: Gate,
) -> Float[Tensor, "batch batch"]:
    """What `adap_acse` takes from every angle, radians: margin * Delta, or 0 at a closed gate.

    Args:
        cosine: (B, B), of anchors and candidates; no gradient flows through it.
        teacher_cosine: (B, B).
        margin: radians.
        gate: as there.
    """
    shift = margin * (1 - teacher_cosine.to(cosine.dtype)).abs()
    limit = shift if gate == "shift" else torch.full_like(shift, margin)
    is_open = (cosine.detach() < limit.cos()) & ~_diagonal(cosine)
    return shift * is_open


def simcse_loss(
    first: Float[Tensor, "batch dim"],
    second: Float[Tensor, "batch dim"],
    *,
    temperature: float,
    margin: float = 0.0,
) -> Float[Tensor, ""]:
    """SimCSE's loss between two views, with a fixed angular margin on the negatives.

    Args:
        first: (B, D), one view of each sentence.
        second: (B, D), the other; row i is the positive of row i.
        temperature: above 0.
        margin: m1, radians, 0 to below pi; 0 is SimCSE (arXiv 2104.08821, equation 1).

    Returns:
        The scalar loss.
    """
    unlike = torch.zeros(len(first), len(first), device=first.device)
    return adap_acse_loss(first, second, unlike, margin=margin, temperature=temperature)


def distillation_loss(
    student_cosine: Float[Tensor, "batch batch"],
    teacher_cosine: Float[Tensor, "batch batch"],
    *,
    kind: RankingKind = "kl",
    temperature: float = 0.05,
    teacher_temperature: float = 0.05,
) -> Float[Tensor, ""]:
    """How far the student's rows of similarities are from the teacher's, without the diagonals.

        p_i = softmax_j(teacher_ij / teacher_temperature)
        q_i = softmax_j(student_ij / temperature)
        kl       mean_i KL(p_i || q_i)
        listnet  mean_i cross_entropy(p_i, q_i)
        listmle  - mean_i log prod_k exp(s_ik) / sum_{l >= k} exp(s_il)

    s_ik is the student's cosine over the temperature at rank k of the teacher's row, from high to
    low; equal cosines of the teacher rank by column. All is computed in float32 or wider; no
    gradient flows into the teacher's cosines.

    Args:
        student_cosine: (B, B), B at least 2.
        teacher_cosine: (B, B), of the same samples.
        kind: of the loss.
        temperature: divides the student's cosines, above 0.
        teacher_temperature: divides the teacher's, above 0; `listmle` reads only their order.

    Source: RankCSE (arXiv 2305.16726, equations 6 to 9), DALR (arXiv 2506.21096).
    """
    wide = torch.promote_types(student_cosine.dtype, torch.float32)
    student = off_diagonal(student_cosine.to(wide)) / temperature
    teacher = off_diagonal(teacher_cosine.detach().to(wide))
    if kind == "listmle":
        order = teacher.argsort(dim=-1, descending=True, stable=True)
        ranked = student.gather(-1, order)
        rest = ranked.flip(-1).logcumsumexp(-1).flip(-1)
        return (rest - ranked).sum(-1).mean()
    target = (teacher / teacher_temperature).softmax(-1)
    entropy = F.cross_entropy(student, target)
    if kind == "listnet":
        return entropy
    information: Tensor = torch.special.xlogy(target, target).sum(-1).mean()
    return entropy + information


def view_divergence(
    cosine: Float[Tensor, "batch batch"], *, temperature: float
) -> Float[Tensor, ""]:
    """Jensen-Shannon divergence of what two views of each sentence see in the other's batch.

    Args:
        cosine: (B, B), of the first views with the second ones; row i and column i are compared.
        temperature: divides the cosines, above 0.

    Source: RankCSE's consistency (arXiv 2305.16726, equation 4).
    """
    logits = cosine.float() / temperature
    first, second = logits.log_softmax(-1), logits.T.log_softmax(-1)
    middle = torch.logaddexp(first, second) - math.log(2)
    parts = [
        F.kl_div(middle, one, reduction="batchmean", log_target=True) for one in (first, second)
    ]
    return torch.stack(parts).mean()


def pair_consistency(
    sentences: Float[Tensor, "batch dim"], images: Float[Tensor, "batch dim"]
) -> Float[Tensor, ""]:
    """Captions agree with their image (1 - cosine), and with the next one's by at most MARGIN.

    The next image is as good as a shuffled one: batches are in random order.

    Args:
        sentences: (B, D) in the shared space.
        images: (B, D); row i belongs to sentence i.

    Source: DALR's cross-modal consistency (arXiv 2506.21096).
    """
    alike = 1 - F.cosine_similarity(sentences, images)
    unlike = F.cosine_similarity(sentences, images.roll(1, 0)) - CONSISTENCY_MARGIN
    return torch.cat([alike, unlike.clamp(min=0)]).mean()


def off_diagonal(square: Float[Tensor, "batch batch"]) -> Float[Tensor, "batch others"]:
    """The rows without the diagonal, by shapes alone: a mask would make a GPU's host wait."""
    size = len(square)
    return square.flatten()[1:].view(size - 1, size + 1)[:, :-1].reshape(size, size - 1)


def cosines(
    anchors: Float[Tensor, "anchors dim"], candidates: Float[Tensor, "candidates dim"]
) -> Float[Tensor, "anchors candidates"]:
    """Cosines of all anchors with all candidates, in float32 or wider.

    Autocast is left: it would take this matrix product in the low precision of the forward pass,
    whose steps of 2^-8 near cosine 1 are larger than what the margins are about.
    """
    wide = torch.promote_types(anchors.dtype, torch.float32)
    with torch.autocast(anchors.device.type, enabled=False):
        first = F.normalize(anchors.to(wide), dim=-1)
        return first @ F.normalize(candidates.to(wide), dim=-1).T


def _diagonal(square: Float[Tensor, "batch batch"]) -> Bool[Tensor, "batch batch"]:
    return torch.eye(len(square), dtype=torch.bool, device=square.device)


def _shift_angles(
    cosine: Float[Tensor, "batch batch"], shift: Float[Tensor, "batch batch"]
) -> Float[Tensor, "batch batch"]:
    """cos(theta - shift), from cos(theta)."""
    sine = (1 - cosine.square()).clamp(min=_EPS).sqrt()
    return cosine * shift.cos() + sine * shift.sin()
