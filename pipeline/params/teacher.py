"""The `teacher` block: the frozen CLIP model that is distilled, and sentence encoders beside it."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pipeline.params.block import UNIQUE, Block, Number, Text, distinct
from pipeline.params.places import PathText

IMPORTED_PREFIX = "imported:"
"""Begins the name of a teacher that is known by the vectors of `features.import` only."""


class TextTeacherParams(Block):
    """Frozen sentence encoders whose cosines are averaged, of captions and text-only sentences."""

    encoders: Annotated[list[PathText], AfterValidator(distinct), UNIQUE] = []
    """Directories or hub names of sentence encoders; empty: no text teacher."""
    pooling: Literal["cls", "mean"] | None = None
    """Of encoders that do not say how they pool; null where all do."""
    weights: list[Annotated[Number, Field(gt=0, le=1e6)]] = []
    """Of the encoders in the average, by their ratios, no unit; empty: all alike."""

    @model_validator(mode="after")
    def _one_weight_each(self) -> "TextTeacherParams":
        if self.weights and len(self.weights) != len(self.encoders):
            msg = f"weights must be one for each of the {len(self.encoders)} encoders, or none"
            raise ValueError(msg)
        return self

    @property
    def shares(self) -> list[float]:
        """The weights, so that their sum is 1."""
        weights = self.weights or [1.0] * len(self.encoders)
        return [weight / sum(weights) for weight in weights]


class TeacherParams(Block):
    """A teacher by its open_clip name."""

    model: PathText = "local-dir:data/demo/teacher"
    """open_clip architecture (`ViT-L-14`), `hf-hub:ORG/NAME` or `local-dir:PATH`; or
    `imported:NAME`, any name, of the model that made the vectors of features.import."""
    pretrained: Text | None = None
    """open_clip weights tag (`openai`); null where `model` names its own weights."""
    text: TextTeacherParams = TextTeacherParams()
    """Sentence encoders that teach which texts are alike."""

    @property
    def is_imported(self) -> bool:
        """Whether it is known by its vectors only, and cannot encode."""
        return self.model.startswith(IMPORTED_PREFIX)
