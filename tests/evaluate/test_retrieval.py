"""Retrieval ranks against explicit sorting."""

import statistics

import numpy as np
import pytest
import pytrec_eval

from pipeline.core.errors import InputError
from pipeline.evaluate import retrieval
from pipeline.evaluate.retrieval import (
    Gallery,
    Pairing,
    caption_ranks,
    image_ranks,
    kept_captions,
    score_retrieval,
)


def pair(owners, *, captions=None, images=None):
    """Captions with the rows of their images; all differ unless it is said what equals what."""
    images = range(max(owners, default=-1) + 1) if images is None else images
    return Pairing.of(range(len(owners)) if captions is None else captions, images, owners)


def make_gallery(images=15, captions=40, *, seed=0):
    """Captions near their images, several an image, in random order."""
    rng = np.random.default_rng(seed)
    places = rng.standard_normal((images, 6)) * rng.uniform(0.1, 10, size=(images, 1))
    owners = np.concatenate([np.arange(images), rng.integers(images, size=captions - images)])
    owners = rng.permutation(owners)
    near = places[owners] + 2 * rng.standard_normal((captions, 6))
    return Gallery(near.astype(np.float32), places.astype(np.float32), pair(owners)), owners


def cosine(first, second):
    first, second = first.astype(float), second.astype(float)
    return sum(first * second) / (sum(first**2) * sum(second**2)) ** 0.5


def slow_ranks(queries, items, is_right):
    """Places of the first right item in the list that is sorted by cosine."""
    ranks = []
    for number, query in enumerate(queries):
        cosines = [cosine(query, item) for item in items]
        order = sorted(range(len(items)), key=lambda item: -cosines[item])
        ranks.append(1 + [is_right(number, item) for item in order].index(True))
    return ranks


def slow_caption_ranks(gallery, owners):
    return slow_ranks(gallery.captions, gallery.images, lambda c, i: owners[c] == i)


def slow_image_ranks(gallery, owners):
    return slow_ranks(gallery.images, gallery.captions, lambda i, c: owners[c] == i)


@pytest.mark.parametrize("seed", range(2))
def test_ranks_are_places_in_the_sorted_list(seed):
    gallery, owners = make_gallery(seed=seed)
    assert caption_ranks(gallery).tolist() == slow_caption_ranks(gallery, owners)
    assert image_ranks(gallery).tolist() == slow_image_ranks(gallery, owners)


def scores_of(gallery):
    return {(score.task, score.measure): score.value for score in score_retrieval(gallery)}


def test_recalls_and_median_rank_follow_from_the_ranks():
    gallery, owners = make_gallery(images=15, captions=40)
    slow = {
        "text_to_image": slow_caption_ranks(gallery, owners),
        "image_to_text": slow_image_ranks(gallery, owners),
    }
    expected = {}
    for task, ranks in slow.items():
        for k in (1, 5, 10):
            expected[task, f"recall@{k}"] = 100 * sum(rank <= k for rank in ranks) / len(ranks)
        expected[task, "median_rank"] = statistics.median(ranks)
    assert scores_of(gallery) == pytest.approx(expected)
    assert 0 < expected["text_to_image", "recall@1"] < expected["text_to_image", "recall@10"] < 100
    counts = {(one.part, one.task, one.split): one.count for one in score_retrieval(gallery)}
    assert counts == {
        ("retrieval", "text_to_image", "test"): 40,
        ("retrieval", "image_to_text", "test"): 15,
    }


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_collapsed_space_finds_nothing(value):
    gallery = Gallery(
        captions=np.full((24, 4), value, dtype=np.float32),
        images=np.full((12, 4), value, dtype=np.float32),
        pairing=pair(np.repeat(np.arange(12), 2)),
    )
    assert caption_ranks(gallery).tolist() == [12] * 24
    assert image_ranks(gallery).tolist() == [1 + 22] * 12  # behind the captions of the others
    scores = scores_of(gallery)
    assert [scores[task, "recall@10"] for task in ("text_to_image", "image_to_text")] == [0, 0]


