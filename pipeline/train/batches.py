"""Two streams of batches, text-only sentences and pairs, and the schedule that mixes them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64

from pipeline.core.errors import InputError
from pipeline.features.teacher_rows import SplitPairs, TeacherRows
from pipeline.params.train import TrainParams
from pipeline.train.mining import hard_negative_order
from pipeline.train.run_params import RunParams

Rows = Int64[np.ndarray, " batch"]
Lengths = Int64[np.ndarray, " rows"]
OfImage = Int64[np.ndarray, " _"]
"""The caption rows of one image."""
Epoch = Int64[np.ndarray, "batches batch_size"]


@dataclass(frozen=True)
class TrainingData:
    """Text-only sentences, and image-caption pairs of the train split."""

    sentences: list[str]
    """None of them: every step takes pairs."""
    pairs: SplitPairs


class Stream:
    """Endless batches of rows.

    An epoch is a pure function of the seed and its number, so the count of batches taken is all
    that a resumed run needs.

    Args:
        make_epoch: draws the batches of one epoch, (batches, batch_size) rows.
        seed: sets this stream apart from others.
    """

    def __init__(self, make_epoch: Callable[[np.random.Generator], Epoch], seed: list[int]) -> None:
        self.position = 0
        """Batches taken so far; may be set."""
        self.epoch = 0
        """Number of the epoch that the last batch was of."""
        self._make_epoch = make_epoch
        self._seed = seed
        self._batches = self._draw(0)

    def __next__(self) -> Rows:
        number, index = divmod(self.position, len(self._batches))
        if number != self.epoch:
            self.epoch, self._batches = number, self._draw(number)
        self.position += 1
        rows: Rows = self._batches[index]
        return rows

    def __iter__(self) -> Iterator[Rows]:
        return self

    def _draw(self, number: int) -> Epoch:
        return self._make_epoch(np.random.default_rng([*self._seed, number]))


def text_stream(lengths: Lengths, params: TrainParams, seed: int) -> Stream:
    """Batches of sentence rows: every epoch a new order, its incomplete rest left out.

    Args:
        lengths: tokens of every sentence, for `train.length_buckets`.
        params: sizes.
        seed: of the order.

    Raises:
        InputError: there are some rows, but fewer than one batch takes.
    """
    if len(lengths):
        _require(len(lengths), params.batch_size, "text-only sentences")

    def epoch(rng: np.random.Generator) -> Epoch:
        return bucketed(rng.permutation(len(lengths)), lengths, params, rng)

    return Stream(epoch, [seed, 0])


def bucketed(rows: Rows, lengths: Lengths, params: TrainParams, rng: np.random.Generator) -> Epoch:
    """Batches of near-equal length, in random order; the incomplete rest is left out.

    The rows of `train.length_buckets` successive batches are sorted by length before they are cut
    into batches. Apart from length, chance decides which rows meet: negatives are about as long as
    their anchor, so that length alone does not tell them from the positive.

    Args:
        rows: in random order.
        lengths: tokens by row.
        params: batch size and buckets.
        rng: of the batches' order.
    """
    batches = _cut(rows, params.batch_size)
    size = params.length_buckets
    if size == 1 or not len(batches):
        return batches
    pools = (batches[n : n + size].ravel() for n in range(0, len(batches), size))
    ordered = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
    shuffled: Epoch = rng.permutation(_cut(ordered, params.batch_size))
    return shuffled


def pair_stream(pairs: SplitPairs, lengths: Lengths, params: RunParams, seed: int) -> Stream:
    """Batches of caption rows, as `train.pairs` says.

    With `captions: all` an epoch goes through the images once for every caption they have: each
    round takes another caption of each image, in a new order, and leaves out its incomplete rest;
    with `one` it is one round, of captions drawn at random. Unless `unique_images` is off, no batch
    holds two captions of one image. Hard negatives regroup the captions of a round and lose none;
    they take the place of `train.length_buckets`.

    Args:
        pairs: captions with the rows of their images.
        lengths: tokens of every caption.
        params: sizes, and the make-up of batches.
        seed: of the order.

    Raises:
        InputError: there are fewer images, or captions, than one batch takes.
    """
    size, settings = params.train.batch_size, params.train.pairs
    by_image = _captions_by_image(pairs.image_rows)
    is_mixed = settings.captions == "all" and not settings.unique_images
    if is_mixed:
        _require(len(pairs), size, "training captions")
    else:
        _require(len(by_image), size, "training images")

    def epoch(rng: np.random.Generator) -> Epoch:
        if is_mixed:
            return _group(pairs, rng.permutation(len(pairs)), lengths, params, rng)
        shuffled = [rng.permutation(captions) for captions in by_image]
        rounds = max(map(len, shuffled)) if settings.captions == "all" else 1
        batches = []
        for number in range(rounds):
            rows = np.array([captions[number] for captions in shuffled if number < len(captions)])
            rng.shuffle(rows)
            batches.append(_group(pairs, rows, lengths, params, rng))
        return np.concatenate(batches)

    return Stream(epoch, [seed, 1])


class Siblings:
    """For every caption another one of its image, drawn anew for each epoch of pairs.

    Args:
        image_rows: which image each caption is of.
        seed: of the draws.
    """

    def __init__(self, image_rows: Int64[np.ndarray, " captions"], seed: int) -> None:
        self._image_rows = image_rows
        self._seed = seed
        self._drawn: tuple[int, Rows] = (-1, image_rows)

    @property
    def share(self) -> float:
        """Share of captions that have a sibling, 0 to 1."""
        counts = np.unique(self._image_rows, return_counts=True)[1]
        return float(counts[counts > 1].sum() / counts.sum())

    def __call__(self, rows: Rows, epoch: int) -> Rows:
        """The sibling of each caption; a caption without any is its own.

        Each one of an image's other captions is equally likely: they are put in a random circle, in
        which a caption takes the next.
        """
        if self._drawn[0] != epoch:
            rng = np.random.default_rng([self._seed, 4, epoch])
            order = np.lexsort((rng.random(len(self._image_rows)), self._image_rows))
            images = self._image_rows[order]
            starts = np.flatnonzero(np.diff(images, prepend=-1))
            after = np.arange(1, len(order) + 1)
            after[np.append(starts[1:], len(order)) - 1] = starts
            siblings = np.empty_like(order)
            siblings[order] = order[after]
            self._drawn = (epoch, siblings)
        chosen: Rows = self._drawn[1][rows]
        return chosen


def _group(
    pairs: SplitPairs, rows: Rows, lengths: Lengths, params: RunParams, rng: np.random.Generator
) -> Epoch:
    """Rows in random order as batches; a few of these at a time are regrouped by hard negatives."""
    settings, size = params.train.pairs, params.train.batch_size
    if not settings.hard_negatives:
        return bucketed(rows, lengths, params.train, rng)
    batches, teacher = _cut(rows, size), TeacherRows(pairs, torch.device("cpu"))
    grouped = [batches[:0]]
    for start in range(0, len(batches), settings.pool):
        pool = batches[start : start + settings.pool].ravel()
        order = hard_negative_order(
            *teacher(pool)[:2],
            batch_size=size,
            neighbours=settings.hard_negatives,
            noise=params.loss.filter,
            image_rows=pairs.image_rows[pool],
        )
        grouped.append(rng.permutation(_cut(pool[order], size)))
    return np.concatenate(grouped)


def _cut(rows: Rows, batch_size: int) -> Epoch:
    whole = len(rows) // batch_size * batch_size
    return rows[:whole].reshape(-1, batch_size)


@dataclass(frozen=True)
class Schedule:
    """Which steps are paired: every `every`-th one, or with `inverted` all but those."""

    every: int
    inverted: bool = False

    def paired_steps(self, steps: int) -> int:
        """How many of the first `steps` steps are paired."""
        kth = steps // self.every
        return steps - kth if self.inverted else kth

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
        text_batches: batches of text in one epoch; 0: there is no text, and every step is paired.
        pair_batches: batches of pairs in one epoch.

    Raises:
        InputError: `pair_every` wants steps of text, of which there is none.
    """
    if not text_batches:
        if pair_every not in {"auto", 1}:
            raise InputError(
                f"train.pair_every is {pair_every}, but there are no text-only sentences.",
                "set train.pair_every to 1.",
            )
        return Schedule(1)
    if pair_every != "auto":
        return Schedule(pair_every)
    k = text_batches // pair_batches
    if k > 1:
        return Schedule(k)
    return Schedule(max(2, pair_batches // text_batches + 1), inverted=True)


def epoch_batches(pairs: SplitPairs, params: TrainParams) -> int:
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
