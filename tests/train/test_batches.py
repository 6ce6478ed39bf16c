import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import InputError
from pipeline.features.rows import Features
from pipeline.features.teacher_rows import SplitPairs
from pipeline.params.schema import Params
from pipeline.train.batches import (
    Schedule,
    Stream,
    bucketed,
    epoch_batches,
    make_schedule,
    pair_stream,
    text_stream,
)
from pipeline.train.run_params import RunParams
from tests.conftest import merge, read_default_params

seeds = st.integers(0, 2**32 - 1)


def run_params(batch_size: int, **changes: dict) -> RunParams:
    base = merge(read_default_params(), {"train": {"batch_size": batch_size}})
    params = Params.model_validate(merge(base, changes))
    return RunParams(params.student, params.loss, params.train)


def make_pairs(captions_of_images: list[int], seed: int = 0, dim: int = 6) -> SplitPairs:
    """Captions in random order; a caption's features lie near its image's."""
    rng = np.random.default_rng(seed)
    image_rows = np.repeat(np.arange(len(captions_of_images)), captions_of_images)
    rng.shuffle(image_rows)
    images = rng.standard_normal((len(captions_of_images), dim))
    captions = images[image_rows] + 0.2 * rng.standard_normal((len(image_rows), dim))
    count = len(image_rows)
    features = Features(
        images.astype(np.float16),
        np.arange(len(images)),
        captions.astype(np.float16),
        np.arange(count),
        image_rows,
    )
    return SplitPairs(
        [f"caption {n}" for n in range(count)], np.arange(count), image_rows, features
    )