def test_what_ties_with_the_right_answer_is_placed_before_it():
    gallery = Gallery(
        captions=np.array([[1, 0], [2, 0], [0, 1]], dtype=np.float32),
        images=np.array([[5, 0], [1, 0], [0, 3]], dtype=np.float32),
        pairing=pair(np.array([0, 1, 2])),
    )
    assert caption_ranks(gallery).tolist() == [2, 2, 1]
    assert image_ranks(gallery).tolist() == [2, 2, 1]


@pytest.mark.parametrize("block", [1, 100, 250])
def test_blocks_change_nothing(block, monkeypatch):
    gallery, _ = make_gallery(seed=3)
    whole = caption_ranks(gallery), image_ranks(gallery)
    monkeypatch.setattr(retrieval, "_BLOCK", block)
    np.testing.assert_array_equal(caption_ranks(gallery), whole[0])
    np.testing.assert_array_equal(image_ranks(gallery), whole[1])


@pytest.mark.parametrize(
    ("captions", "images", "owners", "is_complete"),
    [
        (["a"], ["x"], [0], True),
        ([], ["x"], [], False),
        ([], [], [], False),
        (["a"], ["x", "y"], [0], False),
        (["a"], ["x", "x"], [1], True),
        (["a", "b"], ["x", "y"], [1, 0], True),
    ],
)
def test_an_image_without_a_caption_and_no_captions_are_refused(
    captions, images, owners, is_complete
):
    pairing = Pairing.of(captions, images, np.array(owners, dtype=np.int64))
    assert pairing.is_complete() is is_complete
    if not is_complete:
        sides = (np.ones((len(side), 3), dtype=np.float32) for side in (captions, images))
        with pytest.raises(InputError, match=r"test split .* no captions, or an image without one"):
            score_retrieval(Gallery(*sides, pairing))


