"""Source `webdataset`: tar shards as img2dataset writes them, read in place, one after the other.

A sample is what shares everything before the first dot of its names: 000000012.jpg, .txt, .json.
Its .txt has a caption a line; without one, its .json has a caption, or a list of them.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.core.errors import InputError
from pipeline.core.files import reports_unreadable
from pipeline.core.plaintext import decode, is_blank
from pipeline.core.progress import log, progress
from pipeline.core.redact import one_line
from pipeline.download.archives import Archive
from pipeline.download.captions import is_missing, read_captions
from pipeline.download.folder import IMAGE_ENDINGS
from pipeline.download.pairing import PairRows
from pipeline.download.splits import place_of, split_at
from pipeline.download.tar_shards import fetch_shard, find_shards, is_remote
from pipeline.params.download import SplitsParams, WebdatasetParams

_SKIP = "download.webdataset.damaged"


@dataclass
class Sample:
    """What a shard holds under one key."""

    image: str | None = None
    """Member of its first image."""
    place: float = 0.0
    """Of that image between the splits; 0 where it was not asked for."""
    further: int = 0
    """Images after the first."""
    text: list[str] = field(default_factory=list)
    """The captions of its .txt, one a line."""
    described: list[str] = field(default_factory=list)
    """Those of its .json."""
    unreadable: InputError | None = None
    """Why captions that it has cannot be read."""

    @property
    def captions(self) -> list[str]:
        """Its captions; "" where it has none."""
        return self.text or self.described or [""]


@dataclass(frozen=True)
class Shard:
    """A shard at hand."""

    path: Path
    split: str | None = None
    """That of all its images; None: drawn by their bytes."""


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
        InputError: no sample has an image, or none a caption.
        ResourceError: a shard cannot be read.
    """
    counts = Counter(
        shards=total,
        shards_skipped=0,
        samples_without_image=0,
        images_further=0,
        captions_unreadable=0,
    )
    endings: Counter[str] = Counter()
    added = 0
    for shard in progress(shards, what="shards", unit="shard", total=total):
        try:
            with reports_unreadable(shard.path):
                shard.path.stat()  # one that is gone is no damaged one
            samples = read_shard(shard.path, endings, placed=shard.split is None)
        except InputError as error:
            on_damage(shard.path, error)
            counts["shards_skipped"] += 1
            continue
        _note(samples, counts)
        added += _add_samples(rows, shard, samples, splits)
    rows.left_out.update(counts)
    _require_both(rows, total, added, endings)


def _note(samples: Mapping[str, Sample], counts: Counter[str]) -> None:
    """Count what cannot be taken, and name the first of the captions."""
    for sample in samples.values():
        counts["samples_without_image"] += sample.image is None
        counts["images_further"] += sample.further
        if sample.unreadable is not None:
            counts["captions_unreadable"] += 1
            if counts["captions_unreadable"] <= _WARNINGS:
                log.warning("left out a caption: %s", sample.unreadable.what)


def _require_both(rows: PairRows, shards: int, added: int, endings: Counter[str]) -> None:
    shown = one_line(", ".join(ending for ending, _ in endings.most_common(_SHOWN)), 200) or "none"
    found = f"what follows the first dot of their members' names is {shown}"
    if not added:
        raise InputError(
            f"{shards:,} shards hold no sample with an image; {found}.",
            "check that they are webdataset shards: tars of 000.jpg with 000.txt or 000.json.",
        )
    if not rows.has_captions:
        raise InputError(
            f"no sample of {shards:,} shards has a caption; {found}.",
            "write captions as .txt, one a line, or under `caption` in .json.",
        )


_WARNINGS = 5
_SHOWN = 12


def _add_samples(
    rows: PairRows, shard: Shard, samples: Mapping[str, Sample], splits: SplitsParams
) -> int:
    """Add the samples that have an image; returns how many."""
    added = 0
    for sample in samples.values():
        if sample.image is not None:
            split = shard.split or split_at(sample.place, splits)
            image_id = rows.add_image(split, str(shard.path), sample.image)
            rows.add_captions(image_id, sample.captions)
            added += 1
    return added


def read_shard(
    path: Path, endings: Counter[str] | None = None, *, placed: bool = True
) -> dict[str, Sample]:
    """The samples of a shard by key, in the order of their first member.

    Of a sample's images the first counts. Hidden files, which some systems add, are no members.

    Args:
        path: the shard.
        endings: counts what follows the first dot of the members' names.
        placed: read the images too, for their places between the splits.

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
                _take(samples.setdefault(key, Sample()), ending, member, archive, placed)
                if endings is not None:
                    endings[ending] += 1
    return samples


def _key_and_ending(member: str) -> tuple[str | None, str]:
    folder, slash, base = member.rpartition("/")
    stem, _, ending = base.partition(".")
    return (folder + slash + stem if stem else None), ending.lower()


def _take(sample: Sample, ending: str, member: str, archive: Archive, placed: bool) -> None:
    if ending in IMAGE_ENDINGS:
        if sample.image is not None:
            sample.further += 1
            return
        sample.image = member
        sample.place = place_of(archive.read(member)) if placed else 0.0
    elif ending in _READERS:
        content, where = archive.read(member), f"{archive.path}: {one_line(member, _LONGEST)}"
        try:
            _READERS[ending](sample, decode(content, where), where)
        except InputError as error:
            sample.unreadable = error


def _take_text(sample: Sample, text: str, where: str) -> None:
    """One caption a line that is not empty, or a list of captions."""
    captions = read_captions(text.strip(), where)
    lines = (line for caption in captions for line in caption.split("\n"))
    sample.text = [line for line in lines if not (is_blank(line) or is_missing(line))]


def _take_json(sample: Sample, text: str, where: str) -> None:
    """What stands under `caption`, a text or a list of texts; a list alone are captions too."""
    try:
        about = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"{where} is no JSON.", "write the sample again.") from None
    captions = about.get("caption") if isinstance(about, dict) else about
    sample.described = read_captions(captions, f"{where}: caption")


_READERS = {"txt": _take_text, "json": _take_json}
_LONGEST = 120
