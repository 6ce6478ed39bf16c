"""Measure the demo's teacher on held-out pictures."""

from pathlib import Path

import open_clip
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.download.scenes.demo.demo_world import WORLD
from pipeline.download.scenes.tables import Picture, draw_picture
from pipeline.download.scenes.world import SPLITS_OF_HUNDRED

RANKS = (1, 5, 10)


def held_out_recall(folder: Path, pictures: int) -> dict[int, float]:
    """Text-to-image recall of a saved teacher on the first pictures of the test split.

    Args:
        folder: a folder that open_clip loads as `local-dir:`.
        pictures: how many pictures, each with its first caption; chance is k / pictures.

    Returns:
        The recall in 0..1 by k.
    """
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    model.eval()  # open_clip returns it as for training, where batches share their statistics
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    drawn = _held_out(pictures)
    with torch.no_grad():
        images = model.encode_image(torch.stack([preprocess(p.image) for p in drawn]), True)
        texts = model.encode_text(tokenizer([p.captions[0] for p in drawn]), True)
    return {k: recall_at(k, images, texts) for k in RANKS}


def _held_out(pictures: int) -> list[Picture]:
    indices = range(WORLD.images)
    held_out = [i for i in indices if SPLITS_OF_HUNDRED[i % len(SPLITS_OF_HUNDRED)] == "test"]
    return [draw_picture(index, WORLD) for index in held_out[:pictures]]


def recall_at(
    k: int, images: Float[Tensor, "pairs dim"], texts: Float[Tensor, "pairs dim"]
) -> float:
    """Text-to-image recall: the share of texts whose own image is among their k nearest.

    Args:
        k: how many images count.
        images: L2-normalised features; row i belongs to text i.
        texts: L2-normalised features.
    """
    cosines = texts @ images.T
    ranks = (cosines > cosines.diagonal()[:, None]).sum(dim=1)
    return float((ranks < k).float().mean())
