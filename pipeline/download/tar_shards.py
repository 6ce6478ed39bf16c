"""Which shards a name with ranges, a glob or a list of them means; and fetching them."""

import glob
import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.core.checksums import hash_strings
from pipeline.core.errors import DownloadError, InputError
from pipeline.core.files import reports_unreadable
from pipeline.download.fetch import MIRROR_VARIABLE, WEB, fetch
from pipeline.download.sources import RemoteFile
from pipeline.params.places import is_address, why_missing

MOST_SHARDS = 1_000_000

_KEY = "download.webdataset.shards"
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_LONGEST_NAME = 200


def find_shards(names: str | Sequence[str]) -> list[str]:
    """Absolute paths and URLs of all shards, each once, in the order of the names.

    A name is a path or http(s) URL, with numbers such as `{00000..00331}` or words such as
    `{train,val}` in it; a local one may also be a glob, whose shards are ordered by name.
    """
    written = [names] if isinstance(names, str) else names
    found = dict.fromkeys(shard for one in written for name in expand(one) for shard in _find(name))
    if missing := [shard for shard in found if not _is_there(shard)]:
        what, fix = why_missing(missing[0], _KEY)
        raise InputError(
            f"{len(missing):,} of {len(found):,} shards are not there, the first: {what}", fix
        )
    placed = (shard if is_remote(shard) else str(Path(shard).absolute()) for shard in found)
    return list(dict.fromkeys(placed))


def is_remote(shard: str) -> bool:
    """Whether it must be fetched."""
    return shard.lower().startswith(WEB)


def expand(name: str) -> list[str]:
    """A name with braces, as all the names it stands for, in order.

    A range is as wide as its first number is written: `{08..10}` is 08, 09, 10.
    """
    pieces = _BRACES.split(name)  # text, inside of braces, text, ...
    choices: list[Sequence[str]] = [[piece] for piece in pieces]
    choices[1::2] = [_choices(inside, name) for inside in pieces[1::2]]
    count = math.prod(map(len, choices))
    if count > MOST_SHARDS:
        raise _refused(name, f"stands for {count:,} shards, more than {MOST_SHARDS:,}")
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _choices(inside: str, name: str) -> Sequence[str]:
    found = _RANGE.fullmatch(inside)
    if not found:
        return inside.split(",") if "," in inside else [f"{{{inside}}}"]
    first, last = found.groups()
    if not 0 <= int(last) - int(first) < MOST_SHARDS:
        raise _refused(name, f"has the range {first}..{last}, of none or too many shards")
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]


def _refused(name: str, why: str) -> InputError:
    return InputError(f"{name:.200} {why}.", f"check {_KEY}.")


def _find(name: str) -> list[str]:
    if is_address(name) or not glob.has_magic(name) or Path(name).exists():
        return [name]
    found = sorted(glob.glob(name, recursive=True))  # noqa: PTH207
    if not found:
        raise InputError(*why_missing(name, _KEY, "matches no file"))
    return found


def _is_there(shard: str) -> bool:
    """Whether a shard is a file; of a URL, whether it names one at all is what can be said."""
    if is_remote(shard):
        return bool(_kept_as(shard))
    if is_address(shard):
        raise InputError(
            f"{shard} is an address of a kind that cannot be fetched.",
            f"copy the shards to this machine first, or write http(s) addresses as {_KEY}; for a "
            "data set of the hub set download.pairs to hub.",
        )
    with reports_unreadable(shard):
        if Path(shard).is_dir():
            raise InputError(f"{shard} is a folder.", f"name its shards as {_KEY}, {shard}/*.tar.")
        return Path(shard).is_file()


def fetch_shard(address: str, downloads: Path) -> Path:
    """Fetch a shard, or find it from an earlier run; shards of one folder stay together."""
    folder, name = _kept_as(address)
    try:
        return fetch(RemoteFile(name, address, 0), downloads / folder, mirror=None).absolute()
    except DownloadError as error:
        if MIRROR_VARIABLE not in error.fix:
            raise
        # Shards come from their own address only: a mirror would not help.
        fix = f"check {_KEY} and the network; what was already transferred is kept."
        raise DownloadError(error.what, fix) from None


def _kept_as(address: str) -> tuple[str, str]:
    """The folder and name of a fetched shard: as its URL has it, unless that is not unique."""
    try:
        parts = urlsplit(address)
    except ValueError:
        raise _refused(repr(address), "is not a URL") from None
    parent, _, name = parts.path.rpartition("/")
    if name in {"", ".", ".."}:
        raise _refused(address, "names no file")
    if parts.query or parts.fragment or len(name.encode()) > _LONGEST_NAME:
        name = f"{hash_strings([address])[:12]}-{name[-40:]}"
    return f"shards-{hash_strings([parts.scheme, parts.netloc, parent])[:12]}", name