def test_a_perfect_system_finds_every_picture_that_is_there_twice():
    """Eight pictures under two names each, with one caption a name, and exact embeddings."""
    places = np.eye(8, dtype=np.float32)[np.arange(16) // 2]
    owners = np.arange(16)
    names = [number // 2 for number in owners]
    twice = pair(owners, captions=names, images=names)
    assert set(scores_of(Gallery(places, places, twice)).values()) == {100.0, 1.0}
    names_alone = scores_of(Gallery(places, places, pair(owners)))
    assert names_alone["text_to_image", "recall@1"] == 0
    assert twice.repeated() == {"images": 8, "captions": 8}


def test_equal_ones_are_right_answers_of_each_other():
    """By hand. Images a, b, a', c; captions 0 of a, 1 of b, 2 of a', 3 of c with the text of 1.

    Right for captions 0 and 2 are a and a'; for 1 and 3, b and c. Right for a and a' are captions
    0 and 2; for b and c, 1 and 3. On the line of cosines with an image, its order decides.
    """
    angles = {"a": 0.0, "b": 1.0, "c": 2.0}
    images = np.array([[np.cos(angles[one]), np.sin(angles[one])] for one in "abac"])
    at = np.array([0.9, 0.1, 2.2, 0.2])
    captions = np.stack([np.cos(at), np.sin(at)], axis=1)
    pairing = pair(np.arange(4), captions=["x", "y", "z", "y"], images=list("abac"))
    gallery = Gallery(captions.astype(np.float32), images.astype(np.float32), pairing)
    # 0.9: b (0.1) before a (0.9); 0.1: a, a' (0.1) before b (0.9); 2.2: c, b (0.2, 1.2) before a;
    # 0.2: a, a' before b (0.8).
    assert caption_ranks(gallery).tolist() == [2, 3, 3, 3]
    # a: 0.1 and 0.2 are wrong and before 0.9; b: 0.9 is wrong and before 0.2 (0.8); a' as a;
    # c: 2.2 and 0.9 are wrong and before 0.2.
    assert image_ranks(gallery).tolist() == [3, 2, 3, 3]
    assert pairing.repeated() == {"images": 1, "captions": 1}


@pytest.mark.parametrize("seed", range(2))
def test_ranks_of_repeated_ones_are_those_of_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    gallery, owners = make_gallery(images=12, captions=30, seed=seed)
    texts, pictures = rng.integers(20, size=30).tolist(), rng.integers(8, size=12).tolist()
    pairs = {(text, pictures[owner]) for text, owner in zip(texts, owners, strict=True)}
    gallery = Gallery(
        gallery.captions, gallery.images, pair(owners, captions=texts, images=pictures)
    )

    found = slow_ranks(
        gallery.captions, gallery.images, lambda c, i: (texts[c], pictures[i]) in pairs
    )
    assert caption_ranks(gallery).tolist() == found
    found = slow_ranks(
        gallery.images, gallery.captions, lambda i, c: (texts[c], pictures[i]) in pairs
    )
    assert image_ranks(gallery).tolist() == found


def test_coco_in_mieb_has_the_first_five_captions_of_an_image():
    owners = np.array([0, 1, 0, 0, 1, 0, 0, 0, 2])
    assert kept_captions(owners, "mieb-coco").tolist() == [0, 1, 2, 3, 4, 5, 6, 8]
    for other in ("karpathy", "mieb-flickr30k"):
        assert kept_captions(owners, other).tolist() == list(range(9))


def by_trec_eval(queries, items, relevant):
    """nDCG@10 and the share of queries with a right answer among the first k, as mteb has them."""
    run = {
        query: {item: float(cosine(vector, other)) for item, other in items.items()}
        for query, vector in queries.items()
    }
    judged = {query: dict.fromkeys(right, 1) for query, right in relevant.items()}
    wanted = {"ndcg_cut.10", "success.1,5,10"}
    found = list(pytrec_eval.RelevanceEvaluator(judged, wanted).evaluate(run).values())
    assert len(found) == len(queries)
    names = {"ndcg@10": "ndcg_cut_10", **{f"recall@{k}": f"success_{k}" for k in (1, 5, 10)}}
    return {ours: 100 * np.mean([one[name] for one in found]) for ours, name in names.items()}


@pytest.mark.parametrize("convention", ["mieb-flickr30k", "mieb-coco"])
@pytest.mark.parametrize("seed", range(2))
def test_mieb_is_what_trec_eval_makes_of_its_pairs(convention, seed):
    """Equal captions are one query and one answer in COCO, and two in Flickr30k."""
    gallery, owners = make_gallery(images=14, captions=60, seed=seed)
    texts = np.random.default_rng(seed).integers(40, size=60).tolist()
    names = texts if convention == "mieb-coco" else list(range(60))
    names = [f"c{name}" for name in names]
    captions = {}
    for name, vector in zip(names, gallery.captions, strict=True):
        captions.setdefault(name, vector)
    images = {f"i{row}": vector for row, vector in enumerate(gallery.images)}
    pairs = {(name, f"i{owner}") for name, owner in zip(names, owners, strict=True)}
    expected = {}
    for task, (queries, items, swap) in {
        "text_to_image": (captions, images, 1),
        "image_to_text": (images, captions, -1),
    }.items():
        relevant = {query: [] for query in queries}
        for query, item in (one[::swap] for one in pairs):
            relevant[query].append(item)
        found = by_trec_eval(queries, items, relevant)
        expected |= {(task, measure): value for measure, value in found.items()}
    pairing = pair(owners, captions=names)
    scores = score_retrieval(Gallery(gallery.captions, gallery.images, pairing), convention)
    ours = {(one.task, one.measure): one.value for one in scores if one.measure != "median_rank"}
    assert ours == pytest.approx(expected)
    counts = {one.task: one.count for one in scores}
    assert counts == {"text_to_image": len(captions), "image_to_text": 14}
