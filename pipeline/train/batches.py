"""Two streams of batches, text-only sentences and pairs, and the schedule that mixes them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pipeline.download.records import Pairs
from pipeline.errors import InputError
from pipeline.features.store import Features

Rows = Int64[np.ndarray, " batch"]


@dataclass(frozen=True)
class TrainingPairs:
    """The captions of the train split, with the feature row of each and of its image."""

    captions: list[str]
    caption_rows: Int64[np.ndarray, " captions"]
    image_rows: Int64[np.ndarray, " captions"]
    features: Features

    def __len__(self) -> int:
        return len(self.captions)

    def teacher(
        self, rows: Rows, device: torch.device
    ) -> tuple[Float[Tensor, "batch teacher"], Float[Tensor, "batch teacher"]]:
        """float32 teacher features of images and captions, for captions `rows`."""
        images = self.features.images[self.image_rows[rows]]
        captions = self.features.captions[self.caption_rows[rows]]
        return (
            torch.as_tensor(images).to(device).float(),
            torch.as_tensor(captions).to(device).float(),
        )


def training_pairs(pairs: Pairs, features: Features) -> TrainingPairs:
    """Join the captions of the train split with their feature rows, by id.

    Captions without features (their image was rejected) are left out.

    Raises:
        InputError: no caption is left.
    """
    table = pairs.captions_of("train")
    rows = pd.Index(features.caption_ids).get_indexer(pd.Index(table["caption_id"]))
    known = rows >= 0
    if not known.any():
        raise InputError(
            "no caption of the train split has features.", "run `dvc repro -f features`."
        )
    return TrainingPairs(
        captions=list(table["caption"][known]),
        caption_rows=rows[known],
        image_rows=features.caption_image[rows[known]],
        features=features,
    )


def text_batches(count: int, batch_size: int, rng: np.random.Generator) -> Iterator[Rows]:
    """Endless batches of sentence rows: every epoch a new order, the incomplete rest left out.

    Raises:
        InputError: there are fewer rows than one batch takes.
    """
    _require(count, batch_size, "text-only sentences")
    while True:
        order = rng.permutation(count)
        for start in range(0, count - batch_size + 1, batch_size):
            yield order[start : start + batch_size]


def pair_batches(
    image_rows: Sequence[int] | Int64[np.ndarray, " captions"],
    batch_size: int,
    rng: np.random.Generator,
) -> Iterator[Rows]:
    """Endless batches of caption rows, never two captions of one image in a batch.

    An epoch goes through the images once for every caption they have: each round takes another
    caption of each image, in a new order, and leaves out its incomplete rest.

    Args:
        image_rows: the image of each caption row.
        batch_size: captions a batch.
        rng: source of the order.

    Raises:
        InputError: there are fewer images than one batch takes.
    """
    by_image = _captions_by_image(np.asarray(image_rows))
    _require(len(by_image), batch_size, "training images")
    while True:
        shuffled = [rng.permutation(captions) for captions in by_image]
        for number in range(max(len(captions) for captions in shuffled)):
            rows = np.array([captions[number] for captions in shuffled if number < len(captions)])
            rng.shuffle(rows)
            for start in range(0, len(rows) - batch_size + 1, batch_size):
                yield rows[start : start + batch_size]


@dataclass(frozen=True)
class Schedule:
    """Which steps are paired: every `every`-th one, or with `inverted` all but those."""

    every: int
    inverted: bool = False

    def is_paired(self, step: int) -> bool:
        """Whether step number `step`, counted from 1, takes a batch of pairs."""
        return (step % self.every == 0) != self.inverted


def make_schedule(
    pair_every: int | Literal["auto"], *, text_batches: int, pair_batches: int
) -> Schedule:
    """The schedule of METHOD: every k-th step is paired, k = text_batches // pair_batches.

    Where pairs are as many as texts or more, k would be 0 or 1 (the released code divides by
    zero, or never reads a text); then it is the texts that come every k-th step.

    Args:
        pair_every: k, or `auto`.
        text_batches: batches of text in one epoch.
        pair_batches: batches of pairs in one epoch.
    """
    if pair_every != "auto":
        return Schedule(pair_every)
    k = text_batches // pair_batches
    if k > 1:
        return Schedule(k)
    return Schedule(max(2, pair_batches // text_batches + 1), inverted=True)


def _captions_by_image(image_rows: Int64[np.ndarray, " captions"]) -> list[Rows]:
    order = np.argsort(image_rows, kind="stable")
    starts = np.flatnonzero(np.diff(image_rows[order])) + 1
    return list(np.split(order, starts))


def _require(count: int, batch_size: int, what: str) -> None:
    if count < batch_size:
        raise InputError(
            f"train.batch_size is {batch_size}, but there are only {count} {what}.",
            "lower train.batch_size, or use more data.",
        )
