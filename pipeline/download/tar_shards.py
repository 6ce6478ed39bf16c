"""Which shards a name with ranges, a glob or a list of them means; and fetching them."""

import contextlib
import glob
import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from pipeline.core.checksums import hash_strings
from pipeline.core.errors import DownloadError, InputError
from pipeline.core.files import reports_unreadable
from pipeline.download.fetch import MIRROR_VARIABLE, fetch
from pipeline.download.sources import RemoteFile
from pipeline.params.places import is_address, why_missing

MOST_SHARDS = 1_000_000

_KEY = "download.webdataset.shards"
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_SCHEMES = ("http://", "https://")
_LONGEST_NAME = 200
_LONGEST_TAIL = 40


def find_shards(names: str | Sequence[str]) -> list[str]:
    """Absolute paths and URLs of all shards, each once, in the order of the names.

    Args:
        names: one or several of: a path or http(s) URL, with numbers such as `{00000..00331}` or
            words such as `{train,val}` in it; a local one may also be a glob, whose shards are
            ordered by name.

    Raises:
        InputError: a shard is not there or a folder, a range is malformed, there are too many, or
            an address is of a kind that cannot be fetched, or names no file.
        ResourceError: a folder of shards cannot be entered.
    """
    written = [names] if isinstance(names, str) else names
    every = (shard for one in written for name in expand(one) for shard in _find(name))
    found = list(dict.fromkeys(every))
    missing = [shard for shard in found if not _is_there(shard)]
    if missing:
        what, fix = why_missing(missing[0], _KEY)
        raise InputError(
            f"{len(missing):,} of {len(found):,} shards are not there, the first: {what}", fix
        )
    placed = (shard if is_remote(shard) else str(Path(shard).absolute()) for shard in found)
    return list(dict.fromkeys(placed))


def is_remote(shard: str) -> bool:
    """Whether it must be fetched."""
    return shard.lower().startswith(_SCHEMES)


def expand(name: str) -> list[str]:
    """A name with braces, as all the names it stands for, in order.

    A range is as wide as its first number is written: `{08..10}` is 08, 09, 10.

    Raises:
        InputError: a range runs backwards, or it is more than MOST_SHARDS names.
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
    """Whether a shard is a file; of a URL, whether it names one at all is what can be said.

    Raises:
        InputError: it is a folder, or an address of another kind.
    """
    if is_remote(shard):
        return bool(_file_name(shard))
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
    """Fetch a shard, or find it from an earlier run; shards of one folder stay together.

    Raises:
        InputError: the URL names no file.
        DownloadError: it cannot be fetched, or its bytes are not those of the first time.
        ResourceError: the disk is full.
    """
    parts, name = _split(address), _file_name(address)
    parent = parts.path.rpartition("/")[0]
    folder = downloads / f"shards-{hash_strings([parts.scheme, parts.netloc, parent])[:12]}"
    try:
        return fetch(RemoteFile(name, address, 0), folder, mirror=None).absolute()
    except DownloadError as error:
        # Shards come from their own address only: a mirror would not help.
        fix = f"check {_KEY} and the network; what was already transferred is kept."
        fix = fix if MIRROR_VARIABLE in error.fix else error.fix
        raise DownloadError(error.what, fix) from None


def _file_name(address: str) -> str:
    """What to call a fetched shard: as its URL does, unless the path alone is not unique.

    Raises:
        InputError: the URL names no file.
    """
    parts = _split(address)
    name = parts.path.rpartition("/")[2]
    if name in {"", ".", ".."}:
        raise _refused(address, "names no file")
    if parts.query or parts.fragment or len(name.encode()) > _LONGEST_NAME:
        return f"{hash_strings([address])[:12]}-{name[-_LONGEST_TAIL:]}"
    return name


def _split(address: str) -> SplitResult:
    with contextlib.suppress(ValueError):
        if "\0" not in address:
            return urlsplit(address)
    raise _refused(repr(address), "is not a URL")
