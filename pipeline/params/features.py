"""The `features` block: how the teacher's features are computed."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.params.block import Block, Number

Precision = Literal["auto", "fp32", "bf16", "fp16"]


class FeaturesParams(Block):
    """Extraction settings; only `precision` changes the features by more than rounding."""

    engine: Literal["local", "ray"] = "local"
    """local: this machine; ray: the cluster that RAY_ADDRESS names, or one started here."""
    precision: Precision = "auto"
    """Type of the forward pass; auto: fp16 on a CUDA GPU, else fp32. Features are kept as fp16."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 32
    """Images or captions per forward pass."""
    workers: Annotated[int, Field(ge=0, le=256)] = 2
    """Threads that read and decode images; 0: decoded between the forward passes."""
    shard_rows: Annotated[int, Field(ge=1, le=1_048_576)] = 2048
    """Images or captions per shard of the cache: the work that a kill can lose."""
    max_rejected: Annotated[Number, Field(ge=0, le=1)] = 0.01
    """Largest share of images, or of captions, that may be unusable before the stage fails."""
