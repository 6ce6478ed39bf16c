"""Checksums of files: damage by disk, memory or hand is noticed before the file is used.

`checksums.json` of a folder holds the sha256 of its files by name. A file without an entry is
accepted: folders made by other programs have none. A file in a folder that several machines write
to ends with its own checksum instead, as a last line that its readers skip.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from pipeline.core.errors import InputError
from pipeline.core.files import reports_unreadable, write_json

if TYPE_CHECKING:
    from torch import nn

CHECKSUMS = "checksums.json"
_ENTRIES = TypeAdapter(dict[str, str])
_LINE = b"\nsha256 %b\n"
_LINE_BYTES = len(_LINE % (b"0" * 64))
_CHUNK = 1 << 22


def write_checksums(folder: Path, *names: str) -> None:
    """Record the sha256 of files of a folder that no other process is writing to.

    Raises:
        InputError: the folder's `checksums.json` is damaged.
        ResourceError: the disk is full, or the folder cannot be written.
    """
    path = folder / CHECKSUMS
    known = read_checksums(folder, fix=f"delete {path}.")
    write_json(path, known | {name: hash_file(folder / name) for name in names})


def read_checksums(folder: Path, fix: str) -> dict[str, str]:
    """The entries of the `checksums.json` of a folder; empty where there is none.

    Raises:
        InputError: the file is damaged; `fix` says what to do.
        ResourceError: it cannot be read.
    """
    path = folder / CHECKSUMS
    with reports_unreadable(path):
        content = path.read_bytes() if path.exists() else b"{}"
    try:
        return _ENTRIES.validate_json(content, strict=True)
    except ValidationError:
        raise InputError(f"{path} holds no checksums.", fix) from None


def verify_checksums(folder: Path, *names: str, fix: str, most: int | None = None) -> None:
    """Refuse files of a folder whose bytes are not those that were recorded.

    Missing files are left to their readers; those larger than `most` bytes are not read for this.

    Raises:
        InputError: naming the first file that changed, or `checksums.json` where it is damaged, and
            how to get the files again (`fix`).
        ResourceError: a file cannot be read.
    """
    known = read_checksums(folder, fix)
    for path in (folder / name for name in names if name in known):
        if not path.is_file() or (most is not None and path.stat().st_size > most):
            continue
        with reports_unreadable(path):
            found = hash_file(path)
        if found != known[path.name]:
            raise InputError(f"{path} is damaged: its sha256 is not the one in {CHECKSUMS}.", fix)


def add_checksum(path: Path) -> None:
    """Append the sha256 of a file to it."""
    digest = hash_file(path)
    with path.open("ab") as stream:
        stream.write(_LINE % digest.encode())


def verified_hash(path: Path) -> str | None:
    """The sha256 that a file ends with; None where it has none, or does not match it."""
    size, digest = path.stat().st_size - _LINE_BYTES, hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(max(0, min(_CHUNK, size - stream.tell()))):
            digest.update(chunk)
        found = digest.hexdigest()
        return found if stream.read() == _LINE % found.encode() else None


def is_whole(path: Path) -> bool:
    """Whether a file is there and ends with the sha256 of everything before it."""
    return path.is_file() and verified_hash(path) is not None


def hash_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_weights(model: "nn.Module", *, without: str = "") -> str:
    """The sha256 of a model's loaded weights by name, in hex, but of those named like `without`."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not (without and without in name):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def hash_strings(parts: Iterable[str]) -> str:
    """The sha256 of a sequence of strings, in hex; it depends on where the parts are split."""
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()
