"""Batches with hard negatives: captions that the teacher finds alike, but not too alike."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from pipeline.params.loss import FilterParams
from pipeline.train.noise import filter_limit, passes, teacher_cosines, teacher_dots

Order = Int64[np.ndarray, " pool"]


def hard_negative_order(
    images: Float[Tensor, "pool teacher"],
    captions: Float[Tensor, "pool teacher"],
    *,
    batch_size: int,
    neighbours: int,
    noise: FilterParams,
    image_rows: Order | None = None,
) -> Order:
    """An order of a pool in which every cut of `batch_size` rows is full of hard negatives.

    A batch grows by one anchor after another, each the first row that is left, followed by its
    nearest rows that are left and that the noise filter would keep. Every row comes once, so that
    an epoch reads the same captions; the last batches of a pool find fewer neighbours.

    Args:
        images: teacher features of the pool's images, as the teacher gives them.
        captions: of its captions.
        batch_size: rows a batch.
        neighbours: hard negatives that follow an anchor.
        noise: the similarity that is searched, that of the image loss, and where a neighbour would
            be a false negative.
        image_rows: which image each row is of; captions of one image are not negatives. None: all
            are of different images.
    """
    score = (teacher_dots if noise.kind == "dot" else teacher_cosines)(images, captions)
    matrix = score.of_term("image", noise.similarity)
    usable = _usable(matrix, noise).numpy()
    if image_rows is not None:
        usable &= image_rows[:, None] != image_rows
    scores = np.where(usable, matrix.cpu().numpy(), -np.inf)
    return _walk(scores, batch_size, neighbours)


def _usable(matrix: Float[Tensor, "pool pool"], noise: FilterParams) -> Bool[Tensor, "pool pool"]:
    """Pairs of different samples that are negatives for the filter."""
    others = ~torch.eye(len(matrix), dtype=torch.bool, device=matrix.device)
    if noise.kind == "none":
        return others.cpu()
    limit = filter_limit(matrix[others], noise)
    return (passes(matrix, limit, noise) & others).cpu()


def _walk(scores: Float[np.ndarray, "pool pool"], batch_size: int, neighbours: int) -> Order:
    left = np.ones(len(scores), dtype=bool)
    order: list[int] = []
    while left.any():
        anchor = int(left.argmax())
        left[anchor] = False
        order.append(anchor)
        room = min(neighbours, -len(order) % batch_size)
        usable = np.where(left, scores[anchor], -np.inf)
        nearest = np.argsort(-usable, kind="stable")[:room]
        nearest = nearest[np.isfinite(usable[nearest])]
        left[nearest] = False
        order += nearest.tolist()
    return np.array(order)
