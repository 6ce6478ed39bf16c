"""Reading packed files without ever unpacking them to disk."""

import errno
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import IO, cast

from pipeline.core.errors import InputError, PipelineError
from pipeline.core.files import refusal
from pipeline.core.redact import one_line

MAX_MEMBER_BYTES = 256 * 1024**2
"""No single member of an archive may be larger when unpacked."""

MAX_RATIO = 100
"""Beyond MAX_MEMBER_BYTES, a compressed tar may unpack to no more than this many times its size."""

_FAULTS = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What the libraries raise about damaged bytes; they let pass what their own code stumbles over."""

_SAID_OF_DAMAGE = (None, errno.EINVAL, errno.EOVERFLOW)
"""The errno of decoders, and of a seek to where only a damaged archive would point."""

_LONGEST = 120
"""Characters of a member's name, or of what a library says, in a message."""

_Entry = zipfile.ZipInfo | tarfile.TarInfo


class Archive:
    """A zip or tar file whose members are read into memory, one at a time.

    Nothing is written to disk, so that no member can reach a path outside; only regular files
    are listed, so links and devices cannot be followed; sizes are bounded before reading, and so
    is what has to be unpacked of a compressed tar to list it.

    Where several members have one name, the last of them counts, as for those who unpack it.

    Args:
        path: the archive.

    Raises:
        InputError: it is not there, no zip or tar file, damaged, or unpacks to too much.
        ResourceError: it cannot be read, which says nothing of its content.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = self._open()
        except _FAULTS as error:
            raise self._fault(error) from None
        try:
            entries = self._list_entries()
        except _FAULTS as error:
            self._file.close()
            raise self._fault(error) from None
        self._entries = dict(entries)
        self.sizes = {name: _size(entry) for name, entry in self._entries.items()}
        self.repeated = len(entries) - len(self._entries)
        """Members whose name another one has too."""

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, member: str) -> bytes:
        """The bytes of one member.

        Raises:
            KeyError: there is no regular file of that name.
            InputError: it is larger than MAX_MEMBER_BYTES, or damaged.
            ResourceError: the archive cannot be read any more.
        """
        size = self.sizes[member]
        if size > MAX_MEMBER_BYTES:
            raise InputError(
                f"{self.path}: {one_line(member, _LONGEST)} unpacks to {size:,} bytes, "
                f"more than {MAX_MEMBER_BYTES:,}.",
                "remove it from the archive, or get the archive from its source again.",
            )
        try:
            with self._stream(member) as stream:
                return stream.read(size + 1)[:size]
        except _FAULTS as error:
            raise self._fault(error, member) from None

    def _open(self) -> zipfile.ZipFile | tarfile.TarFile:
        if not self.path.is_file():
            raise InputError(f"{self.path} does not exist.", "run `dvc repro -f download`.")
        if zipfile.is_zipfile(self.path):
            return zipfile.ZipFile(self.path)
        return tarfile.open(self.path)  # closed by __exit__

    def _list_entries(self) -> list[tuple[str, _Entry]]:
        if isinstance(self._file, zipfile.ZipFile):
            return [(info.filename, info) for info in self._file.infolist() if not info.is_dir()]
        members = [info for info in self._members(self._file) if info.isreg()]
        _require_end(self._file)
        return [(info.name.removeprefix("./"), info) for info in members]

    def _members(self, file: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
        """The entries of a tar; each is held against the bound before the next is looked for."""
        bound = max(MAX_MEMBER_BYTES, MAX_RATIO * self.path.stat().st_size)
        for info in file:
            if info.offset_data + info.size > bound:
                raise tarfile.ReadError(f"with {info.name} it unpacks to more than {bound:,} bytes")
            yield info

    def _stream(self, member: str) -> BufferedIOBase:
        entry = self._entries[member]
        if isinstance(self._file, zipfile.ZipFile):
            return cast(BufferedIOBase, self._file.open(cast(zipfile.ZipInfo, entry)))
        return cast(BufferedIOBase, self._file.extractfile(cast(tarfile.TarInfo, entry)))

    def _fault(self, error: Exception, member: str = "") -> PipelineError:
        if isinstance(error, OSError) and error.errno not in _SAID_OF_DAMAGE:
            return refusal(self.path, error)
        reason = one_line(" ".join(str(error).split()) or type(error).__name__, _LONGEST)
        where = f"{self.path}: {one_line(member, _LONGEST)}" if member else self.path
        return InputError(
            f"{where} is damaged or truncated ({reason}).",
            f"delete {self.path.name} and fetch it again.",
        )


def _size(entry: _Entry) -> int:
    return entry.file_size if isinstance(entry, zipfile.ZipInfo) else entry.size


def _require_end(file: tarfile.TarFile) -> None:
    """Refuse a tar that does not end with zeros, as every tar must.

    tarfile takes whatever is no header, such as a damaged one, for the end.
    """
    stream = cast(IO[bytes], file.fileobj)
    stream.seek(file.offset)
    end = stream.read(tarfile.BLOCKSIZE)
    if not end or any(end):
        raise tarfile.ReadError(f"no member and no end at byte {file.offset:,}")
