"""The `train` block: objective, schedule and optimiser."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pipeline.params.block import UNIQUE, Block, Number, distinct

_LARGEST_POOL = 16_384
"""Captions; their similarities then take 1 GB."""

Seed = Annotated[int, Field(ge=0, lt=2**32)]


class PairParams(Block):
    """How captions of pictures come into batches."""

    captions: Literal["all", "one"] = "all"
    """What an epoch reads of an image: every caption (released code), or a random one (MCSE)."""
    unique_images: bool = True
    """Whether a batch holds at most one caption an image (false: released code)."""
    hard_negatives: Annotated[int, Field(ge=0, le=4096)] = 0
    """Nearest neighbours that the teacher brings into the batch of an anchor; 0: random batches."""
    pool: Annotated[int, Field(ge=2, le=1024)] = 16
    """Batches whose captions are searched together for hard negatives."""


class TrainParams(Block):
    """The training runs of one configuration."""

    objective: Literal["simcse", "mcse", "kdmcse"] = "kdmcse"
    """simcse: the text loss; mcse: plus images, no margin, no filter; kdmcse: all grounded losses.
    `loss.positives`, `loss.distillation` and `loss.consistency` apply to each."""
    seeds: Annotated[
        list[Seed], Field(min_length=1, max_length=10_000), AfterValidator(distinct), UNIQUE
    ] = [0]
    """One run each: seeds of heads, dropout and both streams; no unit."""
    steps: Annotated[int, Field(ge=1, le=10**9)] | None = None
    """Optimiser steps; null: as many as `epochs` give."""
    epochs: Annotated[int, Field(ge=1, le=10**6)] = 1
    """Passes over the text and pairs that are read; used where `steps` is null."""
    batch_size: Annotated[int, Field(ge=2, le=65_536)] = 64
    """Sentences a batch, over all processes; in-batch negatives need at least 2."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=4096)] = 1
    """Batches whose gradients make one step. Negatives come from the same batch only: a step of 4
    batches of 64 has 63 negatives an anchor, not 255."""
    learning_rate: Annotated[Number, Field(gt=0, le=1)] = 0.002
    """AdamW's peak rate, decayed linearly to 0 without warm-up; change of a weight
    a step, no other unit."""
    head_learning_rate: Annotated[Number, Field(gt=0, le=1)] | None = 0.006
    """Peak rate of the heads into the shared space, which start from random weights; change of a
    weight a step, no other unit; null: learning_rate."""
    adam_epsilon: Annotated[Number, Field(gt=0, le=1)] = 1e-8
    """AdamW's eps, which keeps its quotient finite, no unit (released code: 1e-6)."""
    length_buckets: Annotated[int, Field(ge=1, le=65_536)] = 1
    """Successive batches whose sentences are sorted by length together, so that a batch needs
    little padding; 1: random batches. Negatives are then about as long as their anchor."""
    unpad: bool | Literal["auto"] = "auto"
    """Whether a forward pass leaves out padding, with the same vectors and gradients; auto: on a
    CPU, where the encoder allows it and `compile` is off."""
    mini_batch_size: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Sentences encoded at a time, where a batch does not fit into memory (GradCache): negatives
    and gradient stay those of the whole batch, for a second forward pass. None: all."""
    gather_negatives: bool = True
    """Under `accelerate launch`: whether an anchor's negatives are those of the whole batch, as in
    one process, or only those in the share of its process."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the forward pass, also of scores on dev; auto: bf16 where the device computes it natively.
    Weights, optimiser, similarities and losses are float32 in any."""
    compile: bool = False
    """Whether torch.compile makes kernels of the encoder first, which takes a minute."""
    report_to: Annotated[
        list[Literal["tensorboard", "wandb", "dvclive"]], AfterValidator(distinct), UNIQUE
    ] = []
    """Trackers that get the curves during training; each must be installed."""
    pair_every: Annotated[int, Field(ge=1, le=10**9)] | Literal["auto"] = 1
    """Every how many steps a batch of pairs comes: 1, no text is read; auto: text batches // pair
    batches."""
    evaluate_every: Annotated[int, Field(ge=1, le=10**9)] = 125
    """Steps between two scores on STS dev; the best student is kept."""
    pairs: PairParams = PairParams()
    """The make-up of batches of pairs."""

    @model_validator(mode="after")
    def _pool_fits_memory(self) -> "TrainParams":
        if self.pairs.hard_negatives and self.pairs.pool * self.batch_size > _LARGEST_POOL:
            msg = f"pairs.pool x batch_size must be at most {_LARGEST_POOL} for hard negatives"
            raise ValueError(msg)
        return self
