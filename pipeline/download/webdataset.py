"""Source `webdataset`: tar shards as img2dataset writes them, read in place, one after the other.

A sample is what shares everything before the first dot of its names: 000000012.jpg, .txt, .json.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.download.archives import Archive, reports_unreadable
from pipeline.download.folder import IMAGE_ENDINGS
from pipeline.download.pairing import PairRows
from pipeline.download.shards import fetch_shard, find_shards, is_remote
from pipeline.download.splits import draw_split
from pipeline.errors import InputError
from pipeline.params.download import SplitsParams, WebdatasetParams
from pipeline.runtime import log, progress

_SKIP = "download.webdataset.damaged"


@dataclass
class Sample:
    """What a shard holds under one key."""

    image: str | None = None
    """Member of its first image."""
    text: str | None = None
    """Of its .txt."""
    described: str | None = None
    """The caption in its .json."""

    @property
    def caption(self) -> str:
        """Its caption; "" where it has none."""
        return self.described or "" if self.text is None else self.text


@dataclass(frozen=True)
class Shard:
    """A shard at hand."""

    path: Path
    split: str | None = None
    """That of all its images; None: drawn by their keys."""


def write_webdataset_pairs(
    rows: PairRows, params: WebdatasetParams, splits: SplitsParams, downloads: Path
) -> None:
    """Add the samples of all shards, in their order.

    Args:
        rows: gets the rows; their archives are the absolute paths of the shards.
        params: names the shards.
        splits: draws the splits.
        downloads: where shards with a URL are fetched to.

    Raises:
        InputError: a shard is not there or, unless such are to be skipped, damaged; or no sample
            has an image.
        DownloadError: a shard cannot be fetched.
        ResourceError: a shard cannot be read, which says nothing of its content; none is left out
            for that.
    """
    names = find_shards(params.shards or [])
    shards = (
        Shard(fetch_shard(name, downloads) if is_remote(name) else Path(name)) for name in names
    )
    skip = params.damaged == "skip"
    add_shards(rows, shards, splits, total=len(names), on_damage=_leave_out if skip else _refuse)


def _refuse(path: Path, error: InputError) -> None:
    raise InputError(
        error.what,
        f"get {path.name} again, or set {_SKIP}=skip to leave such shards out and count them.",
    )


def _leave_out(_path: Path, error: InputError) -> None:
    log.warning("left out: %s", error.what)


def add_shards(
    rows: PairRows,
    shards: Iterable[Shard],
    splits: SplitsParams,
    *,
    total: int,
    on_damage: Callable[[Path, InputError], None],
) -> None:
    """Add the samples of shards; what a shard holds is added as a whole or not at all.

    Args:
        rows: gets the rows, and the counts of what was left out.
        shards: one after the other.
        splits: draws the splits where a shard has none of its own.
        total: how many there are.
        on_damage: is told of each damaged shard, which is left out if it returns.

    Raises:
        InputError: no sample has an image.
        ResourceError: a shard cannot be read.
    """
    counts = Counter(shards=total, shards_skipped=0, samples_without_image=0)
    added = 0
    for shard in progress(shards, what="shards", unit="shard", total=total):
        try:
            with reports_unreadable(shard.path):
                shard.path.stat()  # one that is gone is no damaged one
            samples = read_shard(shard.path)
        except InputError as error:
            on_damage(shard.path, error)
            counts["shards_skipped"] += 1
            continue
        with_image = _add_samples(rows, shard, samples, splits)
        counts["samples_without_image"] += len(samples) - with_image
        added += with_image
    rows.left_out.update(counts)
    if not added:
        raise InputError(
            f"{total:,} shards hold no sample with an image.",
            "check that they are webdataset shards: tars of 000.jpg with 000.txt or 000.json.",
        )


def _add_samples(
    rows: PairRows, shard: Shard, samples: dict[str, Sample], splits: SplitsParams
) -> int:
    """Add the samples that have an image; returns how many."""
    added = 0
    for key, sample in samples.items():
        if sample.image is not None:
            split = shard.split or draw_split(key, splits)
            image_id = rows.add_image(split, str(shard.path), sample.image)
            rows.add_captions(image_id, [sample.caption])
            added += 1
    return added


def read_shard(path: Path) -> dict[str, Sample]:
    """The samples of a shard by key, in the order of their first member.

    Of a sample's images the first counts. Hidden files, which some systems add, are no members.

    Raises:
        InputError: it is damaged or truncated, or several members have one name.
        ResourceError: it cannot be read.
    """
    samples: dict[str, Sample] = {}
    with Archive(path) as archive:
        if archive.repeated:
            raise InputError(
                f"{path} holds {archive.repeated} members whose name another one has too.",
                "write the shard again, with a key of its own for every sample.",
            )
        for member in archive.sizes:
            key, ending = _key_and_ending(member)
            if key is not None:
                _take(samples.setdefault(key, Sample()), ending, member, archive)
    return samples


def _key_and_ending(member: str) -> tuple[str | None, str]:
    folder, slash, base = member.rpartition("/")
    stem, _, ending = base.partition(".")
    return (folder + slash + stem if stem else None), ending.lower()


def _take(sample: Sample, ending: str, member: str, archive: Archive) -> None:
    if ending == "txt":
        sample.text = archive.read(member).decode("utf-8-sig", "replace")
    elif ending == "json":
        sample.described = _described(archive.read(member))
    elif ending in IMAGE_ENDINGS and sample.image is None:
        sample.image = member


def _described(content: bytes) -> str | None:
    """The caption of a sample's json; None where it has none that is text."""
    try:
        caption = json.loads(content)["caption"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return caption if isinstance(caption, str) else None
