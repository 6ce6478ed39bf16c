"""CONTRACT of the feature cache: features by content, one folder a teacher.

    NAME/teacher.json       the teacher's identity, and its features of a probe
    NAME/images/SHARD.h5    a header (`files.py`) that says where the tables are, and behind it, for
                            any HDF5 reader:
                            /keys       (rows, 16) uint8, of the image's bytes
                            /features   (rows, dim) float16
                            /checksums  (rows,) uint32, CRC-32 of key and features of a row
    NAME/captions/SHARD.h5  the same, with keys of the caption's text

NAME is a hash of the teacher's fingerprint, SHARD of the keys. A shard is written whole and never
changed, so that readers and writers need no lock, and two processes that write the same shard write
the same file. A row is looked for by its key in all shards of the teacher, so data sets that share
images or captions share the work. What was found damaged is kept as SHARD.h5.damaged, which nothing
reads.
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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float16, Float32, Int64, UInt8
from numpy.typing import NDArray

from pipeline.core.checksums import hash_strings
from pipeline.core.errors import InputError, PipelineError, ResourceError
from pipeline.core.files import atomic_file, reports_unwritable, write_json
from pipeline.core.progress import log
from pipeline.features.hdf5 import (
    HEADER_BYTES,
    KEY_BYTES,
    DamagedFeaturesError,
    ShardHeader,
    read_header,
    read_piece,
    reports_unreadable,
    row_checksums,
    tables_of,
    unreadable,
)
from pipeline.features.identity import TeacherIdentity
from pipeline.features.rows import JoinedRows, runs_of

Kind = Literal["images", "captions"]
Keys = UInt8[np.ndarray, "rows 16"]

KINDS: tuple[Kind, ...] = ("images", "captions")

_SCHEMA = 2
_DAMAGED = ".damaged"
_PROBE_TOLERANCE = 1e-3
"""Largest difference of probe features, relative to their length, that rounding can explain."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)
"""How file systems say that folders cannot be locked; NFS the last, of an exclusive lock."""


