"""Feature rows in memory or spread over files, read as one table."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float16, Int64
from numpy.typing import NDArray

Places = Int64[np.ndarray, " chosen"]


class JoinedRows:
    """A table of rows in files, which are read when rows are asked for.

    Args:
        paths: the files.
        file: for each row of the table, the number of its file.
        row: and its row there.
        dim: columns.
        read: gives all rows of a file; it may keep some files.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        file: Int64[np.ndarray, " rows"],
        row: Int64[np.ndarray, " rows"],
        dim: int,
        read: Callable[[Path], Float16[np.ndarray, "_ dim"]],
    ) -> None:
        self._paths = paths
        self._file = file
        self._row = row
        self._dim = dim
        self._read = read

    def __len__(self) -> int:
        return len(self._file)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self), self._dim

    def __getitem__(self, rows: slice | NDArray[np.integer]) -> Float16[np.ndarray, "chosen dim"]:
        """The rows of a slice, or those at the given places, as a new array."""
        file, row = self._file[rows], self._row[rows]
        chosen = np.empty((len(file), self._dim), np.float16)
        for number in np.unique(file):
            is_there = file == number
            chosen[is_there] = self._read(self._paths[number])[row[is_there]]
        return chosen

    def pieces(self, size: int) -> Iterator[tuple[Places, Float16[np.ndarray, "chosen dim"]]]:
        """All rows, up to `size` at a time, with their places, which ascend within a piece.

        Pieces are in the order of the files: where `read` keeps the last file, each is read once.
        """
        order = np.argsort(self._file, kind="stable")
        for start in range(0, len(order), size):
            places = np.sort(order[start : start + size])
            yield places, self[places]


FeatureRows = Float16[np.ndarray, "_ _"] | JoinedRows
"""Features, in memory, mapped from a file, or joined from many; slices and places give arrays."""


@dataclass(frozen=True)
class Features:
    """Features with the ids of their rows; see `store.py`."""

    images: FeatureRows
    image_ids: Int64[np.ndarray, " images"]
    captions: FeatureRows
    caption_ids: Int64[np.ndarray, " captions"]
    caption_image: Int64[np.ndarray, " captions"]
    teacher: str = ""
    """sha256 over the weights that made them; empty where that is not recorded."""
    digest: str = ""
    """sha256 of the file they were read from; empty where they were never in a file."""

    @property
    def dim(self) -> int:
        """Width of the teacher's space."""
        return int(self.images.shape[1])
