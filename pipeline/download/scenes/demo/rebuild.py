"""Build the demo's teacher and student start from the embedded world, and measure the teacher."""

from pathlib import Path

import open_clip
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.core.files import atomic_folder
from pipeline.core.progress import log
from pipeline.download.scenes.demo.student_model import (
    StudentRecipe,
    pretrain_student,
    save_student,
)
from pipeline.download.scenes.demo.teacher_model import TeacherRecipe, save_teacher, train_teacher
from pipeline.download.scenes.demo.tokenizer import build_tokenizer
from pipeline.download.scenes.tables import draw_picture, make_sentences
from pipeline.download.scenes.world import SPLITS_OF_HUNDRED
from pipeline.params.download import ScenesParams

WORLD = ScenesParams(images=4600, captions_per_image=5, sentences=10_000, sts_pairs=3000, seed=0)
"""The world that the demo's models were made for: that of params.yaml."""
HELD_OUT = 500
"""Pictures of the test split that the teacher is measured on."""


def build_demo(folder: Path, teacher: TeacherRecipe, student: StudentRecipe) -> None:
    """Train both models, write them as `teacher/` and `student/` of `folder`, log the recall.

    Raises:
        ResourceError: the disk is full.
    """
    tokenizer = build_tokenizer(make_sentences(WORLD))
    encoder = pretrain_student(tokenizer, student)
    with atomic_folder(folder / "student") as temporary:
        save_student(encoder, tokenizer, temporary)
    model = train_teacher(tokenizer, teacher)
    with atomic_folder(folder / "teacher") as temporary:
        save_teacher(model, tokenizer, temporary)
    for k, recall in held_out_recall(folder / "teacher", HELD_OUT).items():
        log.info("teacher: recall@%d on %d held-out pictures %.3f", k, HELD_OUT, recall)


def held_out_recall(folder: Path, pictures: int) -> dict[int, float]:
    """Text-to-image recall at 1, 5 and 10 of a saved teacher on pictures of the test split.

    Each of these has its first caption; chance is k / pictures.
    """
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    model.eval()  # open_clip returns it as for training, where batches share their statistics
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    test = [i for i in range(WORLD.images) if SPLITS_OF_HUNDRED[i % 100] == "test"]
    drawn = [draw_picture(index, WORLD) for index in test[:pictures]]
    with torch.no_grad():
        images = model.encode_image(torch.stack([preprocess(p.image) for p in drawn]), True)
        texts = model.encode_text(tokenizer([p.captions[0] for p in drawn]), True)
    return {k: recall_at(k, images, texts) for k in (1, 5, 10)}


def recall_at(k: int, images: Float[Tensor, "rows dim"], texts: Float[Tensor, "rows dim"]) -> float:
    """The fraction of texts whose own image, that of their row, is among the k nearest.

    Features are L2-normalised.
    """
    cosines = texts @ images.T
    ranks = (cosines > cosines.diagonal()[:, None]).sum(dim=1)
    return float((ranks < k).float().mean())
