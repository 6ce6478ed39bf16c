"""Feature rows that are spread over files, read as one table."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float16, Int64
from numpy.typing import NDArray

Opener = Callable[[Path], Float16[np.ndarray, "file dim"]]


@dataclass(frozen=True)
class Run:
    """Rows that stand one behind the other in a file and in the whole table."""

    path: Path
    source: int
    """Row in the file of the first of them."""
    start: int
    """Row in the whole table of the first of them."""
    count: int


class JoinedRows:
    """A table of features made of runs of rows in files; files are opened where rows are asked for.

    Args:
        runs: in the order of the table, without gaps.
        dim: columns.
        open_file: gives the rows of a file, as an array or a map of it.
        keep: files that stay open.
    """

    def __init__(self, runs: Sequence[Run], dim: int, open_file: Opener, *, keep: int) -> None:
        self.runs = runs
        self._paths = sorted({run.path for run in runs})
        numbers = {path: number for number, path in enumerate(self._paths)}
        self._files = np.array([numbers[run.path] for run in runs], dtype=np.int64)
        self._starts = np.array([run.start for run in runs], dtype=np.int64)
        self._sources = np.array([run.source for run in runs], dtype=np.int64)
        self._length = runs[-1].start + runs[-1].count if runs else 0
        self._dim = dim
        self._open = functools.lru_cache(maxsize=keep)(open_file)

    def __len__(self) -> int:
        return self._length

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self._length, self._dim

    def __getitem__(self, rows: slice | NDArray[np.integer]) -> Float16[np.ndarray, "chosen dim"]:
        """The rows of a slice, or those at the given places, as a new array."""
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(self._length))
        places = np.asarray(rows, dtype=np.int64)
        chosen = np.empty((len(places), self._dim), np.float16)
        for path, where, source in self._by_file(places):
            chosen[where] = self._open(path)[source]
        return chosen

    def _by_file(
        self, places: Int64[np.ndarray, " chosen"]
    ) -> Iterator[tuple[Path, NDArray[np.intp], Int64[np.ndarray, " some"]]]:
        """For each file: which of the chosen rows it holds, and where."""
        run = np.searchsorted(self._starts, places, side="right") - 1
        source = self._sources[run] + places - self._starts[run]
        order = np.argsort(self._files[run], kind="stable")
        for where in np.split(order, np.flatnonzero(np.diff(self._files[run][order])) + 1):
            if len(where):
                yield self._paths[self._files[run[where[0]]]], where, source[where]


def runs_of(
    paths: Sequence[Path], file: Int64[np.ndarray, " rows"], row: Int64[np.ndarray, " rows"]
) -> list[Run]:
    """Rows given one by one, as the fewest runs.

    Args:
        paths: the files.
        file: for each row of the table, the number of its file.
        row: and its row there.
    """
    breaks = np.flatnonzero((np.diff(file) != 0) | (np.diff(row) != 1)) + 1
    starts = np.concatenate([[0], breaks]) if len(file) else breaks
    counts = np.diff(np.append(starts, len(file)))
    return [
        Run(paths[file[start]], int(row[start]), int(start), int(count))
        for start, count in zip(starts, counts, strict=True)
    ]
