import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.params.loss import FilterParams
from pipeline.train.noise import filter_limit, filter_negatives, teacher_cosines


@pytest.fixture
def features() -> tuple[torch.Tensor, torch.Tensor]:
    images, captions = np.random.default_rng(0).standard_normal((2, 6, 4))
    return torch.from_numpy(images), torch.from_numpy(captions)


def make_filter(**settings: object) -> FilterParams:
    similarity = settings.pop("similarity", "image")
    both = (
        {"image": similarity, "caption": similarity} if isinstance(similarity, str) else similarity
    )
    return FilterParams(**{"drop": "above"} | settings, similarity=both)


def cosine(u: torch.Tensor, v: torch.Tensor) -> float:
    u, v = u.numpy(), v.numpy()
    return float(u @ v / np.sqrt((u @ u) * (v @ v)))


@pytest.mark.parametrize("similarity", ["cross-modal", "image", "caption"])
def test_the_named_similarity_decides(features, similarity):
    images, captions = features
    keep = filter_negatives(
        *features, make_filter(kind="cosine", similarity=similarity, threshold=0.2)
    )
    removed = 0
    for i, j in itertools.permutations(range(6), 2):
        v_ij, t_ij = cosine(images[i], images[j]), cosine(captions[i], captions[j])
        tv_ij, vt_ij = cosine(captions[i], images[j]), cosine(images[i], captions[j])
        scores = {"cross-modal": (tv_ij, vt_ij), "image": (v_ij, v_ij), "caption": (t_ij, t_ij)}
        for kept, score in zip((keep.image, keep.caption), scores[similarity], strict=True):
            assert bool(kept[i, j]) == (score <= 0.2)
            removed += score > 0.2
    assert removed > 0
    assert keep.image.diagonal().all()
    assert keep.caption.diagonal().all()
    assert float(keep.masked_share()) == pytest.approx(removed / 60)


@given(st.integers(2, 60), st.integers(0, 100), st.integers(0, 1000))
def test_the_limit_of_a_percentile_is_the_score_of_that_rank(count, threshold, seed):
    scores = np.random.default_rng(seed).permutation(count).astype(np.float32)  # ranks themselves
    params = make_filter(kind="percentile", threshold=threshold)
    limit = filter_limit(torch.from_numpy(scores), params)
    assert float(limit) == pytest.approx(threshold * (count - 1) / 100, abs=0.5)


@given(st.integers(2, 9), st.integers(0, 100), st.integers(0, 1000))
def test_the_limit_is_of_all_negatives_and_no_other(size, threshold, seed):
    rng = np.random.default_rng(seed)
    images, captions = torch.from_numpy(rng.standard_normal((2, size, 3)))
    params = make_filter(kind="percentile", threshold=threshold)
    scores, diagonal = teacher_cosines(images, captions).image, torch.eye(size, dtype=torch.bool)
    expected = (scores <= filter_limit(scores[~diagonal], params)) | diagonal
    assert torch.equal(filter_negatives(images, captions, params).image, expected)


def test_off_keeps_everything(features):
    params = make_filter(kind="none", similarity="image", threshold=0.5)
    assert filter_negatives(*features, params) is None


@pytest.mark.parametrize("kind", ["cosine", "dot", "percentile"])
def test_what_one_direction_keeps_the_other_drops(features, kind):
    """The reading of the released code and that of the paper's print are complements."""
    threshold = {"cosine": 0.1, "dot": 0.3, "percentile": 60.0}[kind]
    above, below = (
        filter_negatives(*features, make_filter(kind=kind, drop=drop, threshold=threshold))
        for drop in ("above", "below")
    )
    off = ~torch.eye(6, dtype=torch.bool)
    both = (above.image & below.image & off).sum()
    assert both == (2 if kind == "percentile" else 0)  # the pair at the percentile stays in both
    assert torch.equal((above.image | below.image), torch.ones(6, 6, dtype=torch.bool))
    assert 0 < float(above.masked_share()) < 1


def test_dot_products_are_those_of_features_as_they_come(features):
    images, captions = features[0] * 7, features[1] * 0.5
    keep = filter_negatives(
        images, captions, make_filter(kind="dot", similarity="cross-modal", threshold=2.0)
    )
    for i in range(6):
        for j in range(6):
            dot = float(captions[i].numpy() @ images[j].numpy())
            assert bool(keep.image[i, j]) == (i == j or dot <= 2.0)
            assert bool(keep.caption[j, i]) == (i == j or dot <= 2.0)
    assert 0 < float(keep.masked_share()) < 1


@pytest.mark.parametrize(
    ("kind", "threshold", "fits"),
    [("cosine", 1.5, False), ("percentile", 101.0, False), ("dot", 70.0, True), ("dot", -3.0, True),
     ("percentile", 95.0, True), ("cosine", -0.5, True), ("percentile", -1.0, False)],
)  # fmt: skip
def test_a_threshold_must_fit_its_kind(kind, threshold, fits):
    if fits:
        assert make_filter(kind=kind, threshold=threshold).threshold == threshold
    else:
        with pytest.raises(ValueError, match="threshold must be from"):
            make_filter(kind=kind, threshold=threshold)
