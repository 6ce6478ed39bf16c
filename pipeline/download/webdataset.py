"""Source `webdataset`: tar shards as img2dataset writes them, read in place, one after the other.

The members of a sample share everything before the first dot of their names: 000000012.jpg, .txt,
.json. Where that joins images that each have captions of their own, as of a.1.jpg, a.1.txt, a.2.jpg
and a.2.txt, the dots belong to the keys, which then end at the last one. An ending may have parts,
as .input.jpg; what has none comes first. The .txt of a sample has a caption a line; without one,
its .json has a caption, or a list of them, under `caption` or `text`.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.core.errors import InputError
from pipeline.core.files import reports_unreadable
from pipeline.core.plaintext import decode
from pipeline.core.progress import log, progress
from pipeline.core.redact import one_line
from pipeline.download.archives import Archive
from pipeline.download.packed_images import IMAGE_ENDINGS
from pipeline.download.pairing import PairRows, draw_split, read_caption_lines, read_captions
from pipeline.download.tar_shards import fetch_shard, find_shards, is_remote
from pipeline.params.download import SplitsParams, WebdatasetParams

_WARNINGS = 5
_SHOWN = 12


@dataclass
class Sample:
    """What a shard holds under one key."""

    image: str | None = None
    """Member of its first image, or of the first whose ending has one part."""
    ending: str = ""
    """What follows the key in that."""
    split: str = ""
    """Drawn by that image's bytes; "" where it was not asked for."""
    further: int = 0
    """Other images."""
    written: dict[str, list[str]] = field(default_factory=dict)
    """The captions of its texts, one a line, and of its json, by their endings."""
    unreadable: InputError | None = None
    """Why captions that it has cannot be read."""

    @property
    def captions(self) -> list[str]:
        """Its captions; "" where it has none."""
        order = sorted(self.written, key=lambda ending: (ending.endswith("json"), "." in ending))
        return next((self.written[one] for one in order if any(self.written[one])), [""])


@dataclass(frozen=True)
class Shard:
    """A shard on this machine."""

    path: Path
    split: str | None = None
    """That of all its images; None: drawn by their bytes."""
    fix: str | None = None
    """What to do if it is damaged; None: it is left out then."""


def write_webdataset_pairs(rows: PairRows, params: WebdatasetParams, downloads: Path) -> None:
    """Add the samples of all shards, in their order, fetching those with a URL to `downloads`.

    Their archives are the absolute paths of the shards. A damaged shard may be skipped; one that
    the system does not let us read is never left out for that.
    """
    found = find_shards(params.shards or [])
    fetched = set(rows.to_fetch([name for name in found if is_remote(name)]))
    names = [name for name in found if name in fetched or not is_remote(name)]
    paths = (fetch_shard(name, downloads) if is_remote(name) else Path(name) for name in names)
    skip = "download.webdataset.damaged=skip"

    def shard(path: Path) -> Shard:
        fix = f"get {path.name} again, or set {skip} to leave such shards out and count them."
        return Shard(path, fix=None if params.damaged == "skip" else fix)

    add_shards(rows, map(shard, paths), total=len(names))


def add_shards(rows: PairRows, shards: Iterable[Shard], *, total: int) -> None:
    """Add the samples of shards; what a shard holds is added as a whole or not at all."""
    rows.left_out.update(
        shards=total,
        shards_skipped=0,
        samples_without_image=0,
        images_further=0,
        captions_unreadable=0,
    )
    endings: Counter[str] = Counter()
    for shard in progress(shards, what="shards", unit="shard", total=total):
        try:
            with reports_unreadable(shard.path):
                shard.path.stat()  # a shard that is gone is not a damaged one
            samples = read_shard(shard.path, None if shard.split else rows.splits, endings)
        except InputError as error:
            if shard.fix is not None:
                raise InputError(error.what, shard.fix) from None
            log.warning("left out: %s", error.what)
            rows.left_out["shards_skipped"] += 1
        else:
            for sample in samples.values():
                _add_sample(rows, shard, sample)
    _require_both(rows, total, endings)


