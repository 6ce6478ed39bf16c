"""The teacher's features of all rows: missing ones are encoded, then all are joined."""

import contextlib
import functools
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from jaxtyping import Bool

from pipeline.core.errors import InputError
from pipeline.core.progress import log
from pipeline.download.packed_images import PackedImages, Rejection
from pipeline.download.records import Pairs
from pipeline.features.cache import FeatureCache, Keys, KeySet, Kind, first_of_each, text_keys
from pipeline.features.encode import FeatureExtractor, NewCaptions, ShardResult
from pipeline.features.hdf5 import DamagedFeaturesError
from pipeline.features.rows import FeatureRows, Features, StackedRows
from pipeline.features.store import write_features
from pipeline.features.teacher import Teacher
from pipeline.features.text_teacher import TextTeacher
from pipeline.params.features import FeaturesParams

REJECTED = ("kind", "image_id", "caption_id", "archive", "member", "reason", "detail")
"""Columns of the table of rejected rows."""


@runtime_checkable
class Engine(Protocol):
    """Encodes rows into the cache: one process (`FeatureExtractor`), or a cluster.

    Results come in any order; each row to be encoded is in exactly one of them. The `start` of a
    result says which rows it is about.
    """

    def encode_images(self, images: PackedImages, known: KeySet) -> Iterator[ShardResult]:
        """See `FeatureExtractor.encode_images`."""
        ...

    def encode_captions(self, captions: NewCaptions) -> Iterator[ShardResult]:
        """See `FeatureExtractor.encode_captions`."""
        ...


@contextlib.contextmanager
def make_engine(params: FeaturesParams, teacher: Teacher, cache: FeatureCache) -> Iterator[Engine]:
    """The engine that `params.engine` names, for as long as the block runs.

    Raises:
        ResourceError: ray is wanted and not installed, or the cluster cannot be reached.
    """
    if params.engine == "local":
        yield FeatureExtractor(teacher, cache, params)
        return
    from pipeline.features.cluster import ray_engine

    with ray_engine(params, teacher, cache) as engine:
        yield engine


class TooManyRejectedError(InputError):
    """More rows were rejected than allowed; `rejected` lists them, with the columns REJECTED."""

    def __init__(self, what: str, fix: str, rejected: pd.DataFrame) -> None:
        super().__init__(what, fix)
        self.rejected = rejected


@dataclass(frozen=True)
class Extraction:
    """Features of all readable rows, and why the others have none."""

    features: Features
    rejected: pd.DataFrame
    """One row an unusable image or caption, with the columns REJECTED."""
    metrics: dict[str, Any]
    times: dict[str, int | float]
    """Values that differ from run to run: how many rows were encoded, and how fast."""


Kept = Bool[np.ndarray, " rows"]
"""Which rows have features."""


@dataclass(frozen=True)
class Side:
    """Images or captions: which rows are rejected, and the features of those that are kept."""

    rejected: dict[int, Rejection]
    rows: Callable[[Kept], FeatureRows]

    def kept(self, count: int) -> Kept:
        """Which of `count` rows have features."""
        kept = np.ones(count, dtype=bool)
        kept[list(self.rejected)] = False
        return kept


@dataclass(frozen=True)
class _Encoded:
    """Images or captions: the keys of all rows, the rejected ones, and the time it took."""

    keys: Keys
    rejected: dict[int, Rejection]
    computed: int
    seconds: float

    @property
    def rate(self) -> float:
        """Computed rows per second; 0 if there was nothing to compute."""
        return round(self.computed / self.seconds, 1) if self.computed else 0.0

    def side(self, cache: FeatureCache, kind: Kind) -> Side:
        """Its rows, from the cache."""
        return Side(self.rejected, lambda kept: cache.rows(kind, self.keys[kept]))


def extract_features(
    pairs: Pairs,
    engine: Engine,
    cache: FeatureCache,
    params: FeaturesParams,
    text: TextTeacher | None = None,
) -> Extraction:
    """Encode rows that the cache does not hold yet, and join all features of the pairs.

    Captions of rejected images are left out. The features of the result are read from the cache,
    and verified, when they are asked for.

    Args:
        pairs: images and captions.
        engine: encodes into the cache.
        cache: of the teacher.
        params: sizes, and the share of rows that may be rejected.
        text: the text teacher with the text-only sentences, if there is one.

    Raises:
        TooManyRejectedError: the share of images or captions that cannot be used is above
            `max_rejected`, or none is left.
        InputError: there are no rows, or the cache lost some during the run.
    """
    images, times = _encode_images(pairs, engine, cache), {}

    def encode_captions(texts: "pd.Series[str]") -> Side:
        empty = np.array([not caption.strip() for caption in texts], dtype=bool)
        captions = _encode_texts(texts, empty, engine.encode_captions, cache, params.shard_rows)
        times.update(_times(images=images, captions=captions))
        return captions.side(cache, "captions")

    side = images.side(cache, "images")
    extraction = join_sides(pairs, side, encode_captions, params.max_rejected)
    kept = side.kept(len(images.keys))
    repeated = _count_repeated(pairs.images[kept], images.keys[kept])
    extraction = replace(extraction, metrics=extraction.metrics | repeated, times=times)
    return extraction if text is None else with_text(extraction, pairs, text, params)


