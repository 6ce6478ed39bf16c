"""Rebuild the small models that the embedded default runs on."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.download.scenes.demo.rebuild import build_demo
from pipeline.download.scenes.demo.student_model import StudentRecipe
from pipeline.download.scenes.demo.teacher_model import TeacherRecipe
from stages._cli import run_stage


def main(
    out: Annotated[Path, typer.Option(help="Folder that gets teacher/ and student/.")] = Path(
        "data/demo"
    ),
    seed: Annotated[int, typer.Option(help="Seed of both trainings.", min=0)] = 0,
) -> None:
    """Rebuild the demo's teacher and student start; data/demo was made this way."""
    build_demo(out, TeacherRecipe(seed=seed), StudentRecipe(seed=seed))


app = run_stage(main)

if __name__ == "__main__":
    app()
