"""The `index` block: what can be searched."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config import Block


class IndexParams(Block):
    """Settings of the search index."""

    kind: Literal["flat"]
    """FAISS index; `flat` is exact inner product over normalised vectors."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)]
    """Captions a forward pass."""
