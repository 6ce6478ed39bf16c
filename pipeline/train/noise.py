"""The noise filter: pairs that the teacher finds too similar are not used as negatives."""

from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from pipeline.params.loss import FilterParams, Similarity, Term, TermSimilarity
from pipeline.train.losses import off_diagonal


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

    def of_term(self, term: Term, similarity: TermSimilarity) -> Float[Tensor, "batch batch"]:
        """The scores that a grounded loss goes by.

        Cross-modal ones of the caption loss have images as rows, as the released code has them.
        """
        name: Similarity = getattr(similarity, term)
        scores = self.by_name()[name]
        return scores.T if name == "cross-modal" and term == "caption" else scores


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
    images: Float[Tensor, "batch teacher"],
    captions: Float[Tensor, "batch teacher"],
    siblings: Float[Tensor, "batch teacher"] | None = None,
) -> TeacherScores:
    """The cosines of a batch, from features of any scale; see `teacher_dots`."""
    sides = (images, captions, captions if siblings is None else siblings)
    return teacher_dots(*(F.normalize(side.float(), dim=-1) for side in sides))


def teacher_dots(
    images: Float[Tensor, "batch teacher"],
    captions: Float[Tensor, "batch teacher"],
    siblings: Float[Tensor, "batch teacher"] | None = None,
) -> TeacherScores:
    """The dot products of a batch, as the released code scores features as they come.

    Args:
        images: of the batch.
        captions: of the batch.
        siblings: other captions of the images, which `caption` compares captions with; None: the
            same captions.

    Float32 also under autocast, which would compare bf16 products with the filter's threshold.
    """
    v, t = images.float(), captions.float()
    with torch.autocast(v.device.type, enabled=False):
        other = t if siblings is None else siblings.float()
        return TeacherScores(image=v @ v.T, caption=t @ other.T, caption_to_image=t @ v.T)


def filter_negatives(
    images: Float[Tensor, "batch teacher"],
    captions: Float[Tensor, "batch teacher"],
    params: FilterParams,
    cosines: TeacherScores | None = None,
) -> Keep | None:
    """Decide which negatives stay; None where the filter is off.

    Args:
        images: (B, D_teacher), as the teacher gives them.
        captions: (B, D_teacher), likewise.
        params: what is removed.
        cosines: `teacher_cosines` of the batch, where they are known already.
    """
    if params.kind == "none":
        return None
    if params.kind == "dot":
        scored = teacher_dots(images, captions)
    else:
        scored = cosines or teacher_cosines(images, captions)
    image, caption = (
        _keep(scored.of_term(term, params.similarity), params) for term in get_args(Term)
    )
    return Keep(image, caption)


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
    limit = filter_limit(off_diagonal(score).flatten(), params)
    return passes(score, limit, params) | diagonal
