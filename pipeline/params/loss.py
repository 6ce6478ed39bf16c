"""The `loss` block: margins, temperature, weight and noise filter (METHOD: AdapACSE)."""

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pipeline.params.block import UNIQUE, Block, Number, distinct

Margin = Annotated[Number, Field(ge=0, lt=math.pi)]
Weight = Annotated[Number, Field(ge=0, le=1000)]
Temperature = Annotated[Number, Field(gt=0, le=10)]
Gate = Literal["margin", "shift"]
Similarity = Literal["cross-modal", "image", "caption"]
Term = Literal["image", "caption"]


class TermSimilarity(Block):
    """The teacher's similarity that each grounded loss goes by.

    image: image to image; caption: caption to caption; cross-modal: caption to image in the image
    loss, image to caption in the caption loss.
    """

    image: Similarity
    """Of the image loss."""
    caption: Similarity
    """Of the caption loss."""


class FilterParams(Block):
    """Which pairs are no negatives, by the teacher's similarity."""

    kind: Literal["none", "cosine", "dot", "percentile"] = "none"
    """What `threshold` is: a cosine, a raw dot product of features (released code), or a percentile
    of the batch's own cosines."""
    similarity: TermSimilarity = TermSimilarity(image="cross-modal", caption="cross-modal")
    """Teacher similarity that decides, for each grounded loss."""
    drop: Literal["above", "below"] = "above"
    """Remove the negatives above the threshold (false negatives; released code), or those below it
    (easy negatives; the paper's indicator as it is printed)."""
    threshold: Annotated[Number, Field(ge=-1e6, le=1e6)] = 0.9
    """A cosine (-1 to 1), a dot product or a percentile (0 to 100), as `kind` says;
    no unit."""

    @model_validator(mode="after")
    def _threshold_fits_kind(self) -> "FilterParams":
        low, high = _THRESHOLDS[self.kind]
        if not low <= self.threshold <= high:
            msg = f"threshold must be from {low:g} to {high:g} for kind {self.kind}"
            raise ValueError(msg)
        return self


_THRESHOLDS = {
    "none": (-1e6, 1e6),
    "cosine": (-1.0, 1.0),
    "dot": (-1e6, 1e6),
    "percentile": (0.0, 100.0),
}


class DistillationParams(Block):
    """The teacher's rows of similarities, which the student's are pulled towards."""

    weight: Weight = 1.0
    """Of the student's sentence-to-sentence rows; 0: off."""
    target: Literal["caption", "image", "cross-modal", "mean", "text"] = "caption"
    """The teacher's rows of a batch of pairs: caption to caption, image to image, caption to image,
    the mean of the three, or those of `teacher.text`. Text-only batches have rows where there is
    such a text teacher."""
    kind: Literal["kl", "listnet", "listmle", "listmle+kl"] = "kl"
    """kl: divergence of the softmax of the rows; listnet: their cross-entropy; listmle: the
    likelihood of the teacher's order; listmle+kl: the sum of both (DALR)."""
    temperature: Temperature = 0.05
    """Divides the student's cosines, no unit."""
    teacher_temperature: Temperature = 0.05
    """Divides the teacher's cosines, no unit; listmle has no use for it."""
    space: Literal["sentence", "head"] = "sentence"
    """The student's vectors: sentence embeddings, or these after the text head."""
    cross_weight: Weight = 0.0
    """Of the student's caption-to-image rows, pulled towards the teacher's caption-to-caption rows
    and, transposed, towards its image-to-image rows, by `kl` (DALR); 0: off."""


class ConsistencyParams(Block):
    """A loss that makes what should be equal agree."""

    weight: Weight = 0.0
    """Of it in the total loss, no unit; 0: off."""
    kind: Literal["views", "pairs"] = "views"
    """views: the divergence of the rows of a sentence's two views (RankCSE); pairs: captions agree
    with their image, and not with another (DALR)."""


class LossParams(Block):
    """The terms of the training loss."""

    margin: Margin = 0.15
    """Margin m of the grounded losses at Delta = 1, radians (Delta = 1 - teacher cosine)."""
    margin_kind: Literal["none", "fixed", "adaptive"] = "adaptive"
    """none: no margin (InfoNCE); fixed: m for every negative; adaptive: m * Delta."""
    margin_similarity: TermSimilarity = TermSimilarity(image="image", caption="caption")
    """The teacher's cosine in Delta, for each grounded loss."""
    gate: Gate = "margin"
    """Negatives that get their margin: at an angle above m (`margin`; released code), or above
    m * Delta (`shift`)."""
    text_margin: Margin = 0.0
    """Fixed margin m1 of the text loss, radians."""
    positives: Literal["dropout", "sibling", "both"] = "sibling"
    """The other view of a caption in batches of pairs: itself under another dropout mask; a
    sibling, which is another caption of its image, drawn anew every epoch; or both. A caption
    without siblings has its dropout view."""
    temperature: Temperature = 0.05
    """tau of the contrastive losses, which divides cosines; no unit."""
    grounding_weight: Weight = 1.0
    """lambda: weight of the grounded losses against the text loss, no unit."""
    terms: Annotated[list[Term], Field(min_length=1), AfterValidator(distinct), UNIQUE] = [
        "image",
        "caption",
    ]
    """The grounded losses of kdmcse."""
    distillation: DistillationParams = DistillationParams()
    """Of the teacher's similarity rows."""
    consistency: ConsistencyParams = ConsistencyParams()
    """Of views, or of pairs."""
    filter: FilterParams = FilterParams()
    """The noise filter of the grounded losses."""
