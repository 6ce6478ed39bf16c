"""Read -> decode -> encode -> write: rows become shards of the cache, in one process.

Threads read and decode images while the teacher encodes; another thread writes shards. Which rows
make a shard, and which a batch, depends only on the rows and on what the cache holds at the start.
A run that was killed therefore resumes with the same batches that it would have encoded next.
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Int64
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.batching import ahead, length_batches
from pipeline.core.errors import ModelError
from pipeline.core.progress import counter, progress
from pipeline.download.packed_images import PackedImages, Rejection
from pipeline.features.cache import (
    FeatureCache,
    Keys,
    KeySet,
    Kind,
    content_key,
    first_of_each,
    text_keys,
)
from pipeline.features.teacher import Teacher
from pipeline.params.features import FeaturesParams

if TYPE_CHECKING:
    import pandas as pd
    from tqdm import tqdm


Prepared = Rejection | tuple[Keys, Tensor | None]
"""An image that was read: its key, and its pixels if they are to be encoded."""


@dataclass(frozen=True)
class ShardResult:
    """The outcome of the rows of one shard; of images, these are consecutive.

    Results come in any order; each row to be encoded is in exactly one of them.
    """

    start: int
    """The first row that the shard may hold; no two results share it."""
    keys: Keys
    """Of all rows; those of rejected rows are 0."""
    rejected: dict[int, Rejection]
    """By row, counted from `start`."""
    encoded: int
    """Rows that the teacher had to encode."""


EncodedShard = tuple[ShardResult, Keys, Float16[np.ndarray, "new dim"]]
"""An outcome, and the rows that are to be written."""


@dataclass(frozen=True)
class FeatureExtractor:
    """A teacher with its cache, and the sizes of batches and shards."""

    teacher: Teacher
    cache: FeatureCache
    params: FeaturesParams
    _: KW_ONLY
    show_progress: bool = True
    """Rate and time left, on stderr."""

    def encode_images(self, images: PackedImages, known: KeySet) -> Iterator[ShardResult]:
        """Cache the features of all images, shard by shard.

        Args:
            images: the images.
            known: keys of images that need not be encoded; new ones are added.

        Raises:
            InputError: an archive is missing or damaged as a whole.
            ModelError: the teacher gives features that are not finite.
        """

        def prepare(row: int) -> Prepared:
            content = images.read(row)
            if isinstance(content, Rejection):
                return content
            key = content_key(content)[None]
            if known.contains(key)[0]:
                return key, None
            decoded = self.teacher.decode(content)
            return decoded if isinstance(decoded, Rejection) else (key, decoded)

        rows, size = range(len(images)), self.params.shard_rows
        prepared = ahead(
            prepare,
            progress(rows, what="images", unit="image", show=self.show_progress),
            threads=self.params.workers,
            depth=2 * self.params.batch_size + self.params.workers,
        )
        shards = (
            self._encode_shard(prepared, rows[start : start + size], known)
            for start in rows[::size]
        )
        with contextlib.closing(prepared):
            yield from _write_behind(self.cache, "images", shards)

    def _encode_shard(
        self, prepared: Iterator[Prepared], rows: range, known: KeySet
    ) -> EncodedShard:
        """Take the images of these rows, and encode the new ones."""
        keys = np.zeros((len(rows), 16), np.uint8)
        new: dict[bytes, int] = {}
        rejected: dict[int, Rejection] = {}
        features: list[NDArray[np.float16]] = []
        waiting: list[Tensor] = []
        for row, item in zip(range(len(keys)), prepared, strict=False):
            if isinstance(item, Rejection):
                rejected[row] = item
                continue
            key, pixels = item
            keys[row] = key[0]
            if pixels is None or key.tobytes() in new or known.contains(key)[0]:
                continue
            new[key.tobytes()] = row
            waiting.append(pixels)
            if len(waiting) == self.params.batch_size:
                features.append(self._encode_batch(waiting))
        if waiting:
            features.append(self._encode_batch(waiting))
        added = keys[list(new.values())]
        known.add(added)
        result = ShardResult(rows.start, keys, rejected, len(new))
        return result, added, np.concatenate(features or [_NONE])

    def _encode_batch(self, waiting: list[Tensor]) -> Float16[np.ndarray, "batch dim"]:
        """Encode the images that wait, and empty the list."""
        features = _to_float16(self.teacher.encode_images(torch.stack(waiting)))
        waiting.clear()
        return features

    def encode_captions(self, captions: "NewCaptions") -> Iterator[ShardResult]:
        """Cache the features of captions, shard by shard.

        Raises:
            ModelError: the teacher gives features that are not finite.
        """
        bar = counter("captions", "caption", captions.total, show=self.show_progress)
        yield from encode_texts(self.teacher, self.cache, captions, self.params.batch_size, bar)


@runtime_checkable
class TextTower(Protocol):
    """What encodes texts: a CLIP teacher, or a sentence encoder."""

    def tokenize(self, captions: Sequence[str], /) -> Any:
        """Token ids of texts."""
        ...

    def lengths(self, tokens: Any, /) -> Int64[np.ndarray, " captions"]:
        """How many tokens of each text its feature depends on."""
        ...

    def encode_tokens(self, tokens: Any, rows: NDArray[np.intp], /) -> Float[Tensor, "batch dim"]:
        """Features of these rows of `tokens`, on the CPU, float32."""
        ...


def encode_texts(
    tower: TextTower,
    cache: FeatureCache,
    texts: "NewCaptions",
    batch_size: int,
    bar: "tqdm[Any]",
) -> Iterator[ShardResult]:
    """Cache the features of texts, shard by shard, while a thread tokenises the next ones.

    Raises:
        ModelError: a feature is not finite.
    """

    def tokenize(shard: CaptionShard) -> tuple[CaptionShard, Any]:
        return shard, tower.tokenize(shard.captions)

    def encode(shard: CaptionShard, tokens: Any) -> EncodedShard:
        batches, parts = length_batches(tower.lengths(tokens).tolist(), batch_size), []
        for rows in batches:
            parts.append(_to_float16(tower.encode_tokens(tokens, rows)))
            bar.update(len(rows))
        features = np.concatenate(parts)[np.argsort(np.concatenate(batches))]
        return ShardResult(shard.start, shard.keys, {}, len(shard.keys)), shard.keys, features

    tokenized = ahead(tokenize, texts, threads=1, depth=2)
    with contextlib.closing(tokenized), bar:
        yield from _write_behind(cache, "captions", itertools.starmap(encode, tokenized))


@dataclass(frozen=True)
class CaptionShard:
    """Captions that make one shard, and the first row that it may hold."""

    start: int
    captions: list[str]
    keys: Keys


@dataclass(frozen=True)
class NewCaptions:
    """Captions to be encoded, as shards; each is of `shard_rows` consecutive rows of the table."""

    captions: "pd.Series[str]"
    """The whole column."""
    keys: Keys
    """Of all rows."""
    wanted: Bool[np.ndarray, " rows"]
    """Which rows are to be encoded."""
    shard_rows: int

    @property
    def total(self) -> int:
        """How many are to be encoded."""
        return int(self.wanted.sum())

    def __iter__(self) -> Iterator[CaptionShard]:
        for start in range(0, len(self.captions), self.shard_rows):
            rows = start + np.flatnonzero(self.wanted[start : start + self.shard_rows])
            if len(rows):
                yield CaptionShard(start, self.captions.iloc[rows].tolist(), self.keys[rows])


def collect(results: Iterable[ShardResult], rows: int) -> tuple[Keys, dict[int, Rejection], int]:
    """The keys of all images, why the rejected ones have none, and how many were encoded.

    Raises:
        RuntimeError: an engine left rows out or gave some twice; others would get their keys.
    """
    keys, encoded = np.zeros((rows, 16), np.uint8), 0
    rejected: dict[int, Rejection] = {}
    given = np.zeros(rows, np.int8)
    for result in results:
        given[result.start : result.start + len(result.keys)] += 1
        keys[result.start : result.start + len(result.keys)] = result.keys
        rejected |= {result.start + row: why for row, why in result.rejected.items()}
        encoded += result.encoded
    if (given != 1).any():
        row = int((given != 1).argmax())
        raise RuntimeError(f"the engine gave row {row} {given[row]} times")
    return keys, dict(sorted(rejected.items())), encoded


def find_new(texts: "pd.Series[str]", cache: FeatureCache, shard_rows: int) -> NewCaptions:
    """The texts that are neither cached nor duplicates of earlier ones."""
    keys = np.zeros((len(texts), 16), np.uint8)
    for start in range(0, len(texts), shard_rows):
        rows = slice(start, start + shard_rows)
        keys[rows] = text_keys(texts.iloc[rows].tolist())
    new = first_of_each(keys) & ~cache.known("captions").contains(keys)
    return NewCaptions(texts, keys, new, shard_rows)


def _write_behind(
    cache: FeatureCache, kind: Kind, shards: Iterable[EncodedShard]
) -> Iterator[ShardResult]:
    """Write shards in a thread, one at a time; a shard that was begun is always finished."""
    pending: Future[object] | None = None
    with ThreadPoolExecutor(1) as thread:
        for result, keys, features in shards:
            if pending is not None:
                pending.result()
            pending = thread.submit(cache.write, kind, keys, features)
            yield result
        if pending is not None:
            pending.result()


_NONE = np.empty((0, 0), np.float16)


def _to_float16(features: Float[Tensor, "batch dim"]) -> Float16[np.ndarray, "batch dim"]:
    values = features.to(torch.float16)
    if not torch.isfinite(values).all():
        raise ModelError(
            "the teacher gave features that are not finite in float16.",
            "check the teacher's weights; another features.precision or model may be needed.",
        )
    return values.numpy()