def join_sides(
    pairs: Pairs, images: Side, captions_of: Callable[["pd.Series[str]"], Side], limit: float
) -> Extraction:
    """Join the features of images and captions; captions of rejected images are left out.

    Args:
        pairs: images and captions.
        images: features of the images.
        captions_of: gives the features of captions.
        limit: the share of rows that may be rejected.

    Raises:
        TooManyRejectedError: as `extract_features`.
        InputError: there are no rows.
    """
    rejected_images = _rejected_table("image", pairs.images, images.rejected)
    _check_share(rejected_images, rejected_images, len(pairs.images), limit)
    image_is_kept = images.kept(len(pairs.images))
    kept_images = pairs.images[image_is_kept]
    table = pairs.captions[pairs.captions["image_id"].isin(kept_images["image_id"])]
    captions = captions_of(table["caption"])
    rejected_captions = _rejected_table("caption", table, captions.rejected)
    rejected = pd.concat([rejected_images, rejected_captions], ignore_index=True)
    _check_share(rejected_captions, rejected, len(table), limit)
    caption_is_kept = captions.kept(len(table))
    kept_captions = table[caption_is_kept]
    image_ids = kept_images["image_id"].to_numpy(np.int64)
    features = Features(
        images=images.rows(image_is_kept),
        image_ids=image_ids,
        captions=captions.rows(caption_is_kept),
        caption_ids=kept_captions["caption_id"].to_numpy(np.int64),
        caption_image=pd.Index(image_ids)
        .get_indexer(pd.Index(kept_captions["image_id"]))
        .astype(np.int64),
    )
    metrics = {
        "images": len(features.images),
        "captions": len(features.captions),
        "rejected": len(rejected),
        "rejected_by_reason": rejected["reason"].value_counts().to_dict(),
        "dim": features.dim,
    }
    return Extraction(features, rejected, metrics, {})


def with_text(
    extraction: Extraction, pairs: Pairs, text: TextTeacher, params: FeaturesParams
) -> Extraction:
    """The features with the text teacher's rows of the kept captions and of the sentences."""
    table = pairs.captions
    kept = table.loc[table["caption_id"].isin(extraction.features.caption_ids), "caption"]
    features, encoded = _add_text(extraction.features, kept, text, params)
    metrics = {"sentences": len(text.sentences), "text_dim": text.dim}
    return replace(
        extraction,
        features=features,
        metrics=extraction.metrics | metrics,
        times=extraction.times | _times(texts=encoded),
    )


def write_extraction(
    out: Path,
    pairs: Pairs,
    engine: Engine,
    cache: FeatureCache,
    params: FeaturesParams,
    text: TextTeacher | None = None,
) -> Extraction:
    """Extract features and write them to `out`; damaged shards are computed again.

    Raises:
        InputError: as `extract_features`; or a shard is damaged again right after it was computed.
        ResourceError: a shard cannot be read, or `out` cannot be written.
    """
    dropped: set[Path] = set()
    while True:
        try:
            extraction = extract_features(pairs, engine, cache, params, text)
            attributes = None if text is None else text.attributes
            corpus = pairs.fingerprint()
            write_features(out, extraction.features, cache.teacher, corpus, attributes)
        except DamagedFeaturesError as error:
            if error.path in dropped:
                raise
            dropped.add(error.path)
            cache.drop(error.path)
        else:
            return extraction


def _encode_images(pairs: Pairs, engine: Engine, cache: FeatureCache) -> _Encoded:
    members, archives = pairs.images["member"].array, pairs.images["archive"].array
    keys, computed = np.zeros((len(members), 16), np.uint8), 0
    rejected: dict[int, Rejection] = {}
    started = time.perf_counter()
    packed, known = PackedImages(pairs.folder, archives, members), cache.known("images")
    for result in _each_row_once(engine.encode_images(packed, known), len(members)):
        keys[result.start : result.start + len(result.keys)] = result.keys
        rejected |= {result.start + row: why for row, why in result.rejected.items()}
        computed += result.encoded
    return _Encoded(keys, rejected, computed, time.perf_counter() - started)


def _encode_texts(
    texts: "pd.Series[str]",
    empty: Bool[np.ndarray, " texts"],
    encode: Callable[[NewCaptions], Iterator[ShardResult]],
    cache: FeatureCache,
    shard_rows: int,
) -> _Encoded:
    """Encode the texts that are neither empty, nor cached, nor duplicates of earlier ones."""
    keys = np.zeros((len(texts), 16), np.uint8)
    for start in range(0, len(texts), shard_rows):
        rows = slice(start, start + shard_rows)
        keys[rows] = text_keys(texts.iloc[rows].tolist())
    new = first_of_each(keys) & ~empty & ~cache.known("captions").contains(keys)
    started = time.perf_counter()
    results = encode(NewCaptions(texts, keys, new, shard_rows))
    computed = sum(result.encoded for result in _each_row_once(results, int(new.sum())))
    rejected = dict.fromkeys(np.flatnonzero(empty).tolist(), _EMPTY)
    return _Encoded(keys, rejected, computed, time.perf_counter() - started)


