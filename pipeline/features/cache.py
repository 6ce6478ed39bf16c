"""CONTRACT of the feature cache: features by content, one folder a teacher.

    NAME/teacher.json       the teacher's identity, and its features of a probe
    NAME/images/SHARD.h5    an HDF5 file, whose last line is its sha256 (`hdf5.py`), of
                            /keys       (rows, 16) uint8, of the images' bytes
                            /features   (rows, dim) float16
    NAME/captions/SHARD.h5  the same, with keys of the captions' text

NAME is a hash of the teacher's fingerprint; SHARD is the number of rows and a hash of the keys. A
shard is written whole and never changed: readers and writers need no lock, and two processes that
write the same shard write the same file. A row is looked up by its key in all shards of the
teacher, so data sets that share images or captions share the work. A damaged shard is kept as
SHARD.h5.damaged, which nothing reads.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float16, Float32, Int64, UInt8
from numpy.typing import NDArray

from pipeline.core.checksums import add_checksum, hash_strings
from pipeline.core.errors import InputError, ResourceError
from pipeline.core.files import (
    atomic_file,
    refusal,
    reports_unreadable,
    reports_unwritable,
    write_json,
)
from pipeline.core.progress import log
from pipeline.features.hdf5 import DamagedFeaturesError, open_verified, table_of
from pipeline.features.identity import TeacherIdentity
from pipeline.features.rows import JoinedRows

Kind = Literal["images", "captions"]
Keys = UInt8[np.ndarray, "rows 16"]

KINDS: tuple[Kind, ...] = ("images", "captions")

KEY_BYTES = 16

_SCHEMA = 3
_DAMAGED = ".damaged"
_PROBE_TOLERANCE = 1e-3
"""Largest difference of probe features, relative to their length, that rounding can explain."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)
"""How file systems say that a folder cannot be locked; NFS says EBADF of an exclusive lock."""


class KeySet:
    """A growing set of keys: sorted arrays, of which the small ones are merged from time to time.

    It takes 16 bytes a key, where a Python set takes more than 100. One thread may add while others
    look up.
    """

    def __init__(self) -> None:
        self._levels: list[NDArray[Any]] = []

    def add(self, keys: Keys) -> None:
        """Add keys."""
        levels = [*self._levels, np.sort(_sortable(keys))]
        while len(levels) > 1 and len(levels[-2]) < 2 * len(levels[-1]):
            last = levels.pop()
            levels[-1] = np.sort(np.concatenate([levels[-1], last]), kind="stable")
        self._levels = levels

    def contains(self, keys: Keys) -> Bool[np.ndarray, " rows"]:
        """Which of the keys are in the set."""
        wanted, found = _sortable(keys), np.zeros(len(keys), dtype=bool)
        for level in self._levels:
            if len(level):
                place = np.searchsorted(level, wanted).clip(max=len(level) - 1)
                found |= level[place] == wanted
        return found


