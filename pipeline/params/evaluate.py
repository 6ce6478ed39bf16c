"""The `evaluate` block: how sentence encoders are scored."""

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field

from pipeline.params.block import UNIQUE, Block, distinct

Convention = Literal["senteval", "mteb"]
Retrieval = Literal["karpathy", "mieb-flickr30k", "mieb-coco"]
Part = Literal["sts", "transfer", "retrieval"]
PARTS: tuple[Part, ...] = get_args(Part)


class EvaluateParams(Block):
    """Settings of scoring."""

    tasks: Annotated[list[Part], Field(min_length=1), AfterValidator(distinct), UNIQUE] = [
        "sts",
        "transfer",
        "retrieval",
    ]
    """What is measured; retrieval is left out for a model that cannot."""
    convention: Convention = "senteval"
    """Whose pairs and text STS-B and SICK-R are scored on."""
    retrieval: Retrieval = "karpathy"
    """Whose protocol retrieval follows; the two of MIEB add nDCG at 10."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1111
    """Seed of the transfer classifiers and of the bootstrap, no unit."""
    resamples: Annotated[int, Field(ge=100, le=100_000)] = 1000
    """Bootstrap samples of an interval."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 128
    """Sentences a forward pass; changes no score beyond rounding."""
