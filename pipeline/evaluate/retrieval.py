"""Retrieval between captions and images: recall@1/5/10 and median rank.

Text-to-image: every caption is a query for its image. Image-to-text: every image is a query for its
captions. Equal images, and equal captions, are right answers of each other: right for a caption are
the images of all captions of its text, and all that equal one of them. The best placed right answer
counts (Karpathy and Fei-Fei 2015). Ranks are by cosine; a wrong answer that ties with the right one
is placed before it, so that a collapsed space scores nothing.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Int64
from scipy.sparse import csr_array

from pipeline.core.errors import InputError
from pipeline.evaluate.embeddings import unit_rows
from pipeline.evaluate.score import Score

RECALLS = (1, 5, 10)
SPLIT = "test"
"""The split of the pairs that is retrieved from."""
_BLOCK = 4_000_000
"""Cosines computed at a time."""

Ranks = Int64[np.ndarray, " queries"]


@dataclass(frozen=True)
class Pairing:
    """Which captions and images are right answers of each other."""

    text: Int64[np.ndarray, " captions"]
    """The number of each caption's text."""
    picture: Int64[np.ndarray, " images"]
    """The number of each image's picture."""
    known: Any
    """Texts x pictures, sparse: 1 where a caption of the text is an image's of the picture."""

    @classmethod
    def of(
        cls,
        captions: Sequence[Hashable],
        images: Sequence[Hashable],
        caption_image: Int64[np.ndarray, " captions"],
    ) -> "Pairing":
        """Pair captions with images, each given by what makes it equal to another.

        `caption_image` is the row of each caption's image.
        """
        text, picture = _numbered(captions), _numbered(images)
        places = np.unique(np.stack([text, picture[caption_image]]), axis=1)
        shape = (text.max(initial=-1) + 1, picture.max(initial=-1) + 1)
        known = csr_array((np.ones(places.shape[1], dtype=np.int8), tuple(places)), shape=shape)
        return cls(text, picture, known)

    def of_captions(self, rows: Int64[np.ndarray, " some"]) -> Bool[np.ndarray, "some images"]:
        """Which images are right for some of the captions."""
        return np.asarray(self.known[self.text[rows]].toarray()[:, self.picture] > 0)

    def of_images(self, rows: Int64[np.ndarray, " some"]) -> Bool[np.ndarray, "some captions"]:
        """Which captions are right for some of the images."""
        return np.asarray(self.known.T.tocsr()[self.picture[rows]].toarray()[:, self.text] > 0)

    def is_complete(self) -> bool:
        """Whether there are captions, and every image has one or equals one that has."""
        return len(self.text) > 0 and bool((self.known.sum(axis=0) > 0).all())

    def repeated(self) -> dict[str, int]:
        """How many pictures, and how many texts, occur more than once."""
        numbers = {"images": self.picture, "captions": self.text}
        return {name: int((np.bincount(one) > 1).sum()) for name, one in numbers.items()}


def _numbered(values: Sequence[Any]) -> Int64[np.ndarray, " values"]:
    """A number for each value, the same for equal ones."""
    return pd.factorize(pd.Series(values, dtype=object))[0].astype(np.int64)


@dataclass(frozen=True)
class Gallery:
    """Captions and images in one space."""

    captions: Float32[np.ndarray, "captions dim"]
    images: Float32[np.ndarray, "images dim"]
    pairing: Pairing


def score_retrieval(gallery: Gallery) -> list[Score]:
    """Recalls (x100) and median rank in both directions.

    Raises:
        InputError: there is no caption, or an image without one.
    """
    if not gallery.pairing.is_complete():
        raise InputError(
            f"the {SPLIT} split of the pairs has no captions, or an image without one.",
            "run `dvc repro -f download features`.",
        )
    return [
        *_scores("text_to_image", caption_ranks(gallery)),
        *_scores("image_to_text", image_ranks(gallery)),
    ]


def caption_ranks(gallery: Gallery) -> Ranks:
    """The rank of each caption's best placed right image among all images, from 1."""
    return _ranks(gallery.captions, gallery.images, gallery.pairing.of_captions)


def image_ranks(gallery: Gallery) -> Ranks:
    """The rank of each image's best placed right caption among all captions, from 1."""
    return _ranks(gallery.images, gallery.captions, gallery.pairing.of_images)


def _ranks(
    queries: Float32[np.ndarray, "queries dim"],
    items: Float32[np.ndarray, "items dim"],
    right_for: Callable[[Int64[np.ndarray, " some"]], Bool[np.ndarray, "some items"]],
) -> Ranks:
    """One more than the wrong items that are at least as near as the nearest right one."""
    queries, items = unit_rows(queries).astype(np.float32), unit_rows(items).astype(np.float32)
    step = max(1, _BLOCK // len(items))
    ranks = np.empty(len(queries), dtype=np.int64)
    for start in range(0, len(queries), step):
        rows = np.arange(start, min(start + step, len(queries)))
        cosines, right = queries[rows] @ items.T, right_for(rows)
        best = np.where(right, cosines, -np.inf).max(axis=1, keepdims=True)
        ranks[rows] = 1 + ((cosines >= best) & ~right).sum(axis=1)
    return ranks


def _scores(task: str, ranks: Ranks) -> list[Score]:
    measures = {f"recall@{k}": 100 * float((ranks <= k).mean()) for k in RECALLS}
    measures["median_rank"] = float(np.median(ranks))
    return [
        Score("retrieval", task, SPLIT, measure, value, len(ranks))
        for measure, value in measures.items()
    ]
