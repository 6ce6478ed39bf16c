"""Source `webdataset`: tar shards as img2dataset writes them, read in place, one after the other.

The members of a sample share everything before the first dot of their names: 000000012.jpg, .txt,
.json. Its .txt has a caption a line; without one, its .json has a caption, or a list of them.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
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
from pipeline.download.splits import draw_split
from pipeline.download.tar_shards import fetch_shard, find_shards, is_remote
from pipeline.params.download import SplitsParams, WebdatasetParams

_WARNINGS = 5
_SHOWN = 12
_LONGEST = 120
"""Characters of a member's name, in a message."""


@dataclass
class Sample:
    """What a shard holds under one key."""

    image: str | None = None
    """Member of its first image."""
    split: str = ""
    """Drawn by that image's bytes; "" where it was not asked for."""
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
    """A shard on this machine."""

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
        ResourceError: a shard cannot be read, which says nothing about its content; none is left
            out for that.
    """
    names = find_shards(params.shards or [])
    shards = (
        Shard(fetch_shard(name, downloads) if is_remote(name) else Path(name)) for name in names
    )

    def fix(path: Path) -> str:
        skip = "download.webdataset.damaged=skip"
        return f"get {path.name} again, or set {skip} to leave such shards out and count them."

    skip = params.damaged == "skip"
    add_shards(rows, shards, splits, total=len(names), fix=None if skip else fix)


def add_shards(
    rows: PairRows,
    shards: Iterable[Shard],
    splits: SplitsParams,
    *,
    total: int,
    fix: Callable[[Path], str] | None,
) -> None:
    """Add the samples of shards; what a shard holds is added as a whole or not at all.

    Args:
        rows: gets the rows, and the counts of what was left out.
        shards: one after the other.
        splits: draws the splits of shards without one.
        total: how many there are.
        fix: what to do about a damaged shard, for the message; None: it is left out.

    Raises:
        InputError: a shard is damaged, no sample has an image, or none a caption.
        ResourceError: a shard cannot be read.
    """
    rows.left_out.update(
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
                shard.path.stat()  # a shard that is gone is not a damaged one
            samples = read_shard(shard.path, None if shard.split else splits, endings)
        except InputError as error:
            if fix is not None:
                raise InputError(error.what, fix(shard.path)) from None
            log.warning("left out: %s", error.what)
            rows.left_out["shards_skipped"] += 1
        else:
            added += sum(_add_sample(rows, shard, sample) for sample in samples.values())
    _require_both(rows, total, added, endings)


def _require_both(rows: PairRows, total: int, added: int, endings: Counter[str]) -> None:
    shown = one_line(", ".join(ending for ending, _ in endings.most_common(_SHOWN)), 200) or "none"
    found = f"what follows the first dot of their members' names is {shown}"
    if not added:
        raise InputError(
            f"{total:,} shards hold no sample with an image; {found}.",
            "check that they are webdataset shards: tars of 000.jpg with 000.txt or 000.json.",
        )
    if not rows.has_captions:
        raise InputError(
            f"no sample of {total:,} shards has a caption; {found}.",
            "write captions as .txt, one a line, or under `caption` in .json.",
        )


def _add_sample(rows: PairRows, shard: Shard, sample: Sample) -> bool:
    """Whether the sample has an image, and was added; what cannot be taken is counted."""
    rows.left_out["samples_without_image"] += sample.image is None
    rows.left_out["images_further"] += sample.further
    if sample.unreadable is not None:
        rows.left_out["captions_unreadable"] += 1
        if rows.left_out["captions_unreadable"] <= _WARNINGS:
            log.warning("left out a caption: %s", sample.unreadable.what)
    if sample.image is None:
        return False
    rows.add(shard.split or sample.split, str(shard.path), sample.image, sample.captions)
    return True


def read_shard(
    path: Path, splits: SplitsParams | None, endings: Counter[str] | None = None
) -> dict[str, Sample]:
    """The samples of a shard by key, in the order of their first member.

    Of a sample's images the first counts. Hidden files, which some systems add, do not.

    Args:
        path: the shard.
        splits: draws the splits by the images' bytes; None: the images are not read.
        endings: counts what follows the first dot of the members' names.

    Raises:
        InputError: it is damaged or truncated, or several members have one name.
        ResourceError: it cannot be read.
    """
    samples: dict[str, Sample] = {}
    with Archive(path) as archive:
        if archive.repeated:
            raise InputError(
                f"{path} holds {archive.repeated} members whose name another one has too.",
                "write the shard again, with a different key for every sample.",
            )
        for member in archive.sizes:
            folder, slash, base = member.rpartition("/")
            stem, _, ending = base.partition(".")
            if stem:
                sample = samples.setdefault(folder + slash + stem, Sample())
                _take(sample, ending.lower(), member, archive, splits)
                if endings is not None:
                    endings[ending.lower()] += 1
    return samples


def _take(
    sample: Sample, ending: str, member: str, archive: Archive, splits: SplitsParams | None
) -> None:
    if ending in IMAGE_ENDINGS:
        if sample.image is not None:
            sample.further += 1
            return
        sample.image = member
        sample.split = draw_split(archive.read(member), splits) if splits else ""
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
    """The text or list of texts under `caption`; or the whole, if it is a list."""
    try:
        about = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"{where} is not JSON.", "write the sample again.") from None
    captions = about.get("caption") if isinstance(about, dict) else about
    sample.described = read_captions(captions, f"{where}: caption")


_READERS = {"txt": _take_text, "json": _take_json}
