"""Read -> decode -> encode -> write: rows become shards of the cache, in one process.

Threads read and decode images while the teacher encodes; another thread writes shards. Which rows
make a shard, and which a batch, depends only on the rows and on what the cache holds at the start.
A run that was killed therefore resumes with the same batches that it would have encoded next.
"""

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
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
from pipeline.features.cache import FeatureCache, Keys, KeySet, Kind, content_key
from pipeline.features.images import Decoder
from pipeline.features.teacher import Teacher
from pipeline.params.features import FeaturesParams

if TYPE_CHECKING:
    import pandas as pd
    from tqdm import tqdm


@dataclass(frozen=True)
class ShardResult:
    """The outcome of the rows of one shard; of images, these are consecutive."""

    start: int
    """The first row that the shard may hold; no two results share it."""
    keys: Keys
    """Of all rows; those of rejected rows are 0."""
    rejected: dict[int, Rejection]
    """By row, counted from `start`."""
    encoded: int
    """Rows that the teacher had to encode."""


class FeatureExtractor:
    """A teacher with its cache.

    Args:
        teacher: computes features.
        cache: keeps them.
        params: sizes of batches and shards.
        show_progress: whether to show rate and time left on stderr.
    """

    def __init__(
        self,
        teacher: Teacher,
        cache: FeatureCache,
        params: FeaturesParams,
        *,
        show_progress: bool = True,
    ) -> None:
        self.teacher = teacher
        self.cache = cache
        self.params = params
        self._show = show_progress

    def encode_images(self, images: PackedImages, known: KeySet) -> Iterator[ShardResult]:
        """Cache the features of all images, shard by shard.

        Args:
            images: the images.
            known: keys of images that need not be encoded; new ones are added.

        Raises:
            InputError: an archive is missing or damaged as a whole.
            ModelError: the teacher gives features that are not finite.
        """
        rows, size = range(len(images)), self.params.shard_rows
        prepared = ahead(
            _Prepare(images, self.teacher.decode, known),
            progress(rows, what="images", unit="image", show=self._show),
            threads=self.params.workers,
            depth=2 * self.params.batch_size + self.params.workers,
        )
        with _Writer(self.cache, "images") as writer, contextlib.closing(prepared):
            for start in rows[::size]:
                shard = self._encode_shard(prepared, len(rows[start : start + size]), known)
                known.add(shard.new_keys)
                writer.write(shard.new_keys, shard.features)
                yield ShardResult(start, shard.keys, shard.rejected, len(shard.new_keys))

    def encode_captions(self, captions: "NewCaptions") -> Iterator[ShardResult]:
        """Cache the features of captions, shard by shard.

        Raises:
            ModelError: the teacher gives features that are not finite.
        """
        bar = counter("captions", "caption", captions.total, show=self._show)
        yield from encode_texts(self.teacher, self.cache, captions, self.params.batch_size, bar)

    def _encode_shard(
        self, prepared: Iterator["_Prepared"], rows: int, known: KeySet
    ) -> "_ImageShard":
        shard = _ImageShard(self.teacher, self.params.batch_size, rows)
        for row, item in zip(range(rows), prepared, strict=False):
            shard.take(row, item, known)
        shard.encode_pending()
        return shard


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

    tokenized = ahead(tokenize, texts, threads=1, depth=2)
    with _Writer(cache, "captions") as writer, contextlib.closing(tokenized), bar:
        for shard, tokens in tokenized:
            batches, parts = length_batches(tower.lengths(tokens).tolist(), batch_size), []
            for rows in batches:
                parts.append(_to_float16(tower.encode_tokens(tokens, rows)))
                bar.update(len(rows))
            order = np.argsort(np.concatenate(batches))
            writer.write(shard.keys, np.concatenate(parts)[order])
            yield ShardResult(shard.start, shard.keys, {}, len(shard.keys))


@dataclass(frozen=True)
class CaptionShard:
    """Captions that make one shard, and the first row that it may hold."""

    start: int
    captions: list[str]
    keys: Keys


