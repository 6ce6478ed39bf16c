"""Feature rows that are spread over files, read as one table."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Float16, Int64
from numpy.typing import NDArray

Places = Int64[np.ndarray, " chosen"]


class FileRows(Protocol):
    """The rows of a file, as an array or what reads them."""

    def __getitem__(self, rows: NDArray[np.int64], /) -> Float16[np.ndarray, "chosen dim"]:
        """The rows at the given places, as a new array."""
        ...


Opener = Callable[[Path], FileRows]


@dataclass(frozen=True)
class Run:
    """Rows that stand one behind the other in a file and in the whole table."""

    path: Path
    source: int
    """Row in the file of the first of them."""
    start: int
    """Row in the whole table of the first of them."""
    count: int


@dataclass(frozen=True)
class Runs:
    """A table as runs of rows, in the order of the table and without gaps."""

    paths: Sequence[Path]
    """The files, in the order in which the table first needs them."""
    file: Int64[np.ndarray, " runs"]
    """Number of each run's file."""
    source: Int64[np.ndarray, " runs"]
    """Row in the file of each run's first."""
    start: Int64[np.ndarray, " runs"]
    """Row in the table of each run's first."""
    rows: int
    """Of the table."""

    def __len__(self) -> int:
        return len(self.start)

    def __iter__(self) -> Iterator[Run]:
        columns = (self.file, self.source, self.start, self.counts)
        for file, source, start, count in zip(*(c.tolist() for c in columns), strict=True):
            yield Run(self.paths[file], source, start, count)

    @property
    def counts(self) -> Int64[np.ndarray, " runs"]:
        """Rows of each run."""
        return np.diff(self.start, append=self.rows)

    def find(self, places: Places) -> tuple[Places, Places]:
        """For rows of the table: the number of the file, and the row there."""
        run = np.searchsorted(self.start, places, side="right") - 1
        return self.file[run], self.source[run] + places - self.start[run]

    def pieces(self, size: int) -> Iterator[Places]:
        """All rows of the table, `size` at a time, those of one file one behind the other."""
        order = np.argsort(self.file, kind="stable")
        counts = self.counts[order]
        ends = np.cumsum(counts)
        moved = self.start[order] - (ends - counts)
        for begin in range(0, self.rows, size):
            position = np.arange(begin, min(begin + size, self.rows))
            yield position + moved[np.searchsorted(ends, position, side="right")]


class JoinedRows:
    """A table of features made of runs of rows in files; files are opened where rows are asked for.

    Args:
        runs: of the table.
        dim: columns.
        open_file: gives the rows of a file, as an array or a map of it; it may keep some.
    """

    def __init__(self, runs: Runs, dim: int, open_file: Opener) -> None:
        self.runs = runs
        self._dim = dim
        self._open = open_file

    def __len__(self) -> int:
        return self.runs.rows

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.runs.rows, self._dim

    def __getitem__(self, rows: slice | NDArray[np.integer]) -> Float16[np.ndarray, "chosen dim"]:
        """The rows of a slice, or those at the given places, as a new array."""
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        places = np.asarray(rows, dtype=np.int64)
        chosen = np.empty((len(places), self._dim), np.float16)
        for path, where, source in self._by_file(places):
            chosen[where] = self._open(path)[source]
        return chosen

    def pieces(self, size: int) -> Iterator[tuple[Places, Float16[np.ndarray, "chosen dim"]]]:
        """All rows, up to `size` at a time, with their places, which ascend within a piece.

        No file is needed again once another was: an opener that keeps the last one opens each once.
        """
        for places in self.runs.pieces(size):
            places.sort()
            yield places, self[places]

    def _by_file(
        self, places: Places
    ) -> Iterator[tuple[Path, NDArray[np.intp], NDArray[np.int64]]]:
        """For each file, in their order: which of the chosen rows it holds, and where."""
        file, source = self.runs.find(places)
        order = np.argsort(file, kind="stable")
        for where in np.split(order, np.flatnonzero(np.diff(file[order])) + 1):
            if len(where):
                yield self.runs.paths[file[where[0]]], where, source[where]


FeatureRows = Float16[np.ndarray, "_ _"] | JoinedRows
"""Features, in memory, mapped from one file, or from many; a slice or places give an array."""


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
    """Hash of all features as written; empty where they were never in a file."""

    @property
    def dim(self) -> int:
        """Width of the teacher's space."""
        return int(self.images.shape[1])


def runs_of(
    paths: Sequence[Path], file: Int64[np.ndarray, " rows"], row: Int64[np.ndarray, " rows"]
) -> Runs:
    """Rows given one by one, as the fewest runs.

    Args:
        paths: the files; those that no row is in are left out.
        file: for each row of the table, the number of its file.
        row: and its row there.
    """
    is_first = np.ones(len(file), dtype=bool)
    is_first[1:] = (np.diff(file) != 0) | (np.diff(row) != 1)
    start = np.flatnonzero(is_first).astype(np.int64)
    numbers, first, number = np.unique(file[start], return_index=True, return_inverse=True)
    order = np.argsort(first)
    return Runs(
        paths=[paths[n] for n in numbers[order]],
        file=np.argsort(order)[number].astype(np.int64),
        source=row[start],
        start=start,
        rows=len(file),
    )
