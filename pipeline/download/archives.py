"""Reading packed files without ever unpacking them to disk."""

import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import cast

from pipeline.errors import InputError

MAX_MEMBER_BYTES = 256 * 1024**2
"""No single member of an archive may be larger when unpacked."""

MAX_RATIO = 100
"""Beyond MAX_MEMBER_BYTES, a compressed tar may unpack to no more than this many times its size."""

_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, RuntimeError)


class Archive:
    """A zip or tar file whose members are read into memory, one at a time.

    Nothing is written to disk, so that no member can reach a path outside; only regular files
    are listed, so links and devices cannot be followed; sizes are bounded before reading, and so
    is what has to be unpacked of a compressed tar to list it.

    Args:
        path: the archive.

    Raises:
        InputError: it is no readable zip or tar file, or unpacks to too much.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise InputError(f"{path} does not exist.", "run `dvc repro -f download`.")
        try:
            self._file = self._open()
        except _DAMAGE as error:
            raise self._damaged(error) from None
        try:
            self.sizes = self._list_sizes()
        except _DAMAGE as error:
            self._file.close()
            raise self._damaged(error) from None

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, member: str) -> bytes:
        """The bytes of one member.

        Raises:
            KeyError: there is no regular file of that name.
            InputError: it is larger than MAX_MEMBER_BYTES, or damaged.
        """
        size = self.sizes[member]
        if size > MAX_MEMBER_BYTES:
            raise InputError(
                f"{self.path}: {member} unpacks to {size:,} bytes, more than {MAX_MEMBER_BYTES:,}.",
                "remove it from the archive, or get the archive from its source again.",
            )
        try:
            with self._stream(member) as stream:
                return stream.read(size + 1)[:size]
        except _DAMAGE as error:
            raise self._damaged(error, member) from None

    def _open(self) -> zipfile.ZipFile | tarfile.TarFile:
        if zipfile.is_zipfile(self.path):
            return zipfile.ZipFile(self.path)
        return tarfile.open(self.path)  # closed by __exit__

    def _list_sizes(self) -> dict[str, int]:
        if isinstance(self._file, zipfile.ZipFile):
            entries = [info for info in self._file.infolist() if not info.is_dir()]
            return {info.filename: info.file_size for info in entries}
        members = [info for info in self._members(self._file) if info.isreg()]
        return {info.name.removeprefix("./"): info.size for info in members}

    def _members(self, file: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
        """The entries of a tar; each is held against the bound before the next is looked for."""
        bound = max(MAX_MEMBER_BYTES, MAX_RATIO * self.path.stat().st_size)
        for info in file:
            if info.offset_data + info.size > bound:
                raise tarfile.ReadError(f"with {info.name} it unpacks to more than {bound:,} bytes")
            yield info

    def _stream(self, member: str) -> BufferedIOBase:
        if isinstance(self._file, zipfile.ZipFile):
            return cast(BufferedIOBase, self._file.open(member))
        names = set(self._file.getnames())
        stream = self._file.extractfile(member if member in names else f"./{member}")
        if stream is None:
            raise KeyError(member)
        return cast(BufferedIOBase, stream)

    def _damaged(self, error: Exception, member: str = "") -> InputError:
        reason = " ".join(str(error).split()) or type(error).__name__
        return InputError(
            f"{self.path}{': ' + member if member else ''} is damaged or truncated ({reason}).",
            f"delete {self.path.name} and fetch it again.",
        )
