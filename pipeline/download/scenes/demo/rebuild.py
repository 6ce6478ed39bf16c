"""Build the demo's teacher and student start from the embedded world."""

from pathlib import Path

from pipeline.core.files import atomic_folder
from pipeline.core.progress import log
from pipeline.download.scenes.demo.demo_world import WORLD
from pipeline.download.scenes.demo.recall import held_out_recall
from pipeline.download.scenes.demo.student_model import (
    StudentRecipe,
    pretrain_student,
    save_student,
)
from pipeline.download.scenes.demo.teacher_model import TeacherRecipe, save_teacher, train_teacher
from pipeline.download.scenes.demo.tokenizer import build_tokenizer
from pipeline.download.scenes.tables import make_sentences

HELD_OUT = 500
"""Pictures of the test split that the teacher is measured on."""


def build_demo(folder: Path, teacher: TeacherRecipe, student: StudentRecipe) -> None:
    """Train both models, write them as `teacher/` and `student/` of `folder`, log the recall.

    Args:
        folder: where the demo's models live.
        teacher: how to train the teacher.
        student: how to pretrain the student start.

    Raises:
        ResourceError: the disk is full.
    """
    sentences = make_sentences(WORLD)
    tokenizer = build_tokenizer(sentences)
    encoder = pretrain_student(tokenizer, sentences, student)
    with atomic_folder(folder / "student") as temporary:
        save_student(encoder, tokenizer, temporary)
    model = train_teacher(tokenizer, teacher)
    with atomic_folder(folder / "teacher") as temporary:
        save_teacher(model, tokenizer, temporary)
    for k, recall in held_out_recall(folder / "teacher", HELD_OUT).items():
        log.info("teacher: recall@%d on %d held-out pictures %.3f", k, HELD_OUT, recall)
