"""Retrieval between captions and images: recall@1/5/10, median rank and nDCG@10.

Text-to-image: every caption is a query for its image. Image-to-text: every image is a query for its
captions. Ranks are by cosine; a wrong answer that ties with a right one is placed before it, so
that a collapsed space scores nothing. Recall is the share of queries with a right answer among the
first k. What is right depends on the convention:

    karpathy        equal images, and equal captions, are right answers of each other: right for a
                    caption are the images of all captions of its text, and all that equal one of
                    them; the best placed right answer counts (Karpathy and Fei-Fei 2015)
    mieb-flickr30k  an image and its own captions, whatever equals them; also nDCG@10, which counts
                    all right answers
    mieb-coco       the same, but of an image its first five captions, and equal captions are one
                    query, or one answer, for all their images
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Float64, Int64
from scipy.sparse import csr_array

from pipeline.core.errors import InputError
from pipeline.evaluate.embeddings import unit_rows
from pipeline.evaluate.score import Score
from pipeline.params.evaluate import Retrieval

RECALLS = (1, 5, 10)
SPLIT = "test"
"""The split of the pairs that is retrieved from."""
_BLOCK = 4_000_000
"""Cosines computed at a time."""
_DEPTH = 10
"""Places that nDCG looks at."""
_MOST_CAPTIONS = 5
"""Of an image, in `mieb-coco`."""

Rows = Int64[np.ndarray, " rows"]
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

    @property
    def text_to_image(self) -> "Direction":
        """Captions that look for images."""
        return Direction(self.captions, self.images, self.pairing.of_captions)

    @property
    def image_to_text(self) -> "Direction":
        """Images that look for captions."""
        return Direction(self.images, self.captions, self.pairing.of_images)


@dataclass(frozen=True)
class Direction:
    """Queries and the items that are ranked for each."""

    queries: Float32[np.ndarray, "queries dim"]
    items: Float32[np.ndarray, "items dim"]
    right_for: Callable[[Int64[np.ndarray, " some"]], Bool[np.ndarray, "some items"]]

    def blocks(
        self,
    ) -> Iterator[tuple[Rows, Float32[np.ndarray, "rows items"], Bool[np.ndarray, "rows items"]]]:
        """Some queries at a time: their rows, their cosines, and which items are right for them."""
        queries, items = (unit_rows(side).astype(np.float32) for side in (self.queries, self.items))
        step = max(1, _BLOCK // len(items))
        for start in range(0, len(queries), step):
            rows = np.arange(start, min(start + step, len(queries)))
            yield rows, queries[rows] @ items.T, self.right_for(rows)


def kept_captions(
    caption_image: Int64[np.ndarray, " captions"], convention: Retrieval
) -> Int64[np.ndarray, " kept"]:
    """The rows of the captions that a convention reads, by the image of each."""
    place = pd.Series(caption_image).groupby(caption_image).cumcount().to_numpy()
    is_cut = convention == "mieb-coco"
    return np.flatnonzero(place < (_MOST_CAPTIONS if is_cut else np.inf)).astype(np.int64)


def scored_captions(pairing: Pairing, convention: Retrieval) -> Int64[np.ndarray, " scored"]:
    """The rows of the captions that are queries and answers: in `mieb-coco` each text once."""
    if convention == "mieb-coco":
        return np.unique(pairing.text, return_index=True)[1].astype(np.int64)
    return np.arange(len(pairing.text))


def score_retrieval(gallery: Gallery, convention: Retrieval = "karpathy") -> list[Score]:
    """Recalls, nDCG (x100) and median rank in both directions.

    Args:
        gallery: captions and images; its pairing is that of the convention.
        convention: see above.

    Raises:
        InputError: there is no caption, or an image without one.
    """
    if not gallery.pairing.is_complete():
        raise InputError(
            f"the {SPLIT} split of the pairs has no captions, or an image without one.",
            "run `dvc repro -f download features`.",
        )
    rows = scored_captions(gallery.pairing, convention)
    pairing = replace(gallery.pairing, text=gallery.pairing.text[rows])
    gallery = Gallery(gallery.captions[rows], gallery.images, pairing)
    has_gains = convention != "karpathy"
    return [
        *_scores("text_to_image", gallery.text_to_image, has_gains=has_gains),
        *_scores("image_to_text", gallery.image_to_text, has_gains=has_gains),
    ]


def caption_ranks(gallery: Gallery) -> Ranks:
    """The rank of each caption's best placed right image among all images, from 1."""
    return _ranks(gallery.text_to_image)


def image_ranks(gallery: Gallery) -> Ranks:
    """The rank of each image's best placed right caption among all captions, from 1."""
    return _ranks(gallery.image_to_text)


def _ranks(direction: Direction) -> Ranks:
    """One more than the wrong items that are at least as near as the nearest right one."""
    ranks = np.empty(len(direction.queries), dtype=np.int64)
    for rows, cosines, right in direction.blocks():
        best = np.where(right, cosines, -np.inf).max(axis=1, keepdims=True)
        ranks[rows] = 1 + ((cosines >= best) & ~right).sum(axis=1)
    return ranks


def _ndcg(direction: Direction) -> Float64[np.ndarray, " queries"]:
    """The sum over right items in the first places of 1 / log2(1 + place), by the best possible."""
    discounts = 1 / np.log2(np.arange(2, _DEPTH + 2))
    gains = np.empty(len(direction.queries))
    for rows, cosines, right in direction.blocks():
        first = np.lexsort((right, -cosines), axis=1)[:, :_DEPTH]
        found = np.take_along_axis(right, first, axis=1) @ discounts[: first.shape[1]]
        possible = np.minimum(right.sum(axis=1), _DEPTH)
        gains[rows] = found / np.cumsum(discounts)[possible - 1]
    return gains


def _scores(task: str, direction: Direction, *, has_gains: bool) -> list[Score]:
    ranks = _ranks(direction)
    measures = {f"recall@{k}": 100 * float((ranks <= k).mean()) for k in RECALLS}
    measures["median_rank"] = float(np.median(ranks))
    if has_gains:
        measures["ndcg@10"] = 100 * float(_ndcg(direction).mean())
    return [
        Score("retrieval", task, SPLIT, measure, value, len(ranks))
        for measure, value in measures.items()
    ]
