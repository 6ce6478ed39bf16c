"""Two streams of batches, text-only sentences and pairs, and the schedule that mixes them."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pipeline.core.errors import InputError
from pipeline.features.rows import Features
from pipeline.params.train import TrainParams
from pipeline.train.mining import hard_negative_order
from pipeline.train.objective import loss_of
from pipeline.train.run_params import RunParams

if TYPE_CHECKING:
    from pipeline.download.records import Pairs

Rows = Int64[np.ndarray, " batch"]
Lengths = Int64[np.ndarray, " rows"]
OfImage = Int64[np.ndarray, " _"]
"""The caption rows of one image."""
Epoch = Int64[np.ndarray, "batches batch_size"]


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


@dataclass(frozen=True)
class TrainingData:
    """Both streams."""

    sentences: list[str]
    pairs: TrainingPairs


def training_pairs(pairs: "Pairs", features: Features) -> TrainingPairs:
    """Join the captions of the train split with their feature rows, by id.

    Captions without features (their image was rejected) are left out.

    Raises:
        InputError: no caption is left.
    """
    import pandas as pd

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


class Stream:
    """Endless batches of rows.

    An epoch is a pure function of the seed and its number, so the count of batches taken is all
    that a resumed run needs.

    Args:
        make_epoch: draws the batches of one epoch, (batches, batch_size) rows.
        seed: tells this stream from others.
        position: batches that were taken before.
    """

    def __init__(
        self, make_epoch: Callable[[np.random.Generator], Epoch], seed: list[int], position: int = 0
    ) -> None:
        self.position = position
        self._make_epoch = make_epoch
        self._seed = seed
        self._number = 0
        self._epoch = self._draw(0)

    def __next__(self) -> Rows:
        number, index = divmod(self.position, len(self._epoch))
        if number != self._number:
            self._number, self._epoch = number, self._draw(number)
        self.position += 1
        rows: Rows = self._epoch[index]
        return rows

    def __iter__(self) -> Iterator[Rows]:
        return self

    def _draw(self, number: int) -> Epoch:
        return self._make_epoch(np.random.default_rng([*self._seed, number]))


def text_stream(lengths: Lengths, params: TrainParams, seed: int, position: int = 0) -> Stream:
    """Batches of sentence rows: every epoch a new order, its incomplete rest left out.

    Args:
        lengths: tokens of every sentence, for `train.buckets`.
        params: sizes.
        seed: of the order.
        position: batches that were taken before.

    Raises:
        InputError: there are fewer rows than one batch takes.
    """
    _require(len(lengths), params.batch_size, "text-only sentences")

    def epoch(rng: np.random.Generator) -> Epoch:
        return bucketed(rng.permutation(len(lengths)), lengths, params, rng)

    return Stream(epoch, [seed, 0], position)


def bucketed(rows: Rows, lengths: Lengths, params: TrainParams, rng: np.random.Generator) -> Epoch:
    """Batches of near-equal length, in random order; the incomplete rest is left out.

    The rows of `train.buckets` successive batches are sorted by length before they are cut into
    batches. Which rows meet is random but for their length: negatives are about as long as their
    anchor, so that length alone does not tell them from the positive.

    Args:
        rows: in random order.
        lengths: tokens by row.
        params: batch size and buckets.
        rng: of the batches' order.
    """
    batches = _cut(rows, params.batch_size)
    if params.buckets == 1 or not len(batches):
        return batches
    pools = (
        batches[n : n + params.buckets].ravel() for n in range(0, len(batches), params.buckets)
    )
    ordered = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
    shuffled: Epoch = rng.permutation(_cut(ordered, params.batch_size))
    return shuffled


def pair_stream(
    pairs: TrainingPairs, lengths: Lengths, params: RunParams, seed: int, position: int = 0
) -> Stream:
    """Batches of caption rows, as `train.pairs` says.

    With `captions: all` an epoch goes through the images once for every caption they have: each
    round takes another caption of each image, in a new order, and leaves out its incomplete rest;
    with `one` it is one round, of captions drawn at random. Unless `unique_images` is off, no batch
    holds two captions of one image. Hard negatives regroup the captions of a round and lose none;
    they take the place of `train.buckets`.

    Args:
        pairs: captions with the rows of their images.
        lengths: tokens of every caption.
        params: sizes, and the make-up of batches.
        seed: of the order.
        position: batches that were taken before.

    Raises:
        InputError: there are fewer images, or captions, than one batch takes.
    """
    size, settings = params.train.batch_size, params.train.pairs
    by_image = _captions_by_image(pairs.image_rows)
    if settings.captions == "all" and not settings.unique_images:
        _require(len(pairs), size, "training captions")
        epoch = functools.partial(_mixed_epoch, pairs, lengths, params)
    else:
        _require(len(by_image), size, "training images")
        epoch = functools.partial(_pair_epoch, pairs, by_image, lengths, params)
    return Stream(epoch, [seed, 1], position)


def _pair_epoch(
    pairs: TrainingPairs,
    by_image: list[OfImage],
    lengths: Lengths,
    params: RunParams,
    rng: np.random.Generator,
) -> Epoch:
    shuffled = [rng.permutation(captions) for captions in by_image]
    most = max(len(captions) for captions in shuffled)
    rounds = range(most if params.train.pairs.captions == "all" else 1)
    batches = []
    for number in rounds:
        rows = np.array([captions[number] for captions in shuffled if number < len(captions)])
        rng.shuffle(rows)
        batches.append(_group(pairs, rows, lengths, params, rng))
    return np.concatenate(batches)


def _mixed_epoch(
    pairs: TrainingPairs, lengths: Lengths, params: RunParams, rng: np.random.Generator
) -> Epoch:
    return _group(pairs, rng.permutation(len(pairs)), lengths, params, rng)


def _group(
    pairs: TrainingPairs,
    rows: Rows,
    lengths: Lengths,
    params: RunParams,
    rng: np.random.Generator,
) -> Epoch:
    """Rows in random order as batches: of hard negatives where they are asked for, or buckets."""
    if not params.train.pairs.hard_negatives:
        return bucketed(rows, lengths, params.train, rng)
    return _bring_hard_negatives(pairs, _cut(rows, params.train.batch_size), params, rng)


def _bring_hard_negatives(
    pairs: TrainingPairs, batches: Epoch, params: RunParams, rng: np.random.Generator
) -> Epoch:
    """Regroup the captions of a few batches at a time."""
    settings = params.train.pairs
    noise = loss_of(params.train.objective, params.loss).filter
    grouped = []
    for start in range(0, len(batches), settings.pool):
        rows = batches[start : start + settings.pool].ravel()
        order = hard_negative_order(
            *pairs.teacher(rows, torch.device("cpu")),
            batch_size=params.train.batch_size,
            neighbours=settings.hard_negatives,
            noise=noise,
            image_rows=pairs.image_rows[rows],
        )
        grouped.append(rng.permutation(_cut(rows[order], params.train.batch_size)))
    return np.concatenate(grouped) if grouped else batches


def _cut(rows: Rows, batch_size: int) -> Epoch:
    whole = len(rows) // batch_size * batch_size
    return rows[:whole].reshape(-1, batch_size)


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


def epoch_batches(pairs: TrainingPairs, params: TrainParams) -> int:
    """Batches of pairs in one epoch, counted as METHOD does: captions read, by the batch size."""
    one = params.pairs.captions == "one"
    read = len(np.unique(pairs.image_rows)) if one else len(pairs)
    return max(1, read // params.batch_size)


def _captions_by_image(image_rows: Int64[np.ndarray, " captions"]) -> list[OfImage]:
    order = np.argsort(image_rows, kind="stable")
    starts = np.flatnonzero(np.diff(image_rows[order])) + 1
    return list(np.split(order, starts))


def _require(count: int, batch_size: int, what: str) -> None:
    if count < batch_size:
        raise InputError(
            f"train.batch_size is {batch_size}, but there are only {count} {what}.",
            "lower train.batch_size, or use more data.",
        )
