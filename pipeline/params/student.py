"""The `student` block: the sentence encoder that is trained."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipeline.params.block import UNIQUE, Block
from pipeline.params.places import PathText


class StudentParams(Block):
    """A BERT-like encoder, its pooling and its heads."""

    encoder: PathText = "data/demo/student"
    """A transformers directory or hub name."""
    pooling: Literal["cls", "mean"] = "mean"
    """Sentence vector: the first token, or the mean over all tokens that are not padding."""
    max_length: Annotated[int, Field(ge=4, le=8192)] = 32
    """Tokens a training sentence is cut to (scoring and search never cut below the model's own)."""
    grounding_dim: Annotated[int, Field(ge=2, le=8192)] | None = None
    """Dimensions of the space shared with the teacher, which heads of both sides lead to; null: the
    teacher's own space, which a head of the student alone leads to."""
    matryoshka: Annotated[list[Annotated[int, Field(ge=2, le=8192)]], UNIQUE] = []
    """Shorter embeddings, by their first dimensions, that are trained along (arXiv 2205.13147);
    empty: the whole vector only."""

    @field_validator("matryoshka")
    @classmethod
    def _falling(cls, dimensions: list[int]) -> list[int]:
        if dimensions != sorted(set(dimensions), reverse=True):
            msg = "name every dimension once, the largest first"
            raise ValueError(msg)
        return dimensions