class NewCaptions:
    """Captions to be encoded, as shards; each is of `shard_rows` consecutive rows of the table.

    Args:
        captions: the whole column.
        keys: of all rows.
        wanted: which rows are to be encoded.
        shard_rows: rows of the table that a shard covers.
    """

    def __init__(
        self,
        captions: "pd.Series[str]",
        keys: Keys,
        wanted: Bool[np.ndarray, " rows"],
        shard_rows: int,
    ) -> None:
        self.total = int(wanted.sum())
        self._captions = captions
        self._keys = keys
        self._wanted = wanted
        self._shard_rows = shard_rows

    def __iter__(self) -> Iterator[CaptionShard]:
        for start in range(0, len(self._captions), self._shard_rows):
            rows = start + np.flatnonzero(self._wanted[start : start + self._shard_rows])
            if len(rows):
                captions = self._captions.iloc[rows].tolist()
                yield CaptionShard(start, captions, self._keys[rows])


@dataclass(frozen=True)
class _Prepared:
    """An image that was read: its key, and its pixels if they are to be encoded."""

    key: Keys | None = None
    pixels: Tensor | None = None
    rejection: Rejection | None = None


class _Prepare:
    """Reads, hashes and decodes one image; runs in threads."""

    def __init__(self, images: PackedImages, decode: Decoder, known: KeySet) -> None:
        self._images = images
        self._decode = decode
        self._known = known

    def __call__(self, row: int) -> _Prepared:
        content = self._images.read(row)
        if isinstance(content, Rejection):
            return _Prepared(rejection=content)
        key = content_key(content)[None]
        if self._known.contains(key)[0]:
            return _Prepared(key)
        decoded = self._decode(content)
        if isinstance(decoded, Rejection):
            return _Prepared(rejection=decoded)
        return _Prepared(key, decoded)


class _ImageShard:
    """Collects the rows of one shard and encodes the new ones, batch by batch."""

    def __init__(self, teacher: Teacher, batch_size: int, rows: int) -> None:
        self.keys: Keys = np.zeros((rows, 16), np.uint8)
        self.rejected: dict[int, Rejection] = {}
        self._teacher = teacher
        self._batch_size = batch_size
        self._new: dict[bytes, int] = {}
        self._pending: list[Tensor] = []
        self._features: list[Float16[np.ndarray, "batch dim"]] = []

    @property
    def new_keys(self) -> Keys:
        """The keys of the rows that were encoded."""
        return self.keys[list(self._new.values())]

    @property
    def features(self) -> Float16[np.ndarray, "new dim"]:
        """And their features."""
        return np.concatenate(self._features or [np.empty((0, 0), np.float16)])

    def take(self, row: int, item: _Prepared, known: KeySet) -> None:
        """Take the next row; it is encoded if it is neither cached nor in this shard already."""
        if item.rejection is not None or item.key is None:
            self.rejected[row] = item.rejection or Rejection("unreadable", "")
            return
        self.keys[row] = item.key[0]
        name = item.key.tobytes()
        if item.pixels is None or name in self._new or known.contains(item.key)[0]:
            return
        self._new[name] = row
        self._pending.append(item.pixels)
        if len(self._pending) == self._batch_size:
            self.encode_pending()

    def encode_pending(self) -> None:
        """Encode the images that wait, as one batch."""
        if self._pending:
            features = self._teacher.encode_images(torch.stack(self._pending))
            self._features.append(_to_float16(features))
            self._pending = []


class _Writer:
    """Writes shards in a thread, one at a time; a shard that was begun is always finished."""

    def __init__(self, cache: FeatureCache, kind: Kind) -> None:
        self._cache = cache
        self._kind = kind
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[object] | None = None

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: object, _trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        if kind is None:
            self._wait()

    def write(self, keys: Keys, features: Float16[np.ndarray, "rows dim"]) -> None:
        """Write a shard after the previous one, whose error, if any, is raised here."""
        self._wait()
        self._pending = self._thread.submit(self._cache.write, self._kind, keys, features)

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()


def _to_float16(features: Float[Tensor, "batch dim"]) -> Float16[np.ndarray, "batch dim"]:
    values = features.to(torch.float16)
    if not torch.isfinite(values).all():
        raise ModelError(
            "the teacher gave features that are not finite in float16.",
            "check the teacher's weights; another features.precision or model may be needed.",
        )
    return values.numpy()
