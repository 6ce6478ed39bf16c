"""Packing images into one zip: stored, not compressed, and dated alike.

Equal images under equal names in equal order give equal bytes.
"""

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.core.files import atomic_file


class Packer:
    """Adds members to a zip that is being written."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.members = 0
        """Members that were added."""
        self._archive = archive

    def add(self, member: str, content: bytes) -> None:
        """Add one member; its name must be new."""
        self._archive.writestr(_entry(member), content)
        self.members += 1


@contextlib.contextmanager
def pack(path: Path) -> Iterator[Packer]:
    """Write a zip, member by member; it is whole or not there.

    Raises:
        ResourceError: the disk is full, or the place cannot be written.
    """
    with atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        yield Packer(archive)


def _entry(member: str) -> zipfile.ZipInfo:
    # ZipInfo's own defaults are a fixed date, but the name of the operating system.
    entry = zipfile.ZipInfo(member)
    entry.create_system = 3
    return entry
