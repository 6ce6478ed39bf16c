"""Packed files: read without ever unpacking them to disk, and written one member at a time."""

import contextlib
import errno
import tarfile
import weakref
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from pipeline.core.errors import InputError, PipelineError
from pipeline.core.files import atomic_file, refusal
from pipeline.core.redact import one_line

MAX_MEMBER_BYTES = 256 * 1024**2
"""No single member of an archive may be larger when unpacked."""

MAX_RATIO = 100
"""Beyond MAX_MEMBER_BYTES, a compressed tar may unpack to no more than this many times its size."""

_SAID_OF_DAMAGE = (None, errno.EINVAL, errno.EOVERFLOW)
"""The errno of decoders, and of a seek to where only a damaged archive would point."""

_LONGEST = 120
"""Characters of a member's name, or of what a library says, in a message."""


class Archive:
    """A zip or tar file whose members are read into memory, one at a time.

    Nothing is written to disk, so no member can reach a path outside; only regular files are
    listed, so links and devices cannot be followed; sizes are bounded before reading, and so is
    what has to be unpacked of a compressed tar to list it.

    Where several members have one name, the last of them counts, as when unpacking.

    Raises:
        InputError: it is not there, not a zip or tar file, damaged, or unpacks to too much.
        ResourceError: it cannot be read, which says nothing about its content.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with contextlib.ExitStack() as stack:
            with self._reports_damage():
                self._file = self._open()
                stack.callback(self._file.close)
                members = self._list_members()
            stack.pop_all()
        weakref.finalize(self, self._file.close)  # where nobody does
        self._entries = {name: entry for name, entry, _ in members}
        self.sizes = {name: size for name, _, size in members}
        self.repeated = len(members) - len(self.sizes)
        """Members that share their name with a later one."""

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, member: str) -> bytes:
        """The bytes of one member.

        Raises:
            KeyError: there is no regular file of that name.
            InputError: it is larger than MAX_MEMBER_BYTES, or damaged.
            ResourceError: the archive can no longer be read.
        """
        size = self.sizes[member]
        if size > MAX_MEMBER_BYTES:
            raise InputError(
                f"{self.path}: {one_line(member, _LONGEST)} unpacks to {size:,} bytes, "
                f"more than {MAX_MEMBER_BYTES:,}.",
                "remove it from the archive, or get the archive from its source again.",
            )
        file = cast(Any, self._file)
        open_member = file.open if isinstance(file, zipfile.ZipFile) else file.extractfile
        with self._reports_damage(member), open_member(self._entries[member]) as stream:
            return bytes(stream.read(size + 1)[:size])

    def _open(self) -> zipfile.ZipFile | tarfile.TarFile:
        if not self.path.is_file():
            raise InputError(f"{self.path} does not exist.", "run `dvc repro -f download`.")
        if zipfile.is_zipfile(self.path):
            return zipfile.ZipFile(self.path)
        return tarfile.open(self.path)  # closed by __exit__

    def _list_members(self) -> list[tuple[str, Any, int]]:
        """Name, entry and unpacked size of the regular files."""
        if isinstance(self._file, zipfile.ZipFile):
            entries = [entry for entry in self._file.infolist() if not entry.is_dir()]
            return [(entry.filename, entry, entry.file_size) for entry in entries]
        return self._list_tar(self._file)

    def _list_tar(self, file: tarfile.TarFile) -> list[tuple[str, Any, int]]:
        bound = max(MAX_MEMBER_BYTES, MAX_RATIO * self.path.stat().st_size)
        members = []
        for info in file:  # each is checked before the next is looked for
            if info.offset_data + info.size > bound:
                raise tarfile.ReadError(f"with {info.name} it unpacks to more than {bound:,} bytes")
            if info.isreg():
                members.append((info.name.removeprefix("./"), info, info.size))
        # A tar ends with zeros; tarfile takes anything that is not a header for the end.
        stream = cast(IO[bytes], file.fileobj)
        stream.seek(file.offset)
        end = stream.read(tarfile.BLOCKSIZE)
        if not end or any(end):
            raise tarfile.ReadError(f"no member and no end at byte {file.offset:,}")
        while stream.tell() < bound and stream.read(1 << 16):
            pass  # at its end gzip verifies the checksum
        return members

    @contextlib.contextmanager
    def _reports_damage(self, member: str = "") -> Iterator[None]:
        try:
            yield
        except (MemoryError, PipelineError):
            raise
        except Exception as error:  # noqa: BLE001  # damaged bytes make libraries raise anything
            if isinstance(error, OSError) and error.errno not in _SAID_OF_DAMAGE:
                raise refusal(self.path, error) from None
            reason = one_line(" ".join(str(error).split()) or type(error).__name__, _LONGEST)
            where = f"{self.path}: {one_line(member, _LONGEST)}" if member else self.path
            raise InputError(
                f"{where} is damaged or truncated ({reason}).",
                f"delete {self.path.name} and fetch it again.",
            ) from None


class Packer:
    """Adds members to a zip that is being written; without one, they are only counted."""

    def __init__(self, archive: zipfile.ZipFile | None) -> None:
        self.members = 0
        """Members that were added."""
        self._archive = archive

    def add(self, member: str, content: bytes) -> None:
        """Add one member; its name must be new."""
        self.members += 1
        if self._archive is not None:
            entry = zipfile.ZipInfo(member)  # dated alike, but it names the operating system
            entry.create_system = 3
            self._archive.writestr(entry, content)


@contextlib.contextmanager
def pack(path: Path) -> Iterator[Packer]:
    """Write a zip of stored members; it is whole or not there.

    Equal members under equal names in equal order give equal bytes.
    """
    with atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        yield Packer(archive)
