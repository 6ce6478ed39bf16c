"""Checksums of files: what a disk, a memory or a hand changed is noticed before it is used.

`checksums.json` of a folder holds the sha256 of its sealed files by name. A file without an entry
is taken as it is: folders that others made have none. Files of a folder that several machines write
to carry their checksum themselves, as their last line, which their readers do not look at.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.errors import InputError, ResourceError
from pipeline.core.files import write_json
from pipeline.core.redact import first_line

if TYPE_CHECKING:
    from torch import nn


CHECKSUMS = "checksums.json"
_LINE = b"\ncrc32 %08x\n"
_LINE_BYTES = len(_LINE % 0)
_CHUNK = 1 << 22


def write_checksums(folder: Path, *names: str) -> None:
    """Note the sha256 of files of a folder, which nobody else writes to at this moment.

    Raises:
        InputError: the checksums that are there are no such.
        ResourceError: the disk is full, or the place cannot be written.
    """
    notes = folder / CHECKSUMS
    known = _read(notes, f"delete {notes}.")
    write_json(notes, known | {name: hash_file(folder / name) for name in names})


def verify_checksums(folder: Path, *names: str, fix: str, most: int | None = None) -> None:
    """Refuse files of a folder that are not what was sealed.

    Args:
        folder: theirs.
        names: the files; those that are missing are left to who opens them.
        fix: what makes them anew.
        most: bytes above which a file is not read for this; None: all are.

    Raises:
        InputError: naming the first that changed, or the checksums if they are no such.
        ResourceError: the system does not let us read one.
    """
    known = _read(folder / CHECKSUMS, fix)
    for path in (folder / name for name in names if name in known):
        if _is_read(path, most) and _hash(path) != known[path.name]:
            raise InputError(f"{path} is damaged: its sha256 is not the one in {CHECKSUMS}.", fix)


def _is_read(path: Path, most: int | None) -> bool:
    return path.is_file() and (most is None or path.stat().st_size <= most)


def _hash(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"{path} cannot be read: {(error.strerror or str(error)).lower()}.",
        "make it readable and run the same command again.",
    )


def _read(notes: Path, fix: str) -> dict[str, str]:
    try:
        return dict(json.loads(notes.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _unreadable(notes, error) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{notes} holds no checksums: {first_line(error)}.", fix) from None


def add_checksum(path: Path) -> None:
    """Append the CRC-32 of a file to it."""
    with path.open("r+b") as stream:
        checksum = _checksum(path, path.stat().st_size)
        stream.seek(0, os.SEEK_END)
        stream.write(_LINE % checksum)


def is_whole(path: Path) -> bool:
    """Whether a file is there and ends with the CRC-32 of what stands before.

    Raises:
        OSError: it is there and cannot be read.
    """
    if not path.is_file() or (size := path.stat().st_size - _LINE_BYTES) < 0:
        return False
    with path.open("rb") as stream:
        stream.seek(size)
        return stream.read() == _LINE % _checksum(path, size)


def _checksum(path: Path, size: int) -> int:
    checksum = 0
    with path.open("rb") as stream:
        while chunk := stream.read(min(_CHUNK, size - stream.tell())):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def hash_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_weights(model: "nn.Module", *, without: str = "") -> str:
    """The sha256 of a model's loaded weights by name, in hex.

    Args:
        model: whose weights.
        without: leave out what this stands in the name of.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if without and without in name:
            continue
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def hash_strings(parts: Iterable[str]) -> str:
    """The sha256 of a sequence of strings, in hex; the split between parts counts."""
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()
