"""HDF5 files of features, which libhdf5 is given only once their checksum was verified.

A single flipped bit can send libhdf5 into an endless loop or end the process. The last line of a
file, after the HDF5 content, is therefore the sha256 of everything before it.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike

from pipeline.core.checksums import verified_hash
from pipeline.core.errors import InputError, MissingArtifactError
from pipeline.core.files import refusal, reports_unreadable
from pipeline.core.redact import first_line

if TYPE_CHECKING:
    import h5py


class DamagedFeaturesError(InputError):
    """A file of features that is damaged, or that this version of the project did not write."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path} is damaged or of an older version: {reason}.",
            "run `dvc repro -f features`; only what is lost is computed again.",
        )
        self.path = path


@contextlib.contextmanager
def open_verified(path: Path) -> Iterator[tuple["h5py.File", str]]:
    """Verify a file, and open it without a lock: files of features never change.

    Yields:
        The open file, and its sha256.

    Raises:
        MissingArtifactError: there is no such file.
        DamagedFeaturesError: its checksum or, in the block, its content is not as it should be.
        ResourceError: the system or libhdf5 cannot read it, which says nothing of its content.
    """
    if not path.exists():
        raise MissingArtifactError(path, made_by="features")
    with reports_unreadable(path):
        digest = verified_hash(path)
    if digest is None:
        raise DamagedFeaturesError(path, "its sha256 is not in its last line")
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file, digest
    except (OSError, RuntimeError) as error:  # libhdf5 fails on verified bytes: memory, a disk
        if isinstance(error, OSError) and error.errno:
            raise refusal(path, error) from error
        raise refusal(path, OSError(first_line(error))) from error
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFeaturesError(path, first_line(error)) from error


def table_of(file: "h5py.File", name: str, dtype: DTypeLike, dimensions: int) -> "h5py.Dataset":
    """A contiguous table of the file itself, which can be mapped at `offset_of`.

    Raises:
        KeyError, ValueError: there is no such table, or it is another.
    """
    import h5py

    table: Any = file[name]
    if not isinstance(table, h5py.Dataset) or table.file != file:
        raise ValueError(f"/{name} is not a table of this file")
    if table.dtype != np.dtype(dtype) or table.ndim != dimensions:
        raise ValueError(f"/{name} has type {table.dtype} and {table.ndim} dimensions")
    layout = table.id.get_create_plist().get_layout()
    if layout != h5py.h5d.CONTIGUOUS or table.external:
        raise ValueError(f"/{name} is not contiguous")
    if offset_of(table) + table.nbytes > file.id.get_filesize():
        raise ValueError(f"/{name} is larger than the file")
    return table


def offset_of(table: "h5py.Dataset") -> int:
    """Where a contiguous table begins in its file, in bytes; 0 for one without rows."""
    return int(table.id.get_offset() or 0)