def _add_text(
    features: Features, captions: "pd.Series[str]", text: TextTeacher, params: FeaturesParams
) -> tuple[Features, _Encoded]:
    """The features with the text teacher's rows of the captions and of the sentences."""
    texts = pd.concat([captions, pd.Series(text.sentences, dtype="str")], ignore_index=True)
    none = np.zeros(len(texts), dtype=bool)
    encoded = [
        _encode_texts(
            texts,
            none,
            functools.partial(encoder.encode, cache, batch_size=params.batch_size),
            cache,
            params.shard_rows,
        )
        for encoder, cache in text.encoders
    ]
    keys = encoded[0].keys
    sides = [
        StackedRows([cache.rows("captions", side) for _, cache in text.encoders], text.shares)
        for side in (keys[: len(captions)], keys[len(captions) :])
    ]
    computed, seconds = sum(one.computed for one in encoded), sum(one.seconds for one in encoded)
    return (
        replace(features, caption_text=sides[0], sentence_text=sides[1]),
        _Encoded(keys, {}, computed, seconds),
    )


_EMPTY = Rejection("empty", "the caption holds no text")


def _each_row_once(results: Iterator[ShardResult], rows: int) -> Iterator[ShardResult]:
    """The results as they come.

    Raises:
        RuntimeError: the engine does not keep its contract; rows that it left out would get the
            keys of others.
    """
    starts: set[int] = set()
    given = 0
    for result in results:
        if result.start in starts:
            raise RuntimeError(f"the engine gave the rows from {result.start} twice")
        starts.add(result.start)
        given += len(result.keys)
        yield result
    if given != rows:
        raise RuntimeError(f"the engine gave {given} of {rows} rows")


def _rejected_table(kind: str, rows: pd.DataFrame, rejected: dict[int, Rejection]) -> pd.DataFrame:
    reasons = [rejected[row] for row in sorted(rejected)]
    chosen = rows.iloc[sorted(rejected)].assign(
        kind=kind,
        reason=[why.reason for why in reasons],
        detail=[why.detail for why in reasons],
    )
    table = chosen.reindex(columns=list(REJECTED))
    for row in table.head(5).to_dict("records"):
        log.warning("rejected %s: %s (%s)", _name_row(row), row["reason"], row["detail"])
    return table


def _name_row(row: Mapping[Hashable, Any]) -> str:
    if row["kind"] == "image":
        return f"image {row['member']} of {Path(row['archive']).name}"
    return f"caption {row['caption_id']} of image {row['image_id']}"


def _check_share(found: pd.DataFrame, rejected: pd.DataFrame, rows: int, limit: float) -> None:
    """Refuse too many rejected rows of one kind; `rejected` are those of both so far."""
    if not rows:
        raise InputError(
            "there are no images or no captions to encode.",
            "check the pairs: `dvc repro download`.",
        )
    if not len(found):
        return
    first = dict(found.iloc[0])
    why = f"the first, {_name_row(first)}: {first['reason']} ({first['detail']})"
    if len(found) == rows:
        what, fix = f"all {rows} {first['kind']}s were rejected", "check the source of the pairs."
    elif len(found) > limit * rows:
        what = f"{len(found)} of {rows} {first['kind']}s were rejected, more than "
        what += f"features.max_rejected = {limit:g} allows"
        fix = "repair the source of the pairs, or raise features.max_rejected."
    else:
        return
    raise TooManyRejectedError(f"{what}, {why}.", fix, rejected)


def _count_repeated(images: pd.DataFrame, keys: Keys) -> dict[str, int]:
    """How many pictures are equal to an earlier one, and how many are in several splits."""
    _, first, which = np.unique(keys.view(np.uint64)[:, 0], return_index=True, return_inverse=True)
    splits = images["split"].groupby(which).nunique()
    across = np.flatnonzero(splits > 1)
    if across.size:
        row = images.iloc[first[across[0]]]
        log.warning(
            "%s pictures are in several splits, byte for byte, such as %s of %s: training on them "
            "raises their scores",
            f"{across.size:,}",
            row["member"],
            Path(row["archive"]).name,
        )
    return {
        "images_repeated": len(which) - len(first),
        "images_in_several_splits": int(across.size),
    }


def _times(**sides: _Encoded) -> dict[str, int | float]:
    """How many images and captions were computed, and how many per second."""
    counts = {f"{side}_encoded": one.computed for side, one in sides.items()}
    return counts | {f"{side}_per_second": one.rate for side, one in sides.items()}