def _require_both(rows: PairRows, total: int, endings: Counter[str]) -> None:
    has_captions = rows.captions > rows.left_out["captions_empty"]
    if rows.images and has_captions:
        return
    shown = one_line(", ".join(ending for ending, _ in endings.most_common(_SHOWN)), 200) or "none"
    raise InputError(
        f"{total:,} shards hold no sample with {'a caption' if rows.images else 'an image'}; what "
        f"follows the first dot of their members' names is {shown}.",
        "check that they are webdataset shards: tars of 000.jpg with captions as 000.txt, one a "
        "line, or under `caption` or `text` in 000.json.",
    )


def _add_sample(rows: PairRows, shard: Shard, sample: Sample) -> None:
    rows.left_out["images_further"] += sample.further
    if sample.unreadable is not None:
        rows.left_out["captions_unreadable"] += 1
        if rows.left_out["captions_unreadable"] <= _WARNINGS:
            log.warning("left out a caption: %s", sample.unreadable.what)
    if sample.image is None:
        rows.left_out["samples_without_image"] += 1
    else:
        rows.add(shard.split or sample.split, str(shard.path), sample.image, sample.captions)


def read_shard(
    path: Path, splits: SplitsParams | None, endings: Counter[str] | None = None
) -> dict[str, Sample]:
    """The samples of a shard by key, in the order of their first member.

    Of a sample's images the first counts. Hidden files, which some systems add, do not.

    Args:
        path: the shard.
        splits: draws the splits by the images' bytes; None: the images are not read.
        endings: counts what follows the first dot of the members' names.
    """
    samples: dict[str, Sample] = {}
    endings = Counter() if endings is None else endings
    with Archive(path) as archive:
        if archive.repeated:
            raise InputError(
                f"{path} holds {archive.repeated} members whose name another one has too.",
                "write the shard again, with a different key for every sample.",
            )
        for member, (key, ending) in _part_names(archive.sizes).items():
            _take(samples.setdefault(key, Sample()), ending, member, archive, splits)
            endings[ending] += 1
    return samples


def _part_names(members: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Key and ending of each member, but for hidden ones."""
    parted, kinds = {}, defaultdict[tuple[str, str], set[str]](set)
    for member in members:
        folder, slash, base = member.rpartition("/")
        stem, _, ending = base.partition(".")
        if stem:
            parted[member] = folder + slash + stem, ending.lower()
            whole, _, kind = member.rpartition(".")
            kind = kind.lower()
            kinds[folder + slash + stem, whole].add("image" if kind in IMAGE_ENDINGS else kind)
    dotted = {
        key
        for (key, whole), found in kinds.items()
        if key != whole and "image" in found
        # A .json beside a further image, such as a mask, is seldom one of captions.
        if found & ({"txt", "text"} if "image" in kinds.get((key, key), ()) else set(_READERS))
    }
    return {
        member: (member.rpartition(".")[0], ending.rpartition(".")[2])
        if key in dotted
        else (key, ending)
        for member, (key, ending) in parted.items()
    }


def _take(
    sample: Sample, ending: str, member: str, archive: Archive, splits: SplitsParams | None
) -> None:
    kind = ending.rpartition(".")[2]
    if kind in IMAGE_ENDINGS:
        sample.further += sample.image is not None
        if sample.image is None or ("." in sample.ending and kind == ending):
            sample.image, sample.ending = member, ending
            sample.split = draw_split(archive.read(member), splits) if splits else ""
    elif kind in _READERS:
        content, where = archive.read(member), f"{archive.path}: {one_line(member, 120)}"
        try:
            sample.written[ending] = _READERS[kind](decode(content, where), where)
        except InputError as error:
            sample.unreadable = error


def _read_json(text: str, where: str) -> list[str]:
    """The text or list of texts under `caption` or `text`; or the whole, if it is a list."""
    try:
        about = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"{where} is not JSON.", "write the sample again.") from None
    if not isinstance(about, dict):
        return read_captions(about, where)
    key = "caption" if "caption" in about else "text"
    return read_captions(about.get(key), f"{where}: {key}")


_READERS = {"txt": read_caption_lines, "text": read_caption_lines, "json": _read_json}
