"""The `download` block: which corpora the pipeline runs on."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config import Block


class ScenesParams(Block):
    """Size of the embedded world; each part is drawn from `seed` on its own."""

    images: Annotated[int, Field(ge=100, le=200_000)]
    """Pictures to render."""
    captions_per_image: Annotated[int, Field(ge=1, le=10)]
    """Differently worded captions of each picture."""
    sentences: Annotated[int, Field(ge=100, le=2_000_000)]
    """Text-only sentences."""
    sts_pairs: Annotated[int, Field(ge=300, le=100_000)]
    """Graded sentence pairs over train, dev and test together; the transfer tasks grow with it."""
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Seed of the whole world."""


class DownloadParams(Block):
    """Which corpora to fetch, and the size of those the project makes itself."""

    pairs: Literal["scenes", "flickr8k", "flickr30k", "coco"]
    """Images with captions."""
    text: Literal["scenes", "wiki1m"]
    """Text-only sentences."""
    evaluation: Literal["scenes", "senteval", "mteb"]
    """STS pairs and transfer tasks; `mteb` is senteval plus the cased STS-B."""
    scenes: ScenesParams
    """The embedded world, where one of the three above asks for it."""
