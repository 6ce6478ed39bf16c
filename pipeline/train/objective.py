"""One module for every objective: sentences and teacher features in, loss terms out."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.errors import ParamsError
from pipeline.features.teacher_rows import TeacherBatch
from pipeline.params.loss import DistillationParams, LossParams, Term
from pipeline.student.encoder import GroundingHeads, SentenceEncoder, Tokens
from pipeline.train.losses import (
    RankingKind,
    adap_acse,
    cosines,
    distillation_loss,
    off_diagonal,
    pair_consistency,
    simcse_loss,
    view_divergence,
)
from pipeline.train.noise import Keep, TeacherScores, filter_negatives, teacher_cosines
from pipeline.train.run_params import RunParams

Views = tuple[Float[Tensor, "batch student"], ...]
"""The vectors of a batch's sentences, once a view; the first view is the anchor."""
Square = Float[Tensor, "batch batch"]
Terms = dict[str, list[Float[Tensor, ""]]]
TextRows = Float[Tensor, "batch text"]


@dataclass(frozen=True)
class StepLoss:
    """The total to minimise and its terms, before weighting; scalars."""

    total: Float[Tensor, ""]
    text: Float[Tensor, ""]
    image: Float[Tensor, ""] | None = None
    caption: Float[Tensor, ""] | None = None
    distillation: Float[Tensor, ""] | None = None
    """Of sentence-to-sentence rows."""
    cross_distillation: Float[Tensor, ""] | None = None
    """Of caption-to-image rows."""
    consistency: Float[Tensor, ""] | None = None
    masked_share: Float[Tensor, ""] | None = None
    """Share of negatives that the noise filter removed; None where it is off."""
    applied_margin: Float[Tensor, ""] | None = None
    """Mean margin over all negatives of the first grounded loss, radians; 0 at a closed gate."""


@dataclass(frozen=True, eq=False)
class _Side:
    """What the CLIP teacher says of one view of a batch of pairs."""

    images: Float[Tensor, "batch teacher"]
    captions: Float[Tensor, "batch teacher"]
    scores: TeacherScores
    keep: Keep | None

    @classmethod
    def read(cls, teacher: TeacherBatch, loss: LossParams) -> "_Side":
        images, captions = teacher[:2]
        scores = teacher_cosines(images, captions)
        return cls(
            images, captions, scores, filter_negatives(images, captions, loss.filter, scores)
        )


