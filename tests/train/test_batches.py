import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.train.batches import make_schedule, pair_batches, text_batches


@given(st.integers(4, 40), st.integers(2, 4), st.integers(0, 2**32 - 1))
def test_an_epoch_of_text_sees_every_row_at_most_once(count, batch_size, seed):
    batches = text_batches(count, batch_size, np.random.default_rng(seed))
    epoch = list(itertools.islice(batches, count // batch_size))
    rows = np.concatenate(epoch)
    assert len(set(rows)) == len(rows) == count // batch_size * batch_size
    assert all(len(batch) == batch_size for batch in epoch)


@given(
    st.lists(st.integers(1, 5), min_size=4, max_size=20),
    st.integers(2, 4),
    st.integers(0, 2**32 - 1),
)
def test_no_batch_holds_two_captions_of_one_image(captions, batch_size, seed):
    image_rows = np.repeat(np.arange(len(captions)), captions)
    np.random.default_rng(seed).shuffle(image_rows)
    batches = pair_batches(image_rows, batch_size, np.random.default_rng(seed))
    for rows in itertools.islice(batches, 30):
        assert len(rows) == batch_size
        assert len(set(image_rows[rows])) == batch_size


def test_an_epoch_of_pairs_takes_every_caption_once():
    image_rows = np.repeat(np.arange(8), 5)
    batches = pair_batches(image_rows, 4, np.random.default_rng(0))
    rows = np.concatenate(list(itertools.islice(batches, 10)))
    assert sorted(rows) == list(range(40))


def test_too_few_rows_for_a_batch_is_an_error():
    with pytest.raises(InputError, match="only 3 text-only sentences"):
        next(text_batches(3, 4, np.random.default_rng(0)))
    with pytest.raises(InputError, match="only 2 training images"):
        next(pair_batches([0, 0, 1, 1], 3, np.random.default_rng(0)))


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


def test_every_third_step_is_paired():
    schedule = make_schedule(3, text_batches=1, pair_batches=1)
    assert [schedule.is_paired(step) for step in range(1, 7)] == [False, False, True] * 2