class FeatureCache:
    """The cached features of one teacher, in the folder `root` of all teachers.

    If the features of the fixed probe, (2, dim), differ by more than rounding from those in the
    cache, another version of a library computed them, and a separate folder is used.
    """

    def __init__(
        self, root: Path, teacher: TeacherIdentity, probe: Float32[np.ndarray, "two dim"]
    ) -> None:
        self.teacher = teacher
        self.folder = _folder_for(root, teacher, probe)

    def known(self, kind: Kind) -> KeySet:
        """The keys of all whole shards; a damaged shard is put aside.

        Raises:
            ResourceError: a shard cannot be read, which says nothing of its content.
        """
        known = KeySet()
        known.add(np.concatenate([text_keys([]), *(keys for _, keys in self._load_keys(kind))]))
        return known

    def write(
        self, kind: Kind, keys: Keys, features: Float16[np.ndarray, "rows dim"]
    ) -> Path | None:
        """Write one shard; equal rows give an equal file. Nothing is written for no rows."""
        if not len(keys):
            return None
        import h5py

        path = self.folder / kind / f"{_name(keys)}.h5"
        with h5py.File.in_memory() as file:  # libhdf5 must not meet a full disk
            file.update({"keys": keys, "features": features})
            file.attrs["teacher"] = self.teacher.fingerprint
            file.flush()
            content = file.id.get_file_image()
        with atomic_file(path) as temporary:
            temporary.write_bytes(content)
            add_checksum(temporary)
        return path

    def rows(self, kind: Kind, keys: Keys) -> JoinedRows:
        """The features of the given keys, in their order, as one table.

        Reading a row of it reads and verifies its shard; the last shard that was read is kept.

        Raises:
            InputError: a key is no longer in any shard.
            DamagedFeaturesError: now or later, a shard is damaged.
            ResourceError: now or later, a shard cannot be read.
        """
        shards = list(self._load_keys(kind))
        paths, tables = [path for path, _ in shards], [table for _, table in shards]
        where, missing = _locate(tables, keys)
        if missing.any():
            row = int(np.argmax(missing))
            raise InputError(
                f"{missing.sum():,} {kind} are no longer in {self.folder}, the first in row {row}.",
                "run the same command again: what is missing is computed.",
            )
        starts = np.cumsum([0, *map(len, tables)])
        file = np.searchsorted(starts, where, side="right") - 1
        read = functools.lru_cache(maxsize=1)(read_shard)
        dim = read(paths[0]).shape[1] if paths else 0
        return JoinedRows(paths, file, where - starts[file], dim, read)

    def drop(self, path: Path) -> None:
        """Rename a damaged shard, so that its rows are computed again.

        It is not removed: most of its rows may be intact, memory or a cable may be at fault rather
        than the file, and computing it may have taken hours. `prune` removes it.

        Raises:
            ResourceError: it cannot be renamed.
        """
        with contextlib.suppress(FileNotFoundError), reports_unwritable(path):
            path.replace(path.with_name(f"{path.name}{_DAMAGED}"))
        log.warning("put the damaged shard %s aside; its rows are computed again", path)

    def in_use(self) -> contextlib.AbstractContextManager[None]:
        """Keeps the cache from being pruned while the block runs, where folders can be locked.

        Raises:
            ResourceError: at its start, it is being pruned, or cannot be read.
        """
        return _locked(self.folder, fcntl.LOCK_SH)

    def _load_keys(self, kind: Kind) -> Iterator[tuple[Path, Keys]]:
        for path in _shards(self.folder / kind):
            try:
                keys = _read_keys(path, self.teacher.fingerprint)
            except DamagedFeaturesError:
                self.drop(path)
            else:
                yield path, keys


def content_key(content: bytes) -> UInt8[np.ndarray, "16"]:
    """The key of a row: the first half of the sha256 of its bytes."""
    return np.frombuffer(hashlib.sha256(content).digest()[:16], np.uint8)


def text_keys(texts: Sequence[str]) -> Keys:
    """The keys of captions."""
    digests = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)[:, :16].copy()


def first_of_each(keys: Keys) -> Bool[np.ndarray, " rows"]:
    """Which rows are the first of their key."""
    first = np.zeros(len(keys), dtype=bool)
    first[np.unique(_sortable(keys), return_index=True)[1]] = True
    return first


def read_shard(path: Path) -> Float16[np.ndarray, "rows dim"]:
    """The features of a shard.

    Raises:
        DamagedFeaturesError: it is damaged, or not a shard.
        ResourceError: it cannot be read.
    """
    with open_verified(path) as (file, _):
        return np.asarray(table_of(file, "features", np.float16, 2)[()])


@dataclass(frozen=True)
class CacheEntry:
    """What the cache holds of one teacher."""

    name: str
    model: str
    pretrained: str
    dtype: str
    images: int
    captions: int
    shards: int
    bytes: int
    damaged: int
    """Damaged shards that were put aside; their rows and bytes are not counted."""


def list_cached(root: Path) -> list[CacheEntry]:
    """All teachers of a cache, by name; damaged shards that take up room are logged."""
    teachers = [_describe(path.parent) for path in sorted(root.glob("*/teacher.json"))]
    for one in teachers:
        if one.damaged:
            log.warning("%s: %d damaged shards, which --prune frees", root / one.name, one.damaged)
    return teachers


def prune(root: Path, name: str = "") -> list[CacheEntry]:
    """Remove all teachers whose name starts with `name` from the cache; returns what was there.

    Raises:
        InputError: there is no such teacher.
        ResourceError: a running process uses it, or it cannot be removed.
    """
    folders = sorted(path.parent for path in root.glob("*/teacher.json"))
    chosen = [folder for folder in folders if folder.name.startswith(name)]
    if name and not chosen:
        raise InputError(
            f"{root} holds no teacher whose name starts with {name}.",
            "`python -m stages.features --status` lists them.",
        )
    freed = []
    for folder in chosen:
        with _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB), reports_unwritable(folder):
            freed.append(_describe(folder))
            shutil.rmtree(folder)
    return freed


def _folder_for(root: Path, teacher: TeacherIdentity, probe: NDArray[np.float32]) -> Path:
    """The first of the teacher's possible folders that is new, or whose probe agrees."""
    first = [f"schema {_SCHEMA}", teacher.fingerprint]
    more = ([*first, teacher.library, str(number)] for number in itertools.count())
    for name in itertools.chain([first], more):
        folder = root / hash_strings(name)[:16]
        found = _read_probe(folder)
        if found is None:
            write_json(folder / "teacher.json", asdict(teacher) | {"probe": probe.tolist()})
            return folder
        if _agree(found, probe):
            return folder
        log.warning(
            "%s gives other features than those in the cache %s", teacher.library, folder.name
        )
    raise AssertionError("there is always another folder")


