"""The `features` block: how the teacher's features are computed."""

from typing import Annotated

from pydantic import Field

from pipeline.config import Block, Number


class FeaturesParams(Block):
    """Extraction settings; none of them changes the features beyond rounding."""

    batch_size: Annotated[int, Field(ge=1, le=65_536)]
    """Images or captions a forward pass."""
    workers: Annotated[int, Field(ge=0, le=256)]
    """Processes that decode images; 0 decodes in the main process."""
    max_rejected: Annotated[Number, Field(ge=0, le=1)]
    """Largest share of unreadable images, 0 to 1; the stage fails above it."""
