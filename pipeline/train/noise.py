"""The noise filter: pairs that the teacher finds too similar are no negatives."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from pipeline.params.loss import FilterParams


@dataclass(frozen=True)
class TeacherCosines:
    """Similarities of one batch in the teacher's space; row i, column j are samples i and j."""

    image: Float[Tensor, "batch batch"]
    """cos(v_i, v_j)"""
    caption: Float[Tensor, "batch batch"]
    """cos(t_i, t_j)"""
    caption_to_image: Float[Tensor, "batch batch"]
    """cos(t_i, v_j)"""


@dataclass(frozen=True)
class Keep:
    """Which negatives stay in the denominators of the two grounded losses."""

    image: Bool[Tensor, "batch batch"]
    caption: Bool[Tensor, "batch batch"]

    def masked_share(self) -> Float[Tensor, ""]:
        """Share of off-diagonal pairs that were removed, over both losses, 0 to 1."""
        size = len(self.image)
        removed = (~self.image).sum() + (~self.caption).sum()
        return removed / (2 * size * (size - 1))


def teacher_cosines(
    images: Float[Tensor, "batch teacher"], captions: Float[Tensor, "batch teacher"]
) -> TeacherCosines:
    """The similarities of a batch, from features of any scale."""
    v, t = F.normalize(images.float(), dim=-1), F.normalize(captions.float(), dim=-1)
    return TeacherCosines(image=v @ v.T, caption=t @ t.T, caption_to_image=t @ v.T)


def filter_negatives(cosines: TeacherCosines, params: FilterParams) -> Keep | None:
    """Decide which negatives stay; None where the filter is off.

    With `cross-modal`, image negatives are judged by caption i to image j and caption negatives
    by image i to caption j, as the released code does; otherwise both by the one similarity.
    """
    if params.kind == "off":
        return None
    if params.similarity == "cross-modal":
        scores = (cosines.caption_to_image, cosines.caption_to_image.T)
    else:
        one = cosines.image if params.similarity == "image" else cosines.caption
        scores = (one, one)
    return Keep(*(_keep(score, params) for score in scores))


def _keep(score: Float[Tensor, "batch batch"], params: FilterParams) -> Bool[Tensor, "batch batch"]:
    diagonal = torch.eye(len(score), dtype=torch.bool, device=score.device)
    limit = torch.as_tensor(params.threshold, device=score.device)
    if params.kind == "percentile":
        negatives = score[~diagonal]
        rank = round(params.threshold / 100 * (len(negatives) - 1))
        limit = negatives.kthvalue(rank + 1).values  # torch.quantile takes 2^24 values at most
    return (score <= limit) | diagonal
