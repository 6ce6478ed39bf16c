"""One module for every objective: sentences and teacher features in, loss terms out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.errors import ParamsError
from pipeline.features.teacher_rows import TeacherBatch
from pipeline.params.loss import LossParams
from pipeline.student.encoder import GroundingHeads, SentenceEncoder, Tokens
from pipeline.train.losses import adap_acse, simcse_loss
from pipeline.train.noise import Keep, TeacherScores, filter_negatives, teacher_cosines
from pipeline.train.run_params import RunParams

Views = tuple[Float[Tensor, "batch student"], Float[Tensor, "batch student"]]


@dataclass(frozen=True)
class StepLoss:
    """The total to minimise and its terms, before weighting; scalars."""

    total: Float[Tensor, ""]
    text: Float[Tensor, ""]
    image: Float[Tensor, ""] | None = None
    caption: Float[Tensor, ""] | None = None
    masked_share: Float[Tensor, ""] | None = None
    """Share of negatives that the noise filter removed; None where it is off."""
    applied_margin: Float[Tensor, ""] | None = None
    """Mean margin over all negatives of the first grounded loss, radians; 0 at a closed gate."""


class Distillation(nn.Module):
    """Encoder and heads under one objective (METHOD, "The losses").

    Args:
        encoder: the sentence encoder.
        heads: its heads.
        loss: which terms count, and their settings; without grounded terms (`terms` empty) the text
            loss alone, also for captions.
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

    def margin_similarity(
        self, alpha: Float[Tensor, "batch batch"]
    ) -> Float[Tensor, "batch batch"]:
        """The teacher cosines that shape the margins; 0, so that Delta is 1, where it is fixed."""
        return alpha if self.loss.margin_kind == "adaptive" else torch.zeros_like(alpha)

    def forward(self, tokens: Tokens, teacher: TeacherBatch | None = None) -> StepLoss:
        """The loss of one batch.

        Args:
            tokens: (B, T), the sentences.
            teacher: image and caption features (B, D_teacher) of a batch of pairs, or None.
        """
        return self.loss_of_views(self.two_views(tokens), teacher)

    def two_views(self, tokens: Tokens) -> Views:
        """Sentence vectors (B, H) of tokens (B, T) under two dropout masks, in one forward pass."""
        doubled = {key: torch.cat([value, value]) for key, value in tokens.items()}
        first, second = self.encoder(doubled).float().chunk(2)
        return first, second

    def loss_of_views(self, views: Views, teacher: TeacherBatch | None = None) -> StepLoss:
        """The loss of a batch's sentence vectors; see `forward`."""
        grounding = teacher if self.loss.terms else None
        return _average([self._loss(_shorten(views, d), grounding) for d in self.dimensions])

    def _loss(self, views: Views, teacher: TeacherBatch | None) -> StepLoss:
        text = simcse_loss(
            self.heads.text(views[0]),
            self.heads.text(views[1]),
            temperature=self.loss.temperature,
            margin=self.loss.text_margin,
        )
        if teacher is None:
            return StepLoss(total=text, text=text)
        images, captions = teacher
        alphas = teacher_cosines(images, captions)
        keep = filter_negatives(images, captions, self.loss.filter, alphas)
        targets = {
            "image": self.heads.ground_images(images),
            "caption": self.heads.ground_captions(captions),
        }
        grounded = [self.heads.ground_sentences(view) for view in views]
        terms = {
            name: self._grounded(grounded, targets[name], name, alphas, keep)
            for name in self.loss.terms
        }
        together = torch.stack([loss for loss, _ in terms.values()]).sum()
        if self.loss.combine == "average":
            together = together / len(terms)
        return StepLoss(
            text + self.loss.grounding_weight * together,
            text,
            **{name: loss for name, (loss, _) in terms.items()},
            masked_share=None if keep is None else keep.masked_share(),
            applied_margin=next(iter(terms.values()))[1],
        )

    def _grounded(
        self,
        views: Sequence[Float[Tensor, "batch grounding"]],
        targets: Float[Tensor, "batch grounding"],
        name: str,
        alphas: TeacherScores,
        keep: Keep | None,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The average over both views of AdapACSE against one side, and the first's mean margin."""
        alpha = self.margin_similarity(getattr(alphas, name))
        both = [
            adap_acse(
                view,
                targets,
                alpha,
                margin=self.margin,
                gate=self.loss.gate,
                temperature=self.loss.temperature,
                keep=None if keep is None else getattr(keep, name),
            )
            for view in views
        ]
        loss = torch.stack([loss for loss, _ in both]).mean()
        _, margins = both[0]
        return loss, margins.sum() / (len(alpha) * (len(alpha) - 1))


def _shorten(views: Views, dimension: int) -> Views:
    """Both views with zeros behind their first dimensions, so that the same heads read them."""
    width = views[0].shape[-1]
    if dimension == width:
        return views
    first, second = (F.pad(view[:, :dimension], (0, width - dimension)) for view in views)
    return first, second


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
