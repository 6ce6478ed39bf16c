"""The noise filter: pairs that the teacher finds too similar are not used as negatives."""

from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from pipeline.params.loss import FilterParams, Similarity


@dataclass(frozen=True)
class TeacherScores:
    """Similarities in the teacher's space; row i, column j are samples i and j."""

    image: Float[Tensor, "batch batch"]
    """v_i with v_j"""
    caption: Float[Tensor, "batch batch"]
    """t_i with t_j"""
    caption_to_image: Float[Tensor, "batch batch"]
    """t_i with v_j"""

    def by_name(self) -> dict[Similarity, Float[Tensor, "batch batch"]]:
        """The scores by what `loss.filter.similarity` calls them."""
        named = (self.caption_to_image, self.image, self.caption)
        return dict(zip(get_args(Similarity), named, strict=True))


@dataclass(frozen=True)
class Keep:
    """Which negatives stay in the denominators of the two grounded losses."""

    image: Bool[Tensor, "batch batch"]
    caption: Bool[Tensor, "batch batch"]

    def masked_share(self) -> Float[Tensor, ""]:
        """Share of negatives that were removed, over both losses, 0 to 1."""
        size = len(self.image)
        removed = (~self.image).sum() + (~self.caption).sum()
        return removed / (2 * size * (size - 1))


def teacher_cosines(
    images: Float[Tensor, "batch teacher"], captions: Float[Tensor, "batch teacher"]
) -> TeacherScores:
    """The cosines of a batch, from features of any scale."""
    return teacher_dots(F.normalize(images.float(), dim=-1), F.normalize(captions.float(), dim=-1))


def teacher_dots(
    images: Float[Tensor, "batch teacher"], captions: Float[Tensor, "batch teacher"]
) -> TeacherScores:
    """The dot products of a batch, as the released code scores features as they come.

    Float32 also under autocast, which would compare bf16 products with the filter's threshold.
    """
    v, t = images.float(), captions.float()
    with torch.autocast(v.device.type, enabled=False):
        return TeacherScores(image=v @ v.T, caption=t @ t.T, caption_to_image=t @ v.T)


def filter_negatives(
    images: Float[Tensor, "batch teacher"],
    captions: Float[Tensor, "batch teacher"],
    params: FilterParams,
    cosines: TeacherScores | None = None,
) -> Keep | None:
    """Decide which negatives stay; None where the filter is off.

    With `cross-modal`, image negatives are judged by caption i to image j and caption negatives
    by image i to caption j, as the released code does; otherwise both by the one similarity.

    Args:
        images: (B, D_teacher), as the teacher gives them.
        captions: (B, D_teacher), likewise.
        params: what is removed.
        cosines: `teacher_cosines` of the batch, where they are known already.
    """
    if params.kind == "off":
        return None
    if params.kind == "dot":
        scored = teacher_dots(images, captions)
    else:
        scored = cosines or teacher_cosines(images, captions)
    score = scored.by_name()[params.similarity]
    return Keep(image=_keep(score, params), caption=_keep(score.T, params))


def filter_limit(scores: Float[Tensor, " pairs"], params: FilterParams) -> Float[Tensor, ""]:
    """The score that separates what stays from what goes, given all scores of negatives."""
    if params.kind != "percentile":
        return torch.full((), float(params.threshold), device=scores.device)
    rank = round(params.threshold / 100 * (len(scores) - 1))
    return scores.kthvalue(rank + 1).values  # torch.quantile takes 2^24 values at most


def passes(
    scores: Float[Tensor, "*pairs"], limit: Float[Tensor, ""], params: FilterParams
) -> Bool[Tensor, "*pairs"]:
    """Which scores stay negatives."""
    return scores <= limit if params.drop == "above" else scores >= limit


def _keep(score: Float[Tensor, "batch batch"], params: FilterParams) -> Bool[Tensor, "batch batch"]:
    diagonal = torch.eye(len(score), dtype=torch.bool, device=score.device)
    limit = filter_limit(_off_diagonal(score), params)
    return passes(score, limit, params) | diagonal


def _off_diagonal(square: Float[Tensor, "batch batch"]) -> Float[Tensor, " pairs"]:
    """`square[~eye]`, by shapes alone: behind a mask the host would wait for the count of rows."""
    size = len(square)
    return square.flatten()[1:].view(size - 1, size + 1)[:, :-1].flatten()
