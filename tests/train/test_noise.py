import numpy as np
import pytest
import torch

from pipeline.params.loss import FilterParams
from pipeline.train.noise import filter_negatives, teacher_cosines


@pytest.fixture
def features() -> tuple[torch.Tensor, torch.Tensor]:
    images, captions = np.random.default_rng(0).standard_normal((2, 6, 4))
    return torch.from_numpy(images), torch.from_numpy(captions)


def cosine(u: torch.Tensor, v: torch.Tensor) -> float:
    u, v = u.numpy(), v.numpy()
    return float(u @ v / np.sqrt((u @ u) * (v @ v)))


@pytest.mark.parametrize(
    ("similarity", "image_score", "caption_score"),
    [
        (
            "cross-modal",
            lambda v, t, i, j: cosine(t[i], v[j]),
            lambda v, t, i, j: cosine(v[i], t[j]),
        ),
        ("image", lambda v, t, i, j: cosine(v[i], v[j]), lambda v, t, i, j: cosine(v[i], v[j])),
        ("caption", lambda v, t, i, j: cosine(t[i], t[j]), lambda v, t, i, j: cosine(t[i], t[j])),
    ],
)
def test_the_named_similarity_decides(features, similarity, image_score, caption_score):
    images, captions = features
    params = FilterParams(kind="cosine", similarity=similarity, threshold=0.2)
    keep = filter_negatives(teacher_cosines(images, captions), params)
    removed = 0
    for i in range(6):
        for j in range(6):
            want_image = i == j or image_score(images, captions, i, j) <= 0.2
            want_caption = i == j or caption_score(images, captions, i, j) <= 0.2
            assert bool(keep.image[i, j]) == want_image
            assert bool(keep.caption[i, j]) == want_caption
            removed += (not want_image) + (not want_caption)
    assert removed > 0
    assert float(keep.masked_share()) == pytest.approx(removed / 60)


def test_percentile_removes_that_share(features):
    params = FilterParams(kind="percentile", similarity="image", threshold=80.0)
    keep = filter_negatives(teacher_cosines(*features), params)
    assert float(keep.masked_share()) == pytest.approx(0.2, abs=0.05)


def test_off_keeps_everything(features):
    params = FilterParams(kind="off", similarity="image", threshold=0.5)
    assert filter_negatives(teacher_cosines(*features), params) is None
