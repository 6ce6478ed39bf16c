"""Retrieval between captions and images: recall@1/5/10 and median rank.

Text-to-image: every caption is a query for its image. Image-to-text: every image is a query for its
captions, and the best placed of them counts (Karpathy and Fei-Fei 2015). Ranks are by cosine; what
ties with the right answer is placed before it, so that a collapsed space scores nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from pipeline.errors import InputError
from pipeline.evaluate.embed import unit_rows
from pipeline.evaluate.scores import Score

RECALLS = (1, 5, 10)
_BLOCK = 4_000_000
"""Cosines computed at a time."""

Ranks = Int64[np.ndarray, " queries"]


@dataclass(frozen=True)
class Gallery:
    """Captions and images in one space."""

    captions: Float32[np.ndarray, "captions dim"]
    images: Float32[np.ndarray, "images dim"]
    caption_image: Int64[np.ndarray, " captions"]
    """The row of each caption's image."""


def score_retrieval(gallery: Gallery, split: str) -> list[Score]:
    """Recalls (x100) and median rank in both directions.

    Raises:
        InputError: there is no caption, or an image without one.
    """
    if len(gallery.captions) == 0 or len(np.unique(gallery.caption_image)) < len(gallery.images):
        raise InputError(
            f"the {split} split of the pairs has no captions, or an image without one.",
            "run `dvc repro -f download features`.",
        )
    return [
        *_scores("text_to_image", caption_ranks(gallery), split),
        *_scores("image_to_text", image_ranks(gallery), split),
    ]


def caption_ranks(gallery: Gallery) -> Ranks:
    """The rank of each caption's image among all images, from 1."""
    blocks = _cosines(gallery.captions, gallery.images)
    return np.concatenate(
        [_ranks(cosines, gallery.caption_image[rows, None]) for rows, cosines in blocks]
    )


def image_ranks(gallery: Gallery) -> Ranks:
    """The rank of each image's best placed caption among all captions, from 1.

    What ties with that caption is placed before it, but for the image's own captions.
    """
    ranks = np.empty(len(gallery.images), dtype=np.int64)
    for rows, cosines in _cosines(gallery.images, gallery.captions):
        for row, similar in zip(rows, cosines, strict=True):
            own = gallery.caption_image == row
            ranks[row] = 1 + np.count_nonzero(similar[~own] >= similar[own].max())
    return ranks


def _ranks(
    cosines: Float32[np.ndarray, "queries items"], right: Int64[np.ndarray, "queries 1"]
) -> Ranks:
    """How many items are at least as near as the right one, itself included."""
    near = cosines >= np.take_along_axis(cosines, right, axis=1)
    ranks: Ranks = near.sum(axis=1, dtype=np.int64)
    return ranks


def _cosines(
    queries: Float32[np.ndarray, "queries dim"], items: Float32[np.ndarray, "items dim"]
) -> Iterator[tuple[Int64[np.ndarray, " some"], Float32[np.ndarray, "some items"]]]:
    """Cosines of all items, for a block of queries at a time."""
    queries, items = unit_rows(queries).astype(np.float32), unit_rows(items).astype(np.float32)
    step = max(1, _BLOCK // len(items))
    for start in range(0, len(queries), step):
        rows = np.arange(start, min(start + step, len(queries)))
        yield rows, queries[rows] @ items.T


def _scores(task: str, ranks: Ranks, split: str) -> list[Score]:
    measures = {f"recall@{k}": 100 * float((ranks <= k).mean()) for k in RECALLS}
    measures["median_rank"] = float(np.median(ranks))
    return [
        Score("retrieval", task, split, measure, value, len(ranks))
        for measure, value in measures.items()
    ]
