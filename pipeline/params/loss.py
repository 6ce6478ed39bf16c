"""The `loss` block: margins, temperature, weight and noise filter (METHOD: AdapACSE)."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config import Block, Number

Margin = Annotated[Number, Field(ge=0, lt=math.pi)]


class FilterParams(Block):
    """Which pairs are too similar for the teacher to be negatives."""

    kind: Literal["off", "cosine", "percentile"]
    """`cosine`: above a fixed teacher cosine; `percentile`: above one of the batch's own."""
    similarity: Literal["cross-modal", "image", "caption"]
    """Teacher similarity that decides: caption to image, image to image, caption to caption."""
    threshold: Annotated[Number, Field(ge=-1, le=100)]
    """A cosine (-1 to 1) or a percentile (0 to 100), as `kind` says."""

    @model_validator(mode="after")
    def _threshold_fits_kind(self) -> "FilterParams":
        low, high = {"percentile": (0.0, 100.0)}.get(self.kind, (-1.0, 1.0))
        if self.kind != "off" and not low <= self.threshold <= high:
            msg = f"threshold must be from {low:g} to {high:g} for kind {self.kind}"
            raise ValueError(msg)
        return self


class LossParams(Block):
    """The terms of the training loss."""

    margin: Margin
    """Margin m of the grounded losses at Delta = 1, radians (Delta = 1 - teacher cosine)."""
    text_margin: Margin
    """Fixed margin m1 of the text loss, radians."""
    temperature: Annotated[Number, Field(gt=0, le=10)]
    """tau of all losses."""
    weight: Annotated[Number, Field(ge=0, le=1000)]
    """lambda: weight of the grounded losses against the text loss."""
    filter: FilterParams
    """The noise filter of the grounded losses."""
