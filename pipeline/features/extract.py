"""The teacher's features of all rows: missing ones are encoded, then all are joined."""

import contextlib
import functools
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from pipeline.core.errors import InputError
from pipeline.core.progress import log
from pipeline.download.packed_images import PackedImages, Rejection
from pipeline.download.records import Pairs
from pipeline.features.cache import FeatureCache, Keys
from pipeline.features.cluster import RayEngine, ray_engine
from pipeline.features.encode import (
    FeatureExtractor,
    NewCaptions,
    ShardResult,
    collect,
    find_new,
)
from pipeline.features.hdf5 import DamagedFeaturesError
from pipeline.features.rows import Features, JoinedRows, StackedRows
from pipeline.features.store import write_features
from pipeline.features.teacher import Teacher
from pipeline.features.text_teacher import TextTeacher
from pipeline.params.features import FeaturesParams

REJECTED = ("kind", "image_id", "caption_id", "archive", "member", "reason", "detail")
"""Columns of the table of rejected rows."""


Engine = FeatureExtractor | RayEngine
"""Encodes rows into the cache: one process, or a cluster."""


@contextlib.contextmanager
def make_engine(params: FeaturesParams, teacher: Teacher, cache: FeatureCache) -> Iterator[Engine]:
    """The engine that `params.engine` names, for as long as the block runs.

    Raises:
        ResourceError: ray is wanted and not installed, or the cluster cannot be reached.
    """
    if params.engine == "local":
        yield FeatureExtractor(teacher, cache, params)
        return
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
    rows: Callable[[Kept], JoinedRows]
    encoded: int = 0
    """Rows that had to be encoded,"""
    seconds: float = 0.0
    """and how long that took."""

    def kept(self, count: int) -> Kept:
        """Which of `count` rows have features."""
        kept = np.ones(count, dtype=bool)
        kept[list(self.rejected)] = False
        return kept


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
    started = time.perf_counter()
    packed = PackedImages(pairs.folder, pairs.images["archive"].array, pairs.images["member"].array)
    keys, rejected, encoded = collect(
        engine.encode_images(packed, cache.known("images")), len(packed)
    )
    images = Side(
        rejected,
        lambda kept: cache.rows("images", keys[kept]),
        encoded,
        time.perf_counter() - started,
    )
    times = _times("images", images)

    def encode_captions(texts: "pd.Series[str]") -> Side:
        empty = np.array([not caption.strip() for caption in texts], dtype=bool)
        captions = _encode_texts(texts, empty, engine.encode_captions, cache, params.shard_rows)
        times.update(_times("captions", captions))
        return captions

    extraction = join_sides(pairs, images, encode_captions, params.max_rejected)
    kept = images.kept(len(keys))
    repeated = _count_repeated(pairs.images[kept], keys[kept])
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
    texts = pd.concat([kept, pd.Series(text.sentences, dtype="str")], ignore_index=True)
    none, is_caption = np.zeros(len(texts), dtype=bool), np.arange(len(texts)) < len(kept)
    sides = [
        _encode_texts(
            texts,
            none,
            functools.partial(encoder.encode, cache, batch_size=params.batch_size),
            cache,
            params.shard_rows,
        )
        for encoder, cache in text.encoders
    ]
    captions, sentences = (
        StackedRows([side.rows(chosen) for side in sides], text.shares)
        for chosen in (is_caption, ~is_caption)
    )
    return replace(
        extraction,
        features=replace(extraction.features, caption_text=captions, sentence_text=sentences),
        metrics=extraction.metrics | {"sentences": len(text.sentences), "text_dim": text.dim},
        times=extraction.times | _times("texts", *sides),
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


def _encode_texts(
    texts: "pd.Series[str]",
    empty: Kept,
    encode: Callable[[NewCaptions], Iterator[ShardResult]],
    cache: FeatureCache,
    shard_rows: int,
) -> Side:
    """Encode the texts that are new; those that are empty are rejected."""
    new = find_new(texts, cache, shard_rows)
    new = replace(new, wanted=new.wanted & ~empty)
    started = time.perf_counter()
    encoded = sum(result.encoded for result in encode(new))
    rejected = dict.fromkeys(np.flatnonzero(empty).tolist(), _EMPTY)
    return Side(
        rejected,
        lambda kept: cache.rows("captions", new.keys[kept]),
        encoded,
        time.perf_counter() - started,
    )


_EMPTY = Rejection("empty", "the caption holds no text")


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


def _times(name: str, *sides: Side) -> dict[str, int | float]:
    """How many rows were computed, and how many per second; 0 if there was nothing to compute."""
    encoded, seconds = sum(side.encoded for side in sides), sum(side.seconds for side in sides)
    rate = round(encoded / seconds, 1) if encoded else 0.0
    return {f"{name}_encoded": encoded, f"{name}_per_second": rate}
