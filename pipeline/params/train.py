"""The `train` block: objective, schedule and optimiser."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config import Block, Number


class TrainParams(Block):
    """One training run."""

    objective: Literal["simcse", "mcse", "kdmcse"]
    """simcse: text only; mcse: plus images, no margin, no filter; kdmcse: all of the method."""
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Seed of heads, dropout and both streams."""
    steps: Annotated[int, Field(ge=1)] | None
    """Optimiser steps; null: as many as `epochs` give."""
    epochs: Annotated[int, Field(ge=1)]
    """Passes over text and pairs; used where `steps` is null."""
    batch_size: Annotated[int, Field(ge=2, le=65_536)]
    """Sentences a step; in-batch negatives need at least 2."""
    learning_rate: Annotated[Number, Field(gt=0, le=1)]
    """AdamW's peak rate, decayed linearly to 0 without warm-up."""
    pair_every: Annotated[int, Field(ge=1)] | Literal["auto"]
    """Every how many steps a batch of pairs comes; auto: text batches // pair batches."""
    evaluate_every: Annotated[int, Field(ge=1)]
    """Steps between two scores on STS dev; the best student is kept."""
