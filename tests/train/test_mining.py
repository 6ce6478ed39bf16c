"""Hard negatives: the order, recomputed step by step from the definition."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.params.loss import FilterParams, TermSimilarity
from pipeline.train.mining import hard_negative_order

OFF = FilterParams(
    kind="none", similarity={"image": "image", "caption": "image"}, drop="above", threshold=0.0
)


def features(pool: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return tuple(torch.from_numpy(rng.standard_normal((pool, 4))) for _ in range(2))


def cosine(u: np.ndarray, v: np.ndarray) -> float:
    return float(u @ v / np.sqrt((u @ u) * (v @ v)))


def expected_order(vectors: np.ndarray, size: int, neighbours: int, limit: float) -> list[int]:
    left, order = list(range(len(vectors))), []
    while left:
        anchor = left.pop(0)
        order.append(anchor)
        room = (size - len(order) % size) % size
        near = sorted(left, key=lambda row: (-cosine(vectors[anchor], vectors[row]), row))
        near = [row for row in near if cosine(vectors[anchor], vectors[row]) <= limit]
        for row in near[: min(room, neighbours)]:
            left.remove(row)
            order.append(row)
    return order


@given(st.integers(2, 5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 10_000))
def test_neighbours_follow_their_anchor(size, batches, neighbours, seed):
    images, captions = features(size * batches, seed)
    order = hard_negative_order(images, captions, batch_size=size, neighbours=neighbours, noise=OFF)
    assert list(order) == expected_order(images.float().numpy(), size, neighbours, np.inf)


@given(st.floats(-0.5, 0.9), st.integers(0, 10_000))
def test_false_negatives_are_not_sought(limit, seed):
    images, captions = features(12, seed)
    noise = FilterParams(
        kind="cosine",
        similarity={"image": "caption", "caption": "caption"},
        drop="above",
        threshold=limit,
    )
    order = hard_negative_order(images, captions, batch_size=4, neighbours=3, noise=noise)
    assert list(order) == expected_order(captions.float().numpy(), 4, 3, limit)


@pytest.mark.parametrize("similarity", ["cross-modal", "image", "caption"])
def test_the_filter_names_the_similarity(similarity):
    images, captions = features(9, 1)
    v, t = images.numpy(), captions.numpy()
    scores = {"cross-modal": (t, v), "image": (v, v), "caption": (t, t)}[similarity]
    nearest = max(range(1, 9), key=lambda row: cosine(scores[0][0], scores[1][row]))
    noise = OFF.model_copy(
        update={"similarity": TermSimilarity(image=similarity, caption=similarity)}
    )
    order = hard_negative_order(images, captions, batch_size=9, neighbours=1, noise=noise)
    assert list(order[:2]) == [0, nearest]


@given(st.integers(-4, 12), st.integers(0, 10_000))
def test_dot_products_decide_and_ties_go_to_the_first_row(limit, seed):
    """Of small whole numbers: many are equal, and exact in float32."""
    images = np.random.default_rng(seed).integers(-2, 3, (48, 2)).astype(np.float32)
    rows = np.random.default_rng(seed).integers(0, 40, 48)
    noise = FilterParams(
        kind="dot", similarity={"image": "image", "caption": "image"}, drop="above", threshold=limit
    )
    order = hard_negative_order(
        torch.from_numpy(images), torch.from_numpy(images[::-1].copy()),
        batch_size=6, neighbours=5, noise=noise, image_rows=rows,
    )  # fmt: skip
    left, expected = list(range(48)), []
    while left:
        anchor = left.pop(0)
        expected.append(anchor)
        dots = {row: float(images[anchor] @ images[row]) for row in left}
        usable = [r for r in left if dots[r] <= limit and rows[r] != rows[anchor]]
        for row in sorted(usable, key=lambda r: (-dots[r], r))[: min(5, -len(expected) % 6)]:
            left.remove(row)
            expected.append(row)
    assert list(order) == expected
