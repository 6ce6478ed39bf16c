"""Whether the demo's teacher and a student know which colour is whose, and which thing is where.

    python -m benchmarks.binding --model data/models/0

Draws scenes with two things whose combination is held out, and exchanges their colours or their
places: other meaning, (nearly) the same words. Prints a Markdown table of how often a caption is
nearer to another caption of its scene, and to its picture, than to that of the exchanged scene,
and a picture to its caption than to the exchanged one. Chance is 50 %. A few seconds on a CPU.
"""

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from jaxtyping import Float32

from pipeline.download.scenes.render import render
from pipeline.download.scenes.sentence_pairs import exchange
from pipeline.download.scenes.wording import Told, describe
from pipeline.download.scenes.world import Scene, draw_scene, generator
from pipeline.features.cached_teacher import CachedTeacher
from pipeline.params.block import load_params
from pipeline.params.schema import Params
from pipeline.student.encoder import Student

EXCHANGES = ("colour", "place")
_STREAM = 110
"""Random stream; those of the corpora and of the teacher's training are below it."""

Vectors = Float32[np.ndarray, "scenes 3 dim"]


class Views(NamedTuple):
    """Vectors of scenes, and of these with colours and with places exchanged."""

    captions: Vectors
    paraphrases: Vectors
    """Other captions, comparable with `captions` only."""
    shared_captions: Vectors
    """`captions` in the space of `pictures`."""
    pictures: Vectors


def main(
    model: Annotated[
        Path | None, typer.Option(help="A student; without, the teacher alone.")
    ] = None,
    scenes: Annotated[int, typer.Option(help="Scenes to draw.", min=1)] = 500,
) -> None:
    """Print the table for the teacher of params.yaml and a student."""
    teacher = load_params(Path("params.yaml"), Params).teacher
    drawn = list(itertools.islice(draw_scenes(), scenes))
    print("| system | exchanged | caption, caption | caption, picture | picture, caption |")
    print("|---|---|---|---|---|")
    for system, views in encode(drawn, teacher.model, teacher.pretrained, model).items():
        for exchanged, shares in binding(views).items():
            cells = " | ".join(f"{100 * share:.1f} %" for share in shares)
            print(f"| {system} | {exchanged}s | {cells} |")


def draw_scenes() -> Iterator[tuple[Scene, ...]]:
    """Held-out scenes with two colours, each with its colours and its places exchanged."""
    for index in itertools.count():
        scene = draw_scene("test", generator(0, _STREAM, index))
        if len({group.colour for group in scene.groups}) > 1:
            yield scene, *(exchange(scene, name) for name in EXCHANGES)


def encode(
    drawn: list[tuple[Scene, ...]], name: str, pretrained: str | None, model: Path | None
) -> dict[str, Views]:
    """Describe, draw and encode scenes, by the teacher and by the student, if there is one."""
    rng, told = generator(0, _STREAM + 1, 0), Told(background=False)
    flat = [scene for scenes in drawn for scene in scenes]
    captions, paraphrases = ([describe(scene, told, rng) for scene in flat] for _ in range(2))
    with tempfile.TemporaryDirectory() as folder:
        teacher = CachedTeacher(name, pretrained, Path(folder, "store"))
        paths = [Path(folder, f"{index}.png") for index in range(len(flat))]
        for path, scene in zip(paths, flat, strict=True):
            render(scene, rng).save(path)
        pictures = teacher.encode_images(paths)
        texts = [teacher.encode_captions(some) for some in (captions, paraphrases)]
    found = {"teacher": _views(*texts, texts[0], pictures)}
    if model is not None:
        student = Student.load(model)
        texts = [student.encode(some) for some in (captions, paraphrases)]
        shared = student.ground_sentences(texts[0]), student.ground_images(pictures)
        found["student"] = _views(*texts, *shared)
    return found


def _views(*rows: Float32[np.ndarray, "rows dim"]) -> Views:
    unit = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in rows)
    return Views(*(one.reshape(-1, 1 + len(EXCHANGES), one.shape[1]) for one in unit))


def binding(views: Views) -> dict[str, tuple[float, ...]]:
    """By what is exchanged: the fraction of scenes told apart, in the order of the table."""
    compared = (
        (views.captions, views.paraphrases),
        (views.shared_captions, views.pictures),
        (views.pictures, views.shared_captions),
    )
    return {
        name: tuple(float((_near(*two, 0) > _near(*two, place)).mean()) for two in compared)
        for place, name in enumerate(EXCHANGES, start=1)
    }


def _near(anchors: Vectors, others: Vectors, place: int) -> Float32[np.ndarray, " scenes"]:
    cosines: Float32[np.ndarray, " scenes"] = (anchors[:, 0] * others[:, place]).sum(axis=1)
    return cosines


if __name__ == "__main__":
    typer.run(main)
