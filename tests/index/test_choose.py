"""The kinds of index, the choice of one by measurement, and indexes made of shards."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import faiss
import numpy as np
import pytest

from pipeline.core.checksums import add_checksum
from pipeline.core.errors import InputError
from pipeline.index import choose, embed, faiss_index, shards
from pipeline.index.choose import Probe, Trial, choose_index, hold_out
from pipeline.index.embed import Partition, Parts
from pipeline.index.faiss_index import Setting
from pipeline.index.format import normalise
from tests.index.test_documents import index_params

KINDS = ("flat", "hnsw", "ivf-sq8", "ivf-pq")
ANY_SIZE = ["flat", "ivf-sq8", "ivf-pq"]
ROWS, DIM = 6000, 32


@pytest.fixture(scope="module", autouse=True)
def small_parts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed, "ROWS_A_PART", 2048)
        yield


def make_parts(folder: Path, rows: int = ROWS, seed: int = 0) -> Parts:
    """Clustered vectors."""
    drawn = np.random.default_rng(seed)
    centres = drawn.standard_normal((rows // 40 + 1, DIM))
    vectors = centres[drawn.integers(0, len(centres), rows)]
    vectors = (vectors + 0.4 * drawn.standard_normal((rows, DIM))).astype(np.float32)
    folder.mkdir(exist_ok=True, parents=True)
    files = []
    for part, start in enumerate(range(0, rows, embed.ROWS_A_PART)):
        files.append(folder / f"texts-{part:05d}.npy")
        np.save(files[-1], vectors[start : start + embed.ROWS_A_PART])
        add_checksum(files[-1])
    return Parts(files, rows)


@pytest.fixture(scope="module")
def parts(tmp_path_factory, small_parts) -> Parts:
    """Three files; do not change them."""
    return make_parts(tmp_path_factory.mktemp("vectors"))


@pytest.fixture
def own_parts(parts, tmp_path) -> Parts:
    """A copy that may be changed."""
    folder = shutil.copytree(parts.files[0].parent, tmp_path / "own")
    return Parts([folder / file.name for file in parts.files], parts.rows)


@pytest.fixture(scope="module")
def built(parts) -> dict:
    return {kind: build(kind, parts) for kind in KINDS}


@pytest.fixture(scope="module")
def probe(parts) -> Probe:
    return hold_out({"texts": parts}, "texts", 0)


def build(kind, parts: Parts, seed: int = 0):
    sample = parts.take(parts.draw(faiss_index.sample_size(parts.rows), seed))
    index = faiss_index.train(kind, sample, parts.rows, seed)
    faiss_index.fill(index, parts.blocks())
    return faiss_index.finish(index)


def all_of(parts: Parts) -> np.ndarray:
    raw = np.concatenate([np.load(file) for file in parts.files]).astype(np.float64)
    return raw / np.linalg.norm(raw, axis=1, keepdims=True)


def exact_recall(index, probe: Probe, k: int = 10) -> float:
    """Recall by brute force in float64, one query at a time."""
    vectors, found = all_of(probe.parts), 0
    rows = index.search(probe.queries, k + 1)[1]
    for query, own, got in zip(probe.queries, probe.own, rows, strict=True):
        cosines = vectors @ query.astype(np.float64)
        cosines[own] = -np.inf
        best = set(np.argsort(-cosines)[:k].tolist())
        found += len(best & {row for row in got.tolist() if row != own})
    return found / (k * len(probe.queries))


@pytest.mark.parametrize("kind", KINDS)
def test_more_effort_reads_and_finds_more_and_recall_is_that_of_brute_force(probe, built, kind):
    index = built[kind]
    sweep = faiss_index.settings_of(index)[0]
    measured = []
    for setting in (sweep[0], sweep[-1]):
        faiss_index.apply(index, setting)
        rows, cost = faiss_index.search_counted(index, probe.queries, 10)
        np.testing.assert_array_equal(rows, index.search(probe.queries, 11)[1])
        assert probe.recall(rows) == pytest.approx(exact_recall(index, probe), abs=0.003)
        measured.append((cost, probe.recall(rows)))
    (low, poor), (high, good) = measured
    assert (high > low) == (len(sweep) > 1)
    assert good >= poor
    assert good > 0.95


@pytest.mark.parametrize("kind", [*KINDS[:-1], pytest.param(KINDS[-1], marks=pytest.mark.slow)])
def test_equal_vectors_give_equal_bytes(tmp_path, kind):
    parts, before = make_parts(tmp_path / "vectors", 2500), faiss.omp_get_max_threads()
    try:
        for threads in (1, 2):
            faiss.omp_set_num_threads(threads)
            faiss_index.write(build(kind, parts), tmp_path / str(threads))
    finally:
        faiss.omp_set_num_threads(before)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    faiss_index.write(build(kind, parts, seed=2**32 - 1), tmp_path / "other")
    is_seeded = kind.startswith("ivf")
    assert ((tmp_path / "other").read_bytes() != (tmp_path / "1").read_bytes()) == is_seeded


@pytest.mark.parametrize("kind", ["auto", *KINDS])
def test_what_is_taken_finds_enough_and_is_the_cheapest(probe, tmp_path, kind):
    params = index_params(kind=kind, target_recall=0.97, exact_until=100)
    best, *others = choose_index("texts", probe, params, tmp_path)
    opened = faiss.read_index(str(tmp_path / "texts.faiss"))
    assert best.recall >= 0.97
    assert probe.recall(opened.search(probe.queries, 11)[1]) == pytest.approx(best.recall, abs=1e-9)
    assert (tmp_path / "texts.faiss").stat().st_size == best.bytes
    assert all(one.cost >= best.cost for one in others if one.recall >= 0.97)
    assert {one.kind for one in (best, *others)} == (set(KINDS) if kind == "auto" else {kind})
    assert [path.name for path in tmp_path.iterdir()] == ["texts.faiss"]
    tried = list(dict.fromkeys(one.kind for one in others if one.kind != best.kind))
    assert tried == [one for one in (*ANY_SIZE, "hnsw") if kind == "auto" and one != best.kind]
    assert best not in others
    assert all(one.bytes > ROWS for one in others)


@pytest.mark.parametrize(
    ("rows", "changes", "expected"),
    [
        (255, {"kind": "ivf-pq"}, ["flat"]),
        (256, {"kind": "ivf-pq", "exact_until": 256}, ["ivf-pq"]),
        (1000, {"kind": "auto", "exact_until": 1000}, ["flat"]),
        (1001, {"kind": "auto", "exact_until": 1000}, [*ANY_SIZE, "hnsw"]),
        (200_000, {"kind": "auto", "exact_until": 1000}, [*ANY_SIZE, "hnsw"]),
        (200_001, {"kind": "auto", "exact_until": 1000}, ANY_SIZE),
        (200_001, {"kind": "hnsw"}, ["hnsw"]),
    ],
)
def test_the_kinds_that_are_tried_depend_on_the_rows(rows, changes, expected):
    assert list(choose.kinds_to_try(index_params(**changes), rows)) == expected


@pytest.mark.parametrize(
    ("recalls", "tried"),
    [
        ([0.5, 0.6, 0.7, 0.8, 0.9], 5),
        ([0.9995, 1.0], 1),
        ([0.9994, 0.9995, 1.0], 2),
        ([0.5, 0.5, 0.5, 0.6], 3),
        ([0.5, 0.6, 0.6, 0.6, 0.9], 4),
        ([0.5, 0.5, 0.5004, 0.6], 3),
        ([0.0, 0.0, 0.0005, 0.0005, 0.0005], 5),  # after the third, 0.0005 is a rise
    ],
)
def test_a_sweep_ends_where_two_doublings_find_no_more(probe, monkeypatch, recalls, tried):
    left = iter(recalls)
    monkeypatch.setattr(
        choose, "measure", lambda *_: Trial("hnsw", Setting(), next(left), 1.0, 1.0, 1.0)
    )
    found = choose.sweep("hnsw", None, [Setting()] * len(recalls), probe)
    assert [one.recall for one in found] == recalls[:tried]


def test_a_trial_is_a_row_of_the_curve():
    speed = {"queries_per_second": 333.3, "milliseconds": 31.5}
    found = Trial("ivf-pq", Setting(nprobe=4), 0.9, 100.0, **speed, bytes=7).row()
    measured = {"recall": 0.9, "cost": 100.0, "bytes": 7, **speed}
    assert found == {"kind": "ivf-pq", **asdict(Setting(nprobe=4)), **measured}


@pytest.mark.parametrize(
    ("kind", "setting"), [("flat", Setting()), ("ivf-pq", Setting(nprobe=4, k_factor=16))]
)
def test_times_are_those_of_the_clock_and_cost_that_of_the_rows_read(
    probe, built, monkeypatch, kind, setting
):
    """All queries in 3 seconds; the first 50 in 1.23456 to 50 times that, ms, when alone."""
    passed = [7.0, 3.0]
    for number in range(1, 51):
        passed += [1.0, number * 1.23456 / 1000]
    clock = iter(np.cumsum(passed).tolist())
    with monkeypatch.context() as patch:
        patch.setattr(choose.time, "perf_counter", lambda: next(clock))
        found = choose.measure(kind, built[kind], setting, probe)
    assert next(clock, None) is None
    assert len(probe.queries) == 1000
    rows, cost = faiss_index.search_counted(built[kind], probe.queries, 10)
    # 25.5 times 1.23456, to four decimals
    assert found == Trial(kind, setting, probe.recall(rows), cost, 333.3, 31.4813)
    if kind == "flat":
        assert cost == ROWS * 4 * DIM
    else:  # centroids, codes of the rows in 4 of 256 clusters, and 160 rows of float16
        assert 64 * 4 * DIM + 160 * 2 * DIM < cost < ROWS * 4 * DIM
        faiss_index.apply(built[kind], Setting(nprobe=4, k_factor=4))
        less = faiss_index.search_counted(built[kind], probe.queries, 10)[1]
        assert cost - less == 12 * 10 * 2 * DIM


def test_a_row_as_near_as_the_last_neighbour_is_as_good(tmp_path):
    """Each vector stands in two rows; in place of the one, the other is found."""
    drawn = np.random.default_rng(0).standard_normal((30, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", np.concatenate([drawn, drawn]))
    probe = hold_out({"texts": Parts([tmp_path / "x.npy"], 60)}, "texts", 0)
    assert probe.k == 10
    cosines = probe.queries.astype(np.float64) @ all_of(probe.parts).T
    order = np.argsort(-cosines, axis=1, kind="stable")
    nearest = np.stack([row[row != own] for row, own in zip(order, probe.own, strict=True)])
    np.testing.assert_allclose(
        probe.kth, [cosines[n, row[9]] for n, row in enumerate(nearest)], atol=1e-6
    )
    twin = (nearest[:, :10] + 30) % 60
    for found, recall in (
        (nearest[:, :10], 1.0),
        (np.column_stack([probe.own, nearest[:, :10]]), 1.0),
        (np.where(twin == probe.own[:, None], nearest[:, :10], twin), 1.0),
        (nearest[:, :7], 0.7),
        (np.column_stack([nearest[:, :4], np.full((60, 9), -1)]), 0.4),
        (nearest[:, ::-1][:, :10], 0.0),
    ):
        assert probe.recall(found) == pytest.approx(recall)


@pytest.mark.parametrize(("rows", "k"), [(1, 1), (2, 1), (3, 2), (11, 10), (12, 10)])
def test_recall_is_of_ten_or_of_as_many_as_there_are(tmp_path, rows, k):
    probe = hold_out({"texts": make_parts(tmp_path / "vectors", rows)}, "texts", 0)
    assert probe.k == k
    assert probe.recall(np.full((rows, k), -1)) == (1.0 if rows == 1 else 0.0)
    for kind in ("auto", "ivf-pq"):  # of so few rows, both are flat
        best = choose_index("texts", probe, index_params(kind=kind), tmp_path)[0]
        assert faiss.read_index(str(tmp_path / "texts.faiss")).ntotal == rows
        assert best.recall == pytest.approx(1.0)


def test_queries_are_a_thousand_rows_drawn_by_the_seed(parts, tmp_path):
    """Of the space itself for texts; pictures are asked for by texts, and texts by pictures."""
    for seed in (0, 1):
        probe = hold_out({"texts": parts}, "texts", seed)
        np.testing.assert_array_equal(probe.own, parts.draw(1000, seed))
        np.testing.assert_array_equal(probe.queries, parts.take(probe.own))
    images = make_parts(tmp_path / "images", 500, seed=5)
    spaces = {"texts": parts, "grounded": parts, "images": images}
    asked = hold_out(spaces, "images", 0)
    assert set(asked.own) == {-1}
    assert all((all_of(parts) @ query).max() > 1 - 1e-6 for query in asked.queries[:5])
    back = hold_out(spaces, "grounded", 0)
    assert all((all_of(images) @ query).max() > 1 - 1e-6 for query in back.queries[:5])
    assert (hold_out({"images": images}, "images", 0).own >= 0).all()


def test_the_bytes_allowed_decide(probe, tmp_path):
    (free,) = choose_index("texts", probe, index_params(kind="flat"), tmp_path)
    params = index_params(kind="flat", max_bytes=free.bytes)
    assert choose_index("texts", probe, params, tmp_path)[0].bytes == free.bytes
    params = index_params(exact_until=100, max_bytes=free.bytes // 2, target_recall=0.9)
    best, *_ = choose_index("texts", probe, params, tmp_path)
    assert best.bytes <= free.bytes // 2
    assert best.kind.startswith("ivf")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "flat", "max_bytes": 1000}, r"within index.max_bytes 1,000: that takes 768,0"),
        (
            {"kind": "ivf-sq8", "target_recall": 1.0},
            r"reaches index.target_recall 1.0: the best finds 0\.9",
        ),
    ],
)
def test_nothing_good_says_what_would_be(probe, tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        choose_index("texts", probe, index_params(**changes), tmp_path)


def test_exact_search_is_enough_whatever_rounding_makes_of_its_recall(probe, tmp_path, monkeypatch):
    monkeypatch.setattr(Probe, "recall", lambda *_: 0.9)
    (only,) = choose_index("texts", probe, index_params(kind="flat", target_recall=0.97), tmp_path)
    assert (only.kind, only.recall) == ("flat", 0.9)
    assert choose_index("texts", probe, index_params(kind="ivf-sq8", target_recall=0.9), tmp_path)
    with pytest.raises(InputError, match=r"the best finds 0\.9"):
        choose_index("texts", probe, index_params(kind="ivf-sq8", target_recall=0.91), tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_deep_searches_find_as_many_rows_as_there_are(parts, built, kind):
    index = built[kind]
    faiss_index.apply(index, faiss_index.settings_of(index)[0][0])
    queries = parts.take(np.arange(20))
    for k in (10, 500, ROWS):
        scores, rows = faiss_index.search(index, queries, k)
        found = (rows >= 0).sum(axis=1)
        assert (found == k).all() or k == 10
        assert (np.diff(scores, axis=1)[:, : found.min() - 1] <= 1e-6).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_is_the_systems_error(built, kind):
    with pytest.raises(OSError, match="No space left"):
        faiss_index.write(built[kind], Path("/dev/full"))


def test_rows_are_taken_from_any_part(parts):
    rows = np.array([5999, 0, 2048, 2047, 0])
    np.testing.assert_allclose(parts.take(rows), all_of(parts)[rows], atol=1e-6)
    np.testing.assert_allclose(
        np.concatenate(list(parts.blocks())), normalise(all_of(parts).astype(np.float32)), atol=1e-6
    )


def test_a_damaged_part_is_missing(own_parts):
    assert own_parts.missing() == []
    _, short, flipped = own_parts.files
    short.write_bytes(short.read_bytes()[:1000])
    content = bytearray(flipped.read_bytes())
    content[5_000] ^= 1
    flipped.write_bytes(content)
    assert own_parts.missing() == [1, 2]


@pytest.fixture
def small_shards(monkeypatch) -> None:
    monkeypatch.setattr(shards, "PARTS_A_SHARD", 1)


@pytest.mark.parametrize("kind", ["ivf-sq8", "ivf-pq"])
def test_merged_shards_are_the_whole_index(own_parts, built, tmp_path, small_shards, kind):
    setting = faiss_index.settings_of(built[kind])[0][0]
    faiss_index.apply(built[kind], setting)
    faiss_index.write(built[kind], tmp_path / "whole")
    params, spaces = index_params(kind=kind), {"texts": own_parts}
    assert shards.make_shards(spaces, params, Partition(2, 3))
    folder = own_parts.files[0].parent
    assert len(list(folder.glob("*.faiss"))) == 2
    assert len(list(folder.glob("*-00001.faiss"))) == 1
    merged = shards.filled(kind, own_parts, 0)
    faiss_index.apply(merged, setting)
    faiss_index.write(merged, tmp_path / "merged")
    assert (tmp_path / "merged").read_bytes() == (tmp_path / "whole").read_bytes()
    files = {path: path.read_bytes() for path in folder.glob("*.faiss")}
    assert len(files) == 4
    for path in files:
        path.unlink()
    for number in (3, 1, 2):
        shards.make_shards(spaces, params, Partition(number, 3))
    assert {path: path.read_bytes() for path in files} == files


def test_shards_are_of_the_training_that_was_there_first(own_parts, small_shards):
    params, folder = index_params(kind="ivf-sq8"), own_parts.files[0].parent
    with ThreadPoolExecutor(3) as pool:
        machines = [Partition(number, 3) for number in (1, 2, 3)]
        made = pool.map(lambda one: shards.make_shards({"texts": own_parts}, params, one), machines)
        assert all(made)
    names = [path.name for path in folder.glob("*-0-*-*.faiss")]
    assert len(names) == 3
    assert len({name.rpartition("-")[0] for name in names}) == 1
    assert not [path for path in folder.iterdir() if path.is_dir()]


@pytest.mark.parametrize("kind", ["auto", "flat", "hnsw", "ivf-sq8"])
def test_what_is_incomplete_or_cannot_be_merged_has_no_shards(own_parts, small_shards, kind):
    if kind == "ivf-sq8":
        own_parts.files[1].unlink()
    params = index_params(kind=kind)
    assert not shards.make_shards({"texts": own_parts}, params, Partition(1, 1))