def lengths_of(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(3, 30, count)


@given(st.integers(60, 200), st.integers(2, 5), st.integers(2, 6), seeds)
def test_buckets_bring_sentences_of_like_length_together(count, batch_size, buckets, seed):
    """Within each pool of batches no two batches overlap in length, and padding falls."""
    lengths, padded = lengths_of(count), {}
    for size in (1, buckets):
        params = run_params(batch_size, train={"length_buckets": size}).train
        stream = text_stream(lengths, params, seed)
        epoch = list(itertools.islice(stream, count // batch_size))
        padded[size] = sum(lengths[rows].max() * batch_size for rows in epoch)
        assert len(set(np.concatenate(epoch))) == count // batch_size * batch_size
    assert padded[buckets] < padded[1]
    spans = sorted((lengths[rows].min(), lengths[rows].max()) for rows in epoch)
    pools = -(-len(spans) // buckets)
    for low, _ in spans:
        assert sum(other < low < most for other, most in spans) <= pools


def test_a_stream_draws_every_epoch_once_by_its_number():
    drawn = []

    def epoch(rng: np.random.Generator) -> np.ndarray:
        drawn.append(rng.permutation(6).reshape(3, 2))
        return drawn[-1]

    batches = list(itertools.islice(Stream(epoch, [5, 8]), 7))
    expected = [np.random.default_rng([5, 8, n]).permutation(6).reshape(3, 2) for n in range(3)]
    np.testing.assert_array_equal(drawn, expected)
    np.testing.assert_array_equal(batches, np.concatenate(expected)[:7])


@pytest.mark.parametrize("buckets", [1, 3])
def test_a_pool_is_cut_in_the_order_of_lengths_and_one_batch_is_no_pool(buckets):
    """Rows of equal length keep their order; the last pool has fewer batches."""
    params = run_params(20, train={"length_buckets": buckets}).train
    lengths = np.random.default_rng(0).integers(3, 6, 110)
    rows = np.random.default_rng(1).permutation(110)
    found = bucketed(rows, lengths, params, np.random.default_rng(2)).tolist()
    pools = [rows[start : start + 60].tolist() for start in (0, 60)]
    pools[1] = pools[1][:40]
    ordered = [row for pool in pools for row in sorted(pool, key=lambda row: lengths[row])]
    if buckets == 1:
        assert found == rows[:100].reshape(5, 20).tolist()
    else:
        batches = [ordered[start : start + 20] for start in range(0, 100, 20)]
        assert sorted(found) == sorted(batches)
        assert found != batches
    assert bucketed(rows[:19], lengths, params, np.random.default_rng(2)).shape == (0, 20)


def test_buckets_leave_the_meeting_of_equal_lengths_to_chance():
    params = run_params(8, train={"length_buckets": 10}).train
    stream = text_stream(np.full(800, 7), params, 0)
    companions = [
        set(rows) for _ in range(40) for rows in itertools.islice(stream, 100) if 0 in rows
    ]
    met = set().union(*companions) - {0}
    assert len(companions) == 40
    assert len(met) > 200  # 40 draws of 7 out of 799


captions_of_images = st.lists(st.integers(1, 5), min_size=4, max_size=20)


@given(captions_of_images, st.integers(2, 4), seeds, st.sampled_from(["all", "one"]),
       st.integers(0, 3))  # fmt: skip
def test_no_batch_holds_two_captions_of_one_image(counts, batch_size, seed, captions, hard):
    pairs = make_pairs(counts, seed % 1000)
    params = run_params(
        batch_size, train={"pairs": {"captions": captions, "hard_negatives": hard, "pool": 2}}
    )
    for rows in itertools.islice(pair_stream(pairs, lengths_of(len(pairs)), params, seed), 30):
        assert len(rows) == batch_size
        assert len(set(pairs.image_rows[rows])) == batch_size


def test_with_duplicates_allowed_some_batch_holds_them():
    pairs = make_pairs([5] * 8)
    params = run_params(8, train={"pairs": {"unique_images": False}})
    batches = list(itertools.islice(pair_stream(pairs, lengths_of(40), params, 0), 5))
    assert sorted(np.concatenate(batches)) == list(range(40))
    assert any(len(set(pairs.image_rows[rows])) < 8 for rows in batches)


@given(seeds, st.sampled_from([True, False]), st.integers(0, 3))
def test_an_epoch_of_pairs_takes_every_caption_once(seed, unique, hard):
    pairs = make_pairs([5] * 8)
    settings = {"unique_images": unique, "hard_negatives": hard, "pool": 2}
    params = run_params(4, train={"pairs": settings})
    rows = np.concatenate(
        list(itertools.islice(pair_stream(pairs, lengths_of(40), params, seed), 10))
    )
    assert sorted(rows) == list(range(40))
    assert epoch_batches(pairs, params.train) == 10


def test_hard_negatives_are_near_their_anchor_and_of_another_image():
    """With one neighbour an anchor, rows 0 and 1 of a batch are such a pair."""
    pairs = make_pairs([5] * 16)
    near, same = {}, {}
    for hard in (0, 1):
        settings = {"unique_images": False, "hard_negatives": hard, "pool": 20}
        params = run_params(4, train={"pairs": settings}, loss={"filter": {"kind": "none"}})
        epoch = np.array(list(itertools.islice(pair_stream(pairs, lengths_of(80), params, 0), 20)))
        assert sorted(epoch.ravel()) == list(range(80))
        images = pairs.image_rows[epoch[:, :2]]
        same[hard] = (images[:, 0] == images[:, 1]).sum()
        vectors = pairs.features.captions.astype(float)[epoch[:, :2]]
        vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
        near[hard] = (vectors[:, 0] * vectors[:, 1]).sum(axis=1).mean()
    assert near[1] > near[0] + 0.2
    assert same[1] <= 2


def test_one_caption_an_image_is_another_one_every_epoch():
    pairs = make_pairs([5] * 8)
    params = run_params(4, train={"pairs": {"captions": "one"}})
    stream = pair_stream(pairs, lengths_of(40), params, 0)
    epochs = [np.concatenate(list(itertools.islice(stream, 2))) for _ in range(12)]
    for rows in epochs:
        assert sorted(pairs.image_rows[rows]) == list(range(8))
    assert len({tuple(sorted(rows)) for rows in epochs}) > 6
    assert len(set(np.concatenate(epochs))) > 30
    assert len(set(np.concatenate(epochs[:5]))) < 40  # drawn anew, not taken in turn
    assert any(set(one) & set(other) for one, other in zip(epochs[::2], epochs[1::2], strict=True))
    assert epoch_batches(pairs, params.train) == 2


@given(seeds, st.integers(0, 60))
def test_a_stream_resumes_from_its_position(seed, position):
    pairs, params = make_pairs([3] * 9), run_params(4)
    for make in (
        lambda: pair_stream(pairs, lengths_of(27), params, seed),
        lambda: text_stream(lengths_of(13), params.train, seed),
    ):
        whole = list(itertools.islice(make(), position + 5))
        rest = make()
        rest.position = position
        assert all(np.array_equal(next(rest), rows) for rows in whole[position:])
        assert rest.position == position + 5


def test_streams_of_one_seed_are_shuffled_on_their_own():
    params, equal = run_params(50), np.full(100, 9)
    first = next(text_stream(equal, params.train, 0))
    assert not np.array_equal(first, next(text_stream(equal, params.train, 1)))
    pairs = make_pairs([1] * 100)
    for unique in (True, False):  # without `unique_images` both are drawn alike, but for the seed
        params = run_params(50, train={"pairs": {"unique_images": unique}})
        assert not np.array_equal(first, next(pair_stream(pairs, equal, params, 0)))


@pytest.mark.parametrize(("images", "expected"), [(3, 1), (4, 1), (7, 1), (8, 2), (13, 3)])
def test_an_epoch_has_at_least_one_batch(images, expected):
    for captions in ("one", "all"):
        params = run_params(4, train={"pairs": {"captions": captions}}).train
        assert epoch_batches(make_pairs([1] * images), params) == expected


def test_the_released_batches_need_as_many_captions_not_images():
    params = run_params(8, train={"pairs": {"unique_images": False}})
    assert len(next(pair_stream(make_pairs([5, 5]), lengths_of(10), params, 0))) == 8


def test_a_pool_beyond_memory_is_refused():
    with pytest.raises(ValueError, match="at most 16384"):
        run_params(64, train={"pairs": {"hard_negatives": 1, "pool": 1024}})


def test_too_few_rows_for_a_batch_is_an_error():
    with pytest.raises(InputError, match="only 3 text-only sentences"):
        text_stream(lengths_of(3), run_params(4).train, 0)
    with pytest.raises(InputError, match="only 2 training images"):
        pair_stream(make_pairs([2, 2]), lengths_of(4), run_params(3), 0)
    mixed = run_params(5, train={"pairs": {"unique_images": False}})
    with pytest.raises(InputError, match="only 4 training captions"):
        pair_stream(make_pairs([2, 2]), lengths_of(4), mixed, 0)


@pytest.mark.parametrize(
    ("text", "pairs", "paired_share"),
    [
        (15_625, 2_327, 1 / 6),  # Wiki1M with Flickr30k: k = 6
        (100, 50, 1 / 2),
        (100, 60, 1 / 2),
        (100, 100, 1 / 2),
        (100, 250, 2 / 3),
        (1, 99, 99 / 100),
    ],
)
def test_auto_schedule(text, pairs, paired_share):
    schedule = make_schedule("auto", text_batches=text, pair_batches=pairs)
    paired = [schedule.is_paired(step) for step in range(1, 6_001)]
    assert np.mean(paired) == pytest.approx(paired_share, abs=1e-3)
    assert len(set(paired)) == 2


@pytest.mark.parametrize(
    ("every", "text", "pairs", "schedule"),
    [("auto", 30, 10, Schedule(3)), ("auto", 29, 10, Schedule(2)),
     ("auto", 19, 10, Schedule(2, inverted=True)), ("auto", 10, 20, Schedule(3, inverted=True)),
     ("auto", 10, 19, Schedule(2, inverted=True)), (3, 1, 1, Schedule(3)),
     ("auto", 0, 10, Schedule(1)), (1, 0, 10, Schedule(1))],
)  # fmt: skip
def test_the_schedule_says_which_steps_are_rare(every, text, pairs, schedule):
    assert make_schedule(every, text_batches=text, pair_batches=pairs) == schedule


def test_without_text_every_step_is_paired_or_refused():
    schedule = make_schedule("auto", text_batches=0, pair_batches=3)
    assert schedule.paired_steps(7) == sum(map(schedule.is_paired, range(1, 8))) == 7
    with pytest.raises(InputError, match="pair_every is 2, but there are no text-only") as error:
        make_schedule(2, text_batches=0, pair_batches=3)
    assert "train.pair_every to 1" in error.value.fix
