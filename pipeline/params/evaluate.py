"""The `evaluate` block: how sentence encoders are scored."""

from typing import Annotated

from pydantic import Field

from pipeline.config import Block


class EvaluateParams(Block):
    """Settings of scoring; they do not change a score beyond rounding."""

    batch_size: Annotated[int, Field(ge=1, le=65_536)]
    """Sentences a forward pass."""
