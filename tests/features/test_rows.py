"""Joined rows are the rows of one array, however they are spread over files."""

import functools
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.features.rows import JoinedRows, Run, runs_of


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    places=st.lists(st.integers(0, 10_000), max_size=40),
    chosen=st.lists(st.integers(0, 10_000), max_size=10),
    seed=st.integers(0, 100),
)
def test_rows_are_those_of_one_array(sizes, places, chosen, seed):
    rng = np.random.default_rng(seed)
    tables = {
        Path(f"{n}"): rng.standard_normal((size, 3)).astype(np.float16)
        for n, size in enumerate(sizes)
    }
    total = np.concatenate(list(tables.values()))
    starts = np.cumsum([0, *sizes])
    where = np.array(places, dtype=np.int64) % len(total)
    file = np.searchsorted(starts, where, side="right") - 1
    runs = runs_of(list(tables), file, where - starts[file])
    joined = JoinedRows(runs, 3, tables.__getitem__)
    whole = total[where]
    assert joined.shape == whole.shape
    assert len(joined) == len(whole)
    np.testing.assert_array_equal(joined[:], whole)
    np.testing.assert_array_equal(joined[1:4], whole[1:4])
    if len(whole):
        some = np.array(chosen, dtype=np.int64) % len(whole)
        np.testing.assert_array_equal(joined[some], whole[some])


def test_neighbours_make_one_run():
    paths = [Path("a"), Path("b"), Path("unused")]
    runs = runs_of(paths, np.array([1, 1, 1, 0, 0, 1]), np.array([4, 5, 6, 0, 2, 7]))
    assert list(runs) == [
        Run(paths[1], 4, 0, 3),
        Run(paths[0], 0, 3, 1),
        Run(paths[0], 2, 4, 1),
        Run(paths[1], 7, 5, 1),
    ]
    assert runs.paths == [paths[1], paths[0]]
    assert len(runs) == 4


def test_files_are_opened_where_they_are_needed_only():
    opened = []

    def open_file(path: Path) -> np.ndarray:
        opened.append(path.name)
        return np.zeros((4, 2), np.float16)

    paths, rows = [Path(f"{n}") for n in range(3)], np.arange(12)
    joined = JoinedRows(runs_of(paths, rows // 4, rows % 4), 2, open_file)
    joined[np.array([5, 9, 6])]
    joined[8:12]
    assert opened == ["1", "2", "2"]


@given(
    where=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), max_size=40),
    size=st.integers(1, 50),
)
def test_pieces_are_all_rows_and_open_every_file_once(where, size):
    tables = {
        Path(f"{n}"): np.arange(12, dtype=np.float16).reshape(6, 2) + 100 * n for n in range(5)
    }
    opened = []

    def open_file(path: Path) -> np.ndarray:
        opened.append(path)
        return tables[path]

    file, row = np.array(where, dtype=np.int64).reshape(-1, 2).T
    joined = JoinedRows(runs_of(list(tables), file, row), 2, functools.lru_cache(1)(open_file))
    found = np.full((len(where), 2), np.nan, np.float16)
    for places, piece in joined.pieces(size):
        assert len(places) <= size
        assert (np.diff(places) > 0).all()
        found[places] = piece
    np.testing.assert_array_equal(found, 100 * file[:, None] + 2 * row[:, None] + [0, 1])
    assert sorted(opened) == sorted({Path(f"{n}") for n in file})