def _read_probe(folder: Path) -> NDArray[np.float32] | None:
    """The probe of a folder; None if it has none, or one that is damaged.

    Raises:
        ResourceError: it cannot be read. If it were taken for absent, it would be replaced, and
            the features of another version taken for this one's.
    """
    path = folder / "teacher.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return np.array(content["probe"], np.float32)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise refusal(path, error) from error
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _agree(found: NDArray[np.float32], probe: NDArray[np.float32]) -> bool:
    if found.shape != probe.shape:
        return False
    moved = np.linalg.norm(found - probe, axis=1)
    return bool((moved <= _PROBE_TOLERANCE * np.linalg.norm(probe, axis=1)).all())


def _sortable(keys: Keys) -> NDArray[Any]:
    return np.ascontiguousarray(keys).view("S16").ravel()


def _name(keys: Keys) -> str:
    return f"{len(keys)}-{hashlib.sha256(keys.tobytes()).hexdigest()[:32]}"


def _read_keys(path: Path, fingerprint: str) -> Keys:
    """The keys of a shard of one teacher, which is verified."""
    with open_verified(path) as (file, _):
        keys = np.asarray(table_of(file, "keys", np.uint8, 2)[()])
        if file.attrs["teacher"] != fingerprint or keys.shape[1] != KEY_BYTES:
            raise ValueError("it is of another teacher")
        if _name(keys) != path.stem or len(keys) != len(file["features"]):
            raise ValueError("its name is not that of its keys")
    return keys


def _locate(
    tables: Sequence[UInt8[np.ndarray, "_ 16"]], wanted: UInt8[np.ndarray, "wanted 16"]
) -> tuple[Int64[np.ndarray, " wanted"], Bool[np.ndarray, " wanted"]]:
    """The row of each wanted key in the concatenated tables, and which keys are in none.

    A key that is in several shards is taken from the first, by name.
    """
    if not tables:
        return np.zeros(len(wanted), np.int64), np.ones(len(wanted), dtype=bool)
    known = _sortable(np.concatenate(tables))
    order = np.argsort(known, kind="stable")
    place = np.searchsorted(known, _sortable(wanted), sorter=order).clip(max=len(known) - 1)
    where = order[place].astype(np.int64)
    return where, known[where] != _sortable(wanted)


def _shards(folder: Path) -> list[Path]:
    """The shards of one kind, by name; a folder that cannot be listed is not taken for empty."""
    try:
        paths = sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise refusal(folder, error) from error
    return [path for path in paths if path.suffix == ".h5"]


def _describe(folder: Path) -> CacheEntry:
    shards = {kind: _shards(folder / kind) for kind in KINDS}
    every = [path for paths in shards.values() for path in paths]
    try:
        teacher = dict(json.loads((folder / "teacher.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        teacher = {}
    return CacheEntry(
        name=folder.name,
        model=str(teacher.get("model", "unknown")),
        pretrained=str(teacher.get("pretrained", "")),
        dtype=str(teacher.get("dtype", "")),
        images=sum(map(_count_rows, shards["images"])),
        captions=sum(map(_count_rows, shards["captions"])),
        shards=len(every),
        bytes=sum(path.stat().st_size for path in every),
        damaged=sum(1 for _ in folder.glob(f"*/*.h5{_DAMAGED}")),
    )


def _count_rows(path: Path) -> int:
    """Rows of a shard by its name; 0 for files that are not named as shards are."""
    number = path.stem.partition("-")[0]
    return int(number) if number.isdecimal() else 0


@contextlib.contextmanager
def _locked(folder: Path, mode: int) -> Iterator[None]:
    """Hold a lock on a folder while the block runs.

    Raises:
        ResourceError: another process holds it, or an exclusive lock is wanted on a file system
            without locks; a shared one is then skipped with a warning.
    """
    with reports_unwritable(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with reports_unreadable(folder):
        handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, folder, mode)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path, mode: int) -> None:
    try:
        fcntl.flock(handle, mode)
    except BlockingIOError:
        raise ResourceError(
            f"{folder} is in use by another process.", "wait until `features` has ended there."
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise refusal(folder, error) from error
        if mode & fcntl.LOCK_EX:
            raise ResourceError(
                f"{folder} is on a file system without locks: it may be in use.",
                "make sure that no `features` runs on any machine, and remove the folder by hand.",
            ) from error
        log.warning("%s cannot be locked: do not remove it while this runs", folder)
