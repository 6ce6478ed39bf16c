"""The `loss` block: margins, temperature, weight and noise filter (METHOD: AdapACSE)."""

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pipeline.params.block import UNIQUE, Block, Number, distinct

Margin = Annotated[Number, Field(ge=0, lt=math.pi)]
Gate = Literal["margin", "shift"]
Similarity = Literal["cross-modal", "image", "caption"]
Term = Literal["image", "caption"]


class FilterParams(Block):
    """Which pairs are no negatives, by the teacher's similarity."""

    kind: Literal["off", "cosine", "dot", "percentile"] = "off"
    """What `threshold` is: a cosine, a raw dot product of features (released code), or a percentile
    of the batch's own cosines."""
    similarity: Similarity = "cross-modal"
    """Teacher similarity that decides: caption to image, image to image, caption to caption."""
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
    "off": (-1e6, 1e6),
    "cosine": (-1.0, 1.0),
    "dot": (-1e6, 1e6),
    "percentile": (0.0, 100.0),
}


class LossParams(Block):
    """The terms of the training loss."""

    margin: Margin = 0.15
    """Margin m of the grounded losses at Delta = 1, radians (Delta = 1 - teacher cosine)."""
    margin_kind: Literal["none", "fixed", "adaptive"] = "adaptive"
    """none: no margin (InfoNCE); fixed: m for every negative; adaptive: m * Delta."""
    gate: Gate = "margin"
    """Negatives that get their margin: at an angle above m (`margin`; released code), or above
    m * Delta (`shift`)."""
    text_margin: Margin = 0.0
    """Fixed margin m1 of the text loss, radians."""
    temperature: Annotated[Number, Field(gt=0, le=10)] = 0.05
    """tau of all losses, which divides cosines; no unit."""
    grounding_weight: Annotated[Number, Field(ge=0, le=1000)] = 0.1
    """lambda: weight of the grounded losses against the text loss, no unit."""
    terms: Annotated[list[Term], Field(min_length=1), AfterValidator(distinct), UNIQUE] = [
        "image",
        "caption",
    ]
    """The grounded losses of kdmcse."""
    combine: Literal["sum", "average"] = "sum"
    """How two grounded losses become one: their sum (released code), or their average (paper)."""
    filter: FilterParams = FilterParams()
    """The noise filter of the grounded losses."""
