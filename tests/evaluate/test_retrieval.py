"""Retrieval ranks against explicit sorting."""

import statistics

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.evaluate import retrieval
from pipeline.evaluate.retrieval import Gallery, caption_ranks, image_ranks, score_retrieval


def make_gallery(images=15, captions=40, *, seed=0):
    """Captions near their images, several an image, in random order."""
    rng = np.random.default_rng(seed)
    places = rng.standard_normal((images, 6)) * rng.uniform(0.1, 10, size=(images, 1))
    owners = np.concatenate([np.arange(images), rng.integers(images, size=captions - images)])
    owners = rng.permutation(owners)
    near = places[owners] + 2 * rng.standard_normal((captions, 6))
    return Gallery(near.astype(np.float32), places.astype(np.float32), owners)


def cosine(first, second):
    first, second = first.astype(float), second.astype(float)
    return sum(first * second) / (sum(first**2) * sum(second**2)) ** 0.5


def slow_caption_ranks(gallery):
    ranks = []
    for caption, owner in zip(gallery.captions, gallery.caption_image, strict=True):
        cosines = [cosine(caption, image) for image in gallery.images]
        best_first = sorted(range(len(cosines)), key=lambda image: -cosines[image])
        ranks.append(1 + best_first.index(owner))
    return ranks


def slow_image_ranks(gallery):
    """Places of the best own caption among the captions of others and itself."""
    ranks = []
    for number, image in enumerate(gallery.images):
        cosines = [cosine(image, caption) for caption in gallery.captions]
        best_first = sorted(range(len(cosines)), key=lambda caption: -cosines[caption])
        owners = [gallery.caption_image[caption] for caption in best_first]
        ranks.append(1 + owners.index(number))
    return ranks


@pytest.mark.parametrize("seed", range(4))
def test_ranks_are_places_in_the_sorted_list(seed):
    gallery = make_gallery(seed=seed)
    assert caption_ranks(gallery).tolist() == slow_caption_ranks(gallery)
    assert image_ranks(gallery).tolist() == slow_image_ranks(gallery)


def test_the_best_of_several_captions_counts():
    gallery = Gallery(
        captions=np.array([[1, 0], [0, 1], [-1, 0.1]], dtype=np.float32),
        images=np.array([[3, 0], [0, 0.5]], dtype=np.float32),
        caption_image=np.array([0, 1, 0]),
    )
    assert image_ranks(gallery).tolist() == [1, 1]
    assert caption_ranks(gallery).tolist() == [1, 1, 2]


def scores_of(gallery):
    return {(score.task, score.measure): score.value for score in score_retrieval(gallery, "test")}


def test_recalls_and_median_rank_follow_from_the_ranks():
    gallery = make_gallery()
    slow = {
        "text_to_image": slow_caption_ranks(gallery),
        "image_to_text": slow_image_ranks(gallery),
    }
    expected = {}
    for task, ranks in slow.items():
        for k in (1, 5, 10):
            expected[task, f"recall@{k}"] = 100 * sum(rank <= k for rank in ranks) / len(ranks)
        expected[task, "median_rank"] = statistics.median(ranks)
    assert scores_of(gallery) == pytest.approx(expected)
    assert 0 < expected["text_to_image", "recall@1"] < expected["text_to_image", "recall@10"] < 100


def test_scores_say_their_split_and_count_their_queries():
    scores = score_retrieval(make_gallery(images=15, captions=40), "dev")
    counts = {(score.part, score.task, score.split): score.count for score in scores}
    assert counts == {
        ("retrieval", "text_to_image", "dev"): 40,
        ("retrieval", "image_to_text", "dev"): 15,
    }


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_collapsed_space_finds_nothing(value):
    gallery = Gallery(
        captions=np.full((24, 4), value, dtype=np.float32),
        images=np.full((12, 4), value, dtype=np.float32),
        caption_image=np.repeat(np.arange(12), 2),
    )
    assert caption_ranks(gallery).tolist() == [12] * 24
    assert image_ranks(gallery).tolist() == [1 + 22] * 12  # behind the captions of the others
    scores = scores_of(gallery)
    assert [scores[task, "recall@10"] for task in ("text_to_image", "image_to_text")] == [0, 0]


def test_what_ties_with_the_right_answer_is_placed_before_it():
    gallery = Gallery(
        captions=np.array([[1, 0], [2, 0], [0, 1]], dtype=np.float32),
        images=np.array([[5, 0], [1, 0], [0, 3]], dtype=np.float32),
        caption_image=np.array([0, 1, 2]),
    )
    assert caption_ranks(gallery).tolist() == [2, 2, 1]
    assert image_ranks(gallery).tolist() == [2, 2, 1]


@pytest.mark.parametrize("block", [1, 100, 250])
def test_blocks_change_nothing(block, monkeypatch):
    gallery = make_gallery(seed=3)
    whole = caption_ranks(gallery), image_ranks(gallery)
    monkeypatch.setattr(retrieval, "_BLOCK", block)
    np.testing.assert_array_equal(caption_ranks(gallery), whole[0])
    np.testing.assert_array_equal(image_ranks(gallery), whole[1])


def test_an_image_without_a_caption_is_refused():
    gallery = make_gallery(images=5, captions=9)
    keep = gallery.caption_image != 2
    bare = Gallery(gallery.captions[keep], gallery.images, gallery.caption_image[keep])
    with pytest.raises(InputError, match=r"dev split .* image without one"):
        score_retrieval(bare, "dev")


def test_no_captions_are_refused():
    nothing = np.empty((0, 3), dtype=np.float32)
    with pytest.raises(InputError, match=r"test split .* no captions"):
        score_retrieval(Gallery(nothing, nothing, np.empty(0, dtype=np.int64)), "test")
