"""Joined rows are the rows of one array, however they are spread over files."""

import functools
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.features.rows import JoinedRows, StackedRows


@given(
    where=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), max_size=40),
    chosen=st.lists(st.integers(0, 10_000), max_size=10),
    size=st.integers(1, 50),
)
def test_rows_are_those_of_one_array_and_pieces_read_every_file_once(where, chosen, size):
    paths, opened = [Path(f"{number}") for number in range(5)], []
    tables = np.arange(5 * 6 * 2, dtype=np.float16).reshape(5, 6, 2)

    def read(path: Path) -> np.ndarray:
        opened.append(path.name)
        return tables[int(path.name)]

    file, row = np.array(where, dtype=np.int64).reshape(-1, 2).T
    joined = JoinedRows(paths, file, row, 2, functools.lru_cache(1)(read))
    whole, found = tables[file, row], np.full((len(where), 2), np.nan, np.float16)
    for places, piece in joined.pieces(size):
        assert len(places) <= size
        assert (np.diff(places) > 0).all()
        found[places] = piece
    np.testing.assert_array_equal(found, whole)
    assert sorted(opened) == sorted({str(number) for number in file})
    assert joined.shape == whole.shape
    assert len(joined) == len(whole)
    some = np.array(chosen, dtype=np.int64) % max(1, len(whole))
    for rows in (slice(None), slice(1, 4), some[: 10 * len(whole)]):
        np.testing.assert_array_equal(joined[rows], whole[rows])


def test_the_dot_product_of_stacked_rows_is_the_weighted_average_of_cosines():
    rng, count = np.random.default_rng(0), 9
    tables = [rng.standard_normal((count, dim)).astype(np.float16) for dim in (4, 7)]
    parts = [
        JoinedRows([Path("a")], np.zeros(count, np.int64), rng.permutation(count), 4 + 3 * n,
                   lambda _, table=table: table)
        for n, table in enumerate(tables)
    ]  # fmt: skip
    stacked = StackedRows(parts, [0.9, 0.1])
    wide = [part[:].astype(np.float64) for part in parts]
    expected = sum(
        share * (rows @ rows.T) / np.outer(*[np.sqrt((rows**2).sum(axis=1))] * 2)
        for share, rows in zip((0.9, 0.1), wide, strict=True)
    )
    assert stacked.shape == (9, 11)
    found = stacked[:]
    np.testing.assert_allclose(found.astype(np.float64) @ found.T, expected, atol=1e-3)
    for places, piece in stacked.pieces(4):
        np.testing.assert_array_equal(piece, found[places])