class Distillation(nn.Module):
    """Encoder and heads under one objective (METHOD, "The losses").

    What compares two views of a sentence is the average over the first view with each other one;
    what compares a view with pictures is the average over all views.

    Args:
        encoder: the sentence encoder.
        heads: its heads.
        loss: which terms count, and their settings.
        matryoshka: shorter embeddings that are trained along. The loss is then the average over
            the whole vector and these, each with zeros behind its dimensions before the heads.
    """

    def __init__(
        self,
        encoder: SentenceEncoder,
        heads: GroundingHeads,
        loss: LossParams,
        matryoshka: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = heads
        self.loss = loss
        self.dimensions = (encoder.dim, *matryoshka)

    @property
    def margin(self) -> float:
        """Of the grounded losses, radians."""
        return 0.0 if self.loss.margin_kind == "none" else self.loss.margin

    def margin_cosines(self, scores: TeacherScores, term: Term) -> Square:
        """The teacher cosines that shape the margins; 0, so that Delta is 1, where it is fixed."""
        alpha = scores.of_term(term, self.loss.margin_similarity)
        return alpha if self.loss.margin_kind == "adaptive" else torch.zeros_like(alpha)

    def forward(
        self,
        tokens: Sequence[Tokens],
        teacher: Sequence[TeacherBatch] | None = None,
        text: Sequence[TextRows] | None = None,
    ) -> StepLoss:
        """The loss of one batch.

        Args:
            tokens: (B, T) for each view, all of one T.
            teacher: image and caption features (B, D_teacher) for each view of a batch of pairs.
            text: features (B, D_text) of a text teacher for each view.
        """
        return self.loss_of_views(self.encode_views(tokens), teacher, text)

    def encode_views(self, tokens: Sequence[Tokens]) -> Views:
        """Sentence vectors (B, H) of each view, each under its own dropout, in one forward pass."""
        together = {key: torch.cat([one[key] for one in tokens]) for key in tokens[0]}
        return tuple(self.encoder(together).float().chunk(len(tokens)))

    def loss_of_views(
        self,
        views: Views,
        teacher: Sequence[TeacherBatch] | None = None,
        text: Sequence[TextRows] | None = None,
    ) -> StepLoss:
        """The loss of a batch's sentence vectors; see `forward`."""
        distinct = {id(one): one for one in teacher or ()}  # two dropout views share their features
        read = {key: _Side.read(one, self.loss) for key, one in distinct.items()}
        sides = [read[id(one)] for one in teacher or ()]
        targets = self._rows_to_distil(sides, text)
        return _average([self._loss(_shorten(views, d), sides, targets) for d in self.dimensions])

    def _rows_to_distil(
        self, sides: Sequence[_Side], text: Sequence[TextRows] | None
    ) -> list[Square]:
        """The teacher's cosines of the first view's samples with each other view's."""
        rows = self.loss.distillation
        if not rows.weight:
            return []
        if text is not None and (rows.target == "text" or not sides):
            return [cosines(text[0], other) for other in text[1:]]
        if rows.target == "text" or not sides:
            return []
        images, captions = sides[0].images, sides[0].captions
        named = [teacher_cosines(images, captions, other.captions).by_name() for other in sides[1:]]
        if rows.target == "mean":
            return [torch.stack(list(scores.values())).mean(0) for scores in named]
        return [scores[rows.target] for scores in named]

    def _loss(self, views: Views, sides: Sequence[_Side], targets: Sequence[Square]) -> StepLoss:
        loss, rows = self.loss, self.loss.distillation
        heads = [self.heads.text(view) for view in views]
        space = heads if rows.space == "head" else views
        terms: Terms = {
            "text": [
                simcse_loss(heads[0], other, temperature=loss.temperature, margin=loss.text_margin)
                for other in heads[1:]
            ],
            "distillation": [
                _distil(cosines(space[0], other), target, rows, rows.kind)
                for other, target in zip(space[1:], targets, strict=False)
            ],
        }
        if loss.consistency.weight and loss.consistency.kind == "views":
            terms["consistency"] = [
                view_divergence(cosines(heads[0], other), temperature=loss.temperature)
                for other in heads[1:]
            ]
        facts: dict[str, Tensor] = {}
        if sides:
            facts = self._add_grounded(terms, views, sides)
        means = {name: torch.stack(values).mean() for name, values in terms.items() if values}
        return StepLoss(self._total(means), **means, **facts)

    def _add_grounded(
        self, terms: Terms, views: Views, sides: Sequence[_Side]
    ) -> dict[str, Tensor]:
        """Add the terms between sentences and the teacher's space; give facts of the first view."""
        loss, facts = self.loss, dict[str, Tensor]()
        ground = functools.cache(self._ground)  # views that share a side share its targets
        for view, side in zip(views, sides, strict=True):
            sentences = self.heads.ground_sentences(view)
            for term in loss.terms:
                value, margins = adap_acse(
                    sentences,
                    ground(side, term),
                    self.margin_cosines(side.scores, term),
                    margin=self.margin,
                    gate=loss.gate,
                    temperature=loss.temperature,
                    keep=None if side.keep is None else getattr(side.keep, term),
                )
                terms.setdefault(term, []).append(value)
                facts.setdefault("applied_margin", off_diagonal(margins).mean())
                if side.keep is not None:
                    facts.setdefault("masked_share", side.keep.masked_share())
            if loss.distillation.cross_weight:
                seen = cosines(sentences, ground(side, "image"))
                both = ((seen, side.scores.caption), (seen.T, side.scores.image))
                pulled = [_distil(*rows, loss.distillation, "kl") for rows in both]
                terms.setdefault("cross_distillation", []).append(torch.stack(pulled).sum())
            if loss.consistency.weight and loss.consistency.kind == "pairs":
                agreement = pair_consistency(sentences, ground(side, "image"))
                terms.setdefault("consistency", []).append(agreement)
        return facts

    def _ground(self, side: _Side, term: Term) -> Float[Tensor, "batch grounding"]:
        if term == "image":
            return self.heads.ground_images(side.images)
        return self.heads.ground_captions(side.captions)

    def _total(self, terms: Mapping[str, Float[Tensor, ""]]) -> Float[Tensor, ""]:
        loss, total = self.loss, terms["text"]
        if grounded := [terms[term] for term in loss.terms if term in terms]:
            total = total + loss.grounding_weight * torch.stack(grounded).sum()
        extra = {
            "distillation": loss.distillation.weight,
            "cross_distillation": loss.distillation.cross_weight,
            "consistency": loss.consistency.weight,
        }
        for name, weight in extra.items():
            if name in terms:
                total = total + weight * terms[name]
        return total


def _distil(
    student: Square, teacher: Square, rows: DistillationParams, kinds: str
) -> Float[Tensor, ""]:
    """The sum of the losses that `kinds` joins by `+`."""
    losses = [
        distillation_loss(
            student,
            teacher,
            kind=cast(RankingKind, kind),
            temperature=rows.temperature,
            teacher_temperature=rows.teacher_temperature,
        )
        for kind in kinds.split("+")
    ]
    return torch.stack(losses).sum()


def _shorten(views: Views, dimension: int) -> Views:
    """The views with zeros behind their first dimensions, so that the same heads read them."""
    width = views[0].shape[-1]
    if dimension == width:
        return views
    return tuple(F.pad(view[:, :dimension], (0, width - dimension)) for view in views)


def _average(losses: Sequence[StepLoss]) -> StepLoss:
    """The terms of several losses, averaged one by one."""
    if len(losses) == 1:
        return losses[0]
    names = [name for name, value in vars(losses[0]).items() if value is not None]
    means = {name: torch.stack([getattr(one, name) for one in losses]).mean() for name in names}
    return replace(losses[0], **means)


def build_model(params: RunParams, teacher_dim: int) -> Distillation:
    """The encoder with fresh heads, drawn from torch's random state, under its objective.

    Raises:
        ModelError: the encoder cannot be loaded.
        ParamsError: a Matryoshka dimension is not below its width.
    """
    student = params.student
    encoder = SentenceEncoder.load(student.encoder, student.pooling)
    if student.matryoshka and student.matryoshka[0] >= encoder.dim:
        raise ParamsError(
            f"student.matryoshka names {student.matryoshka[0]} dimensions, but {student.encoder} "
            f"has {encoder.dim}.",
            f"name dimensions below {encoder.dim}.",
        )
    heads = GroundingHeads(encoder.dim, teacher_dim, student.grounding_dim)
    return Distillation(encoder, heads, params.loss, student.matryoshka)