class KeySet:
    """A growing set of keys: sorted arrays, of which the small ones are merged from time to time.

    16 bytes a key, where a set of Python's takes more than 100. A thread may add while others ask.
    """

    def __init__(self) -> None:
        self._levels: list[NDArray[Any]] = []

    def add(self, keys: Keys) -> None:
        """Take keys in."""
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
    """The cached features of one teacher.

    Args:
        root: the folder of all teachers.
        teacher: whose features.
        probe: its features of the fixed probe, (2, dim). Where the cache's own differ by more than
            rounding, another version of a library gave them: a folder of its own is used.
    """

    def __init__(
        self, root: Path, teacher: TeacherIdentity, probe: Float32[np.ndarray, "two dim"]
    ) -> None:
        self.teacher = teacher
        self.folder = _folder_for(root, teacher, probe)

    def known(self, kind: Kind) -> KeySet:
        """The keys of all whole shards; a shard whose keys are damaged is put aside.

        Raises:
            ResourceError: a shard cannot be read, which says nothing of its content.
        """
        known = KeySet()
        tables = [keys for _, keys in self._load_keys(kind)]
        if tables:
            known.add(np.concatenate(tables))
        return known

    def write(
        self, kind: Kind, keys: Keys, features: Float16[np.ndarray, "rows dim"]
    ) -> Path | None:
        """Write one shard; equal rows give an equal file. Nothing is written for no rows."""
        if not len(keys):
            return None
        content = _pack_shard(keys, features, self.teacher.fingerprint, kind)
        path = self.folder / kind / f"{_name(keys)}.h5"
        with atomic_file(path) as temporary:
            temporary.write_bytes(content)
        return path

    def rows(self, kind: Kind, keys: Keys) -> JoinedRows:
        """The features of the given keys, in their order, as one table.

        Reading a row from it verifies its shard; the last shard that was read is kept.

        Raises:
            InputError: a key is in no shard any more.
            DamagedFeaturesError: later, when rows of a damaged shard are read.
            ResourceError: now or later, a shard cannot be read.
        """
        paths, tables = _unzip(self._load_keys(kind))
        where, missing = _locate(tables, keys)
        if missing.any():
            row = int(np.argmax(missing))
            raise InputError(
                f"{missing.sum():,} {kind} are no longer in {self.folder}, the first in row {row}.",
                "run the same command again: what is missing is computed.",
            )
        starts = np.cumsum([0, *(len(table) for table in tables)])
        file = np.searchsorted(starts, where, side="right") - 1
        runs = runs_of(paths, file, where - starts[file])
        return JoinedRows(runs, _dim_of(paths), functools.lru_cache(maxsize=1)(read_shard))

    def drop(self, path: Path) -> None:
        """Put a damaged shard aside, so that its rows are computed again.

        It is not removed: most of its rows may be sound, memory or a cable may be at fault rather
        than the file, and it took hours of a GPU. `prune` removes it.

        Raises:
            ResourceError: it cannot be renamed.
        """
        with contextlib.suppress(FileNotFoundError), reports_unwritable(path):
            path.replace(path.with_name(f"{path.name}{_DAMAGED}"))
        log.warning("put the damaged shard %s aside; its rows are computed again", path)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the cache from being pruned while the block runs, where folders can be locked.

        Raises:
            ResourceError: it is being pruned, or cannot be read.
        """
        with _locked(self.folder, fcntl.LOCK_SH):
            yield

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
    """The features of a shard, every row verified.

    Raises:
        DamagedFeaturesError: its bytes are no shard, or a row does not fit its checksum.
        ResourceError: it cannot be read.
    """
    with reports_unreadable(path):
        content = path.read_bytes()
    try:
        keys, features, checksums = tables_of(content)
    except ValueError as error:
        raise DamagedFeaturesError(path, str(error)) from None
    wrong = row_checksums(features, keys) != checksums
    if wrong.any():
        raise DamagedFeaturesError(path, f"row {int(np.argmax(wrong))} does not fit its checksum")
    return features


@dataclass(frozen=True)
class CachedTeacher:
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
    """Shards that were put aside; their rows and bytes are not counted."""


def list_cached(root: Path) -> list[CachedTeacher]:
    """All teachers of a cache, by name; logs where damaged shards take up room."""
    teachers = [_describe(folder) for folder in _teacher_folders(root)]
    for one in teachers:
        if one.damaged:
            log.warning("%s: %d damaged shards, which --prune frees", root / one.name, one.damaged)
    return teachers


def prune(root: Path, name: str = "") -> list[CachedTeacher]:
    """Free the cache of all teachers whose name starts with `name`; returns what was there.

    Raises:
        InputError: there is no such teacher.
        ResourceError: a running process uses it, or it cannot be removed.
    """
    chosen = [folder for folder in _teacher_folders(root) if folder.name.startswith(name)]
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
    """The first of the teacher's possible folders that is not there yet, or whose probe agrees."""
    for folder in _possible_folders(root, teacher):
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


def _possible_folders(root: Path, teacher: TeacherIdentity) -> Iterator[Path]:
    name = [f"schema {_SCHEMA}", teacher.fingerprint]
    yield root / hash_strings(name)[:16]
    for number in itertools.count():
        yield root / hash_strings([*name, teacher.library, str(number)])[:16]


def _read_probe(folder: Path) -> NDArray[np.float32] | None:
    """The probe of a folder; None where it has none, or none that can be made out.

    Raises:
        ResourceError: it cannot be read. Taken for absent, it would be written anew, over the
            features of another version.
    """
    path = folder / "teacher.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return np.array(content["probe"], np.float32)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(path, error) from error
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
    return hashlib.sha256(keys.tobytes()).hexdigest()[:32]


