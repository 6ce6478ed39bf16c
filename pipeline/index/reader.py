"""An open index in files: FAISS finds the rows, Parquet says what they are."""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Int64

from pipeline.core.errors import InputError
from pipeline.index import faiss_index
from pipeline.index.format import (
    REBUILD,
    ROWS,
    TARGET_OF,
    Hit,
    Space,
    Target,
    Vectors,
    Window,
    normalise,
    require_space,
    require_whole,
    unusable,
)


@dataclass(frozen=True)
class RowTable:
    """The rows behind the vectors; a row group is read when one of its rows is found.

    Threads may share it: Arrow's reader is not safe in threads, so they take turns.
    """

    file: pq.ParquetFile
    path: Path
    _turn: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @classmethod
    def open(cls, path: Path) -> "RowTable":
        """Open a table without reading its rows; InputError where it cannot be used."""
        with unusable(path):
            file = pq.ParquetFile(path, memory_map=True, pre_buffer=False)
        if not file.schema_arrow.equals(ROWS):
            raise InputError(f"{path} has other columns than this version writes.", REBUILD)
        return cls(file, path)

    def __len__(self) -> int:
        return int(self.file.metadata.num_rows)

    @cached_property
    def _starts(self) -> Int64[np.ndarray, " groups"]:
        about = self.file.metadata
        counts = [about.row_group(group).num_rows for group in range(about.num_row_groups)]
        return np.cumsum([0, *counts[:-1]])

    def take(self, rows: Iterable[int]) -> dict[int, dict[str, Any]]:
        """The named rows, each once; InputError where Arrow cannot read them."""
        wanted = np.unique(np.fromiter(rows, dtype=np.int64))
        groups = np.searchsorted(self._starts, wanted, side="right") - 1
        found: dict[int, dict[str, Any]] = {}
        for group in np.unique(groups).tolist():
            own = wanted[groups == group]
            with unusable(self.path):
                with self._turn:
                    table = self.file.read_row_group(group, use_threads=False)
                chosen = table.take(own - self._starts[group])
                found |= zip(own.tolist(), chosen.to_pylist(), strict=True)  # may not be UTF-8
            if empty := [name for name in chosen.column_names if chosen[name].null_count]:
                raise InputError(f"{self.path} has a row without {empty[0]}.", REBUILD)
        return found


@dataclass(frozen=True)
class FileIndex:
    """An index folder; an `Index`."""

    searchers: dict[Space, Any]
    """The faiss index of each space."""
    tables: dict[Target, RowTable]

    @classmethod
    def open(cls, folder: Path, spaces: Sequence[Space]) -> "FileIndex":
        """Map the files; only the codes of ivf-pq are read.

        Raises:
            InputError: a file is missing, damaged or refused by its library, or two do not belong
                together.
        """
        targets = {TARGET_OF[space] for space in spaces}
        names = [f"{space}.faiss" for space in spaces] + [f"{one}.parquet" for one in targets]
        require_whole(folder, *names)
        tables = {target: RowTable.open(folder / f"{target}.parquet") for target in targets}
        searchers = {space: faiss_index.read(folder / f"{space}.faiss") for space in spaces}
        for space, searcher in searchers.items():
            if searcher.ntotal != len(tables[TARGET_OF[space]]):
                raise InputError(
                    f"{folder}: {space}.faiss does not fit its {TARGET_OF[space]}.parquet.", REBUILD
                )
        return cls(searchers, tables)

    @property
    def spaces(self) -> Sequence[Space]:
        """The vectors it holds."""
        return list(self.searchers)

    def search(self, space: Space, queries: Vectors, window: Window) -> list[list[Hit]]:
        """As `Index.search`."""
        require_space(space, self.searchers)
        searcher = self.searchers[space]
        if searcher.d != queries.shape[1]:
            raise InputError(f"{space}.faiss is of another width than its queries.", REBUILD)
        k = min(window.offset + window.k, searcher.ntotal)
        scores, rows = faiss_index.search(searcher, normalise(queries), k)
        scores, rows = scores[:, window.offset :], rows[:, window.offset :]
        is_kept = scores.astype(np.float64) >= window.min_score
        wanted = is_kept & (rows >= 0)  # row -1: FAISS has none left
        cells = self.tables[TARGET_OF[space]].take(rows[wanted].tolist())
        return [
            [
                Hit(rank=rank, score=score, **cells[row])
                for rank, (row, score) in enumerate(
                    zip(ids[keep].tolist(), cosines[keep].tolist(), strict=True),
                    start=window.offset + 1,
                )
            ]
            for ids, cosines, keep in zip(rows, scores, wanted, strict=True)
        ]
