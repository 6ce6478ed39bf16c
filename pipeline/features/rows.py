"""Feature rows in memory or spread over files, read as one table."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float16, Int64
from numpy.typing import NDArray

Places = Int64[np.ndarray, " chosen"]


@dataclass(frozen=True, eq=False)
class JoinedRows:
    """A table of rows in files, which are read when rows are asked for."""

    paths: Sequence[Path]
    file: Int64[np.ndarray, " rows"]
    """For each row of the table, the number of its file,"""
    row: Int64[np.ndarray, " rows"]
    """and its row there."""
    dim: int
    read: Callable[[Path], Float[np.ndarray, "_ dim"]]
    """Gives all rows of a file; it may keep some files."""

    def __len__(self) -> int:
        return len(self.file)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self), self.dim

    def __getitem__(self, rows: slice | NDArray[np.integer]) -> Float16[np.ndarray, "chosen dim"]:
        """The rows of a slice, or those at the given places, as a new array."""
        file, row = self.file[rows], self.row[rows]
        chosen = np.empty((len(file), self.dim), np.float16)
        for number in np.unique(file):
            is_there = file == number
            chosen[is_there] = self.read(self.paths[number])[row[is_there]]
        return chosen

    def pieces(self, size: int) -> Iterator[tuple[Places, Float16[np.ndarray, "chosen dim"]]]:
        """All rows, up to `size` at a time, with their places, which ascend within a piece.

        Pieces are in the order of the files: where `read` keeps the last file, each is read once.
        """
        order = np.argsort(self.file, kind="stable")
        for start in range(0, len(order), size):
            places = np.sort(order[start : start + size])
            yield places, self[places]


@dataclass(frozen=True, eq=False)
class StackedRows:
    """Vectors of several encoders side by side, each of length 1 times the root of its share.

    The dot product of two rows is then the average of the encoders' cosines, by their shares.
    """

    parts: Sequence[JoinedRows]
    """The rows of each encoder."""
    shares: Sequence[float]
    """Of the average; their sum is 1."""

    def __len__(self) -> int:
        return len(self.parts[0])

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self), sum(part.shape[1] for part in self.parts)

    def __getitem__(self, rows: slice | NDArray[np.integer]) -> Float16[np.ndarray, "chosen dim"]:
        """The rows of a slice, or those at the given places, as a new array."""
        return self._stack([part[rows] for part in self.parts])

    def pieces(self, size: int) -> Iterator[tuple[Places, Float16[np.ndarray, "chosen dim"]]]:
        """As `JoinedRows.pieces`, in the order of the first encoder's files."""
        first, *others = self.parts
        for places, piece in first.pieces(size):
            yield places, self._stack([piece, *(part[places] for part in others)])

    def _stack(self, parts: Sequence[NDArray[np.float16]]) -> NDArray[np.float16]:
        columns = []
        for part, share in zip(parts, self.shares, strict=True):
            wide, root = part.astype(np.float32), np.float32(share) ** 0.5
            lengths = np.linalg.norm(wide, axis=1, keepdims=True)
            columns.append(wide * (root / np.maximum(lengths, _SMALLEST)))
        return np.concatenate(columns, axis=1).astype(np.float16)


_SMALLEST = np.float32(1e-12)

FeatureRows = Float16[np.ndarray, "_ _"] | JoinedRows | StackedRows
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
    caption_text: FeatureRows | None = None
    """The text teacher's rows of the captions, where there is one."""
    sentence_text: FeatureRows | None = None
    """And of the text-only sentences, in their order."""

    @property
    def dim(self) -> int:
        """Width of the teacher's space."""
        return int(self.images.shape[1])