def _pack_shard(
    keys: Keys, features: Float16[np.ndarray, "rows dim"], teacher: str, kind: Kind
) -> bytes:
    """The bytes of a shard; made in memory, so that a full disk is met by a plain write."""
    import h5py

    tables = {"keys": keys, "features": features, "checksums": row_checksums(features, keys)}
    with h5py.File(
        "shard", "w", driver="core", backing_store=False, userblock_size=HEADER_BYTES
    ) as file:
        for name, table in tables.items():
            file[name] = table
        file.attrs.update(teacher=teacher, kind=kind, schema=_SCHEMA)
        places = {name: file[name].id.get_offset() for name in tables}
        file.flush()
        content = bytes(file.id.get_file_image())
    header = ShardHeader(teacher, kind, *features.shape, **places)
    return header.pack() + content  # an image comes without the user block


def _read_keys(path: Path, fingerprint: str) -> Keys:
    """The keys of a shard, without its features."""
    try:
        with reports_unreadable(path), path.open("rb") as stream:
            header = ShardHeader.parse(stream.read(HEADER_BYTES))
            content = read_piece(stream, header.keys, header.rows * KEY_BYTES)
    except ValueError as error:
        raise DamagedFeaturesError(path, str(error)) from None
    keys = np.frombuffer(content, np.uint8).reshape(-1, KEY_BYTES)
    if header.teacher != fingerprint or _name(keys) != path.stem:
        raise DamagedFeaturesError(path, "its keys are not those it was written with")
    return keys


def _unzip(
    pairs: Iterable[tuple[Path, Keys]],
) -> tuple[list[Path], list[UInt8[np.ndarray, "_ 16"]]]:
    paths, tables = [], []
    for path, keys in pairs:
        paths.append(path)
        tables.append(keys)
    return paths, tables


def _locate(
    tables: Sequence[UInt8[np.ndarray, "_ 16"]], wanted: UInt8[np.ndarray, "wanted 16"]
) -> tuple[Int64[np.ndarray, " wanted"], Bool[np.ndarray, " wanted"]]:
    """Where each wanted key stands in the tables put one behind the other, and which stand nowhere.

    A key that stands in several shards is taken from the first, by name.
    """
    if not tables:
        return np.zeros(len(wanted), np.int64), np.ones(len(wanted), dtype=bool)
    known = _sortable(np.concatenate(tables))
    order = np.argsort(known, kind="stable")
    place = np.searchsorted(known, _sortable(wanted), sorter=order).clip(max=len(known) - 1)
    where = order[place].astype(np.int64)
    return where, known[where] != _sortable(wanted)


def _dim_of(paths: Sequence[Path]) -> int:
    """The width of the features."""
    if not paths:
        return 0
    try:
        return read_header(paths[0]).dim
    except ValueError as error:
        raise DamagedFeaturesError(paths[0], str(error)) from None


def _teacher_folders(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.glob("*/teacher.json"))


def _shards(folder: Path) -> list[Path]:
    """The shards of one kind, by name. A folder that cannot be listed is not taken for empty."""
    try:
        paths = sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(folder, error) from error
    return [path for path in paths if path.suffix == ".h5"]


def _describe(folder: Path) -> CachedTeacher:
    shards = {kind: _shards(folder / kind) for kind in KINDS}
    every = [path for paths in shards.values() for path in paths]
    try:
        teacher = dict(json.loads((folder / "teacher.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        teacher = {}
    return CachedTeacher(
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
    try:
        return read_header(path).rows
    except (ValueError, PipelineError):
        return 0


@contextlib.contextmanager
def _locked(folder: Path, mode: int) -> Iterator[None]:
    """Hold a lock on a folder while the block runs.

    Raises:
        ResourceError: another process holds it, or an exclusive one is asked for where there are
            no locks. Shared ones are then done without.
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
            raise unreadable(folder, error) from error
        _do_without_lock(folder, mode)


def _do_without_lock(folder: Path, mode: int) -> None:
    if mode & fcntl.LOCK_EX:
        raise ResourceError(
            f"{folder} cannot be locked there, so that nobody can tell whether it is in use.",
            "make sure that no `features` runs on any machine, and remove the folder by hand.",
        )
    log.warning("%s cannot be locked there: do not remove it while this runs", folder)
