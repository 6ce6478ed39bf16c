"""The losses of the method, as pure functions (AdapACSE: arXiv 2403.17486, section 3)."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

_EPS = 1e-8
"""Floor of sin^2: keeps the gradient finite for duplicates, whose cosine is 1."""


def adap_acse_loss(
    anchors: Float[Tensor, "batch dim"],
    candidates: Float[Tensor, "batch dim"],
    teacher_cosine: Float[Tensor, "batch batch"],
    *,
    margin: float,
    temperature: float,
    keep: Bool[Tensor, "batch batch"] | None = None,
) -> Float[Tensor, ""]:
    """Contrastive loss whose negatives get a margin by how unlike the teacher finds them.

        Delta_ij = |1 - teacher_cosine_ij|,  theta_ij = angle(anchor_i, candidate_j)
        logit_ii = cos(theta_ii) / temperature
        logit_ij = cos(theta_ij - margin * Delta_ij) / temperature    where theta_ij > margin
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
        keep: (B, B), False removes a negative from the denominator; the diagonal always stays.

    Returns:
        The scalar loss.
    """
    cosine = _cosines(anchors, candidates)
    diagonal = torch.eye(len(cosine), dtype=torch.bool, device=cosine.device)
    shifted = _shift_angles(cosine, margin * (1 - teacher_cosine.to(cosine.dtype)).abs())
    has_margin = (cosine < math.cos(margin)) & ~diagonal
    logits = torch.where(has_margin, shifted, cosine) / temperature
    if keep is not None:
        logits = logits.masked_fill(~(keep | diagonal), -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


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


def _cosines(
    anchors: Float[Tensor, "batch dim"], candidates: Float[Tensor, "batch dim"]
) -> Float[Tensor, "batch batch"]:
    wide = torch.promote_types(anchors.dtype, torch.float32)
    first = F.normalize(anchors.to(wide), dim=-1)
    return first @ F.normalize(candidates.to(wide), dim=-1).T


def _shift_angles(
    cosine: Float[Tensor, "batch batch"], shift: Float[Tensor, "batch batch"]
) -> Float[Tensor, "batch batch"]:
    """cos(theta - shift), from cos(theta)."""
    sine = (1 - cosine.square()).clamp(min=_EPS).sqrt()
    return cosine * shift.cos() + sine * shift.sin()
