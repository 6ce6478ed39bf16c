"""One module for every objective: sentences and teacher features in, loss terms out."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pipeline.encoder import GroundingHeads, SentenceEncoder, Tokens
from pipeline.params.loss import LossParams
from pipeline.train.losses import adap_acse_loss, simcse_loss
from pipeline.train.noise import filter_negatives, teacher_cosines

Objective = Literal["simcse", "mcse", "kdmcse"]
TeacherBatch = tuple[Float[Tensor, "batch teacher"], Float[Tensor, "batch teacher"]]
Views = tuple[Float[Tensor, "batch grounding"], Float[Tensor, "batch grounding"]]


@dataclass(frozen=True)
class StepLoss:
    """The total to minimise and its terms, before weighting; scalars."""

    total: Float[Tensor, ""]
    text: Float[Tensor, ""]
    image: Float[Tensor, ""] | None = None
    caption: Float[Tensor, ""] | None = None
    masked_share: Float[Tensor, ""] | None = None
    """Share of negatives that the noise filter removed; None where it is off."""


class Distillation(nn.Module):
    """Encoder and heads under one objective (METHOD, "The losses").

    simcse: the text loss alone, also for captions. mcse: plus lambda times the image loss, without
    margin or filter. kdmcse: margins, filter and the caption loss as `loss` says.

    Args:
        encoder: the sentence encoder.
        heads: its heads.
        objective: which terms count.
        loss: their settings.
    """

    def __init__(
        self,
        encoder: SentenceEncoder,
        heads: GroundingHeads,
        objective: Objective,
        loss: LossParams,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = heads
        self.objective = objective
        self.loss = loss

    def forward(self, tokens: Tokens, teacher: TeacherBatch | None = None) -> StepLoss:
        """The loss of one batch.

        Args:
            tokens: (B, T), the sentences.
            teacher: image and caption features (B, D_teacher) of a batch of pairs, or None.
        """
        first, second = self._two_views(tokens)
        text = simcse_loss(
            self.heads.text(first),
            self.heads.text(second),
            temperature=self.loss.temperature,
            margin=self.loss.text_margin if self.objective == "kdmcse" else 0.0,
        )
        if teacher is None or self.objective == "simcse":
            return StepLoss(total=text, text=text)
        views = (self.heads.ground_sentences(first), self.heads.ground_sentences(second))
        if self.objective == "mcse":
            return self._add_images(text, views, teacher[0])
        return self._add_distillation(text, views, teacher)

    def _two_views(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Sentence vectors under two dropout masks, in one forward pass."""
        doubled = {key: torch.cat([value, value]) for key, value in tokens.items()}
        first, second = self.encoder(doubled).chunk(2)
        return first, second

    def _add_images(self, text: Tensor, views: Views, images: Tensor) -> StepLoss:
        """MCSE: images as plain positives."""
        unlike = torch.zeros(len(images), len(images), device=images.device)
        image = self._grounded(views, self.heads.ground_images(images), unlike, margin=0.0)
        return StepLoss(text + self.loss.weight * image, text, image)

    def _add_distillation(self, text: Tensor, views: Views, teacher: TeacherBatch) -> StepLoss:
        """KDMCSE: both sides of the teacher, with its margins and its filter."""
        images, captions = teacher
        cosines = teacher_cosines(images, captions)
        keep = filter_negatives(cosines, self.loss.filter)
        image = self._grounded(
            views,
            self.heads.ground_images(images),
            cosines.image,
            margin=self.loss.margin,
            keep=None if keep is None else keep.image,
        )
        caption = self._grounded(
            views,
            self.heads.ground_captions(captions),
            cosines.caption,
            margin=self.loss.margin,
            keep=None if keep is None else keep.caption,
        )
        total = text + self.loss.weight * (image + caption)
        masked = None if keep is None else keep.masked_share()
        return StepLoss(total, text, image, caption, masked)

    def _grounded(
        self,
        views: Views,
        targets: Float[Tensor, "batch grounding"],
        alpha: Float[Tensor, "batch batch"],
        *,
        margin: float,
        keep: Bool[Tensor, "batch batch"] | None = None,
    ) -> Float[Tensor, ""]:
        """The average over both views of AdapACSE against one side of the teacher."""
        first, second = (
            adap_acse_loss(
                view, targets, alpha, margin=margin, temperature=self.loss.temperature, keep=keep
            )
            for view in views
        )
        return (first + second) / 2
