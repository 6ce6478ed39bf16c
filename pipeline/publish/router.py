"""A student as one directory of sentence-transformers, for texts and for pictures.

Its Router chooses by what is asked for:

    encode(texts)                                  sentence embeddings, as the student gives them
    encode_query(texts), encode_document(texts)    texts in the space shared with the teacher
    encode(pictures)                               pictures in that space

`task="shared"` names that space too. Nothing of this project is needed to load the directory.
"""

import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Router
from torch import nn

from pipeline.core.errors import ModelError
from pipeline.core.files import read_json, write_json
from pipeline.core.progress import log
from pipeline.core.redact import first_line
from pipeline.features.identity import PROBE_TEXTS
from pipeline.features.teacher import Teacher
from pipeline.params.teacher import TeacherParams
from pipeline.publish.vision import (
    PIXELS,
    VECTORS,
    NotExpressibleError,
    as_dense,
    image_modules,
    image_processor,
    write_graph,
)
from pipeline.student.encoder import Student

Vectors = Float32[np.ndarray, "rows dim"]

IMAGES = "image"
"""The folder of an image tower that is an ONNX graph."""
_TOLERANCE = 1e-5
"""Largest difference of a value of normalised vectors."""
_TASKS = {("query", "text"): "shared", ("document", "text"): "shared", ("shared", "image"): "image"}


def write_router(folder: Path, model: Path, params: TeacherParams) -> dict[str, Any]:
    """Write the directory, and compare what it gives with what the student gives.

    Args:
        folder: an empty folder.
        model: the student's directory.
        params: the teacher that it was trained with.

    Returns:
        For the card: `format`; `image_tower`, with `form` (transformers or onnx) and, for onnx,
        `reason`: why it is not modules of transformers.

    Raises:
        ModelError: the student was trained without pictures; or the directory would give other
            vectors.
        StaleArtifactError: the teacher is another one.
    """
    student = Student.load(model, torch.device("cpu"))
    if not student.sees_images:
        raise ModelError(
            f"{model} was trained without pictures, so it has no space shared with them.",
            "publish it without --format; SentenceTransformer loads that folder too.",
        )
    teacher = Teacher(params, torch.device("cpu"), "fp32")
    student.require_teacher(teacher.identity.weights)
    text: list[nn.Module] = list(SentenceTransformer(str(model), device="cpu").children())
    shared = [*text, as_dense(student.heads.grounding), Normalize()]
    texts = {"text": text, "shared": shared}
    try:
        whole = _save(folder, student, texts | {"image": image_modules(teacher, student.heads)})
        _require_pictures(whole.encode, student, teacher)
        tower = {"form": "transformers", "reason": None}
    except NotExpressibleError as error:
        log.warning("the image tower is written as ONNX: %s", error)
        shutil.rmtree(folder)
        whole, tower = _save(folder, student, texts), {"form": "onnx", "reason": str(error)}
        _write_tower(folder / IMAGES, student, teacher, str(error))
    _require_texts(whole, student)
    return {"format": "sentence-transformers", "image_tower": tower}


def _save(folder: Path, student: Student, routes: dict[str, list[nn.Module]]) -> Any:
    """Write the routes as one model, and load it as others do.

    A prompt of the student belongs to all its texts.
    """
    tasks = {key: route for key, route in _TASKS.items() if route in routes}
    router = Router(cast(Any, routes), allow_empty_key=False, route_mappings=cast(Any, tasks))
    prompts = dict.fromkeys(("default", "query", "document"), student.encoder.prompt)
    prompted = {"prompts": prompts, "default_prompt_name": "default"}
    options: Any = prompted if student.encoder.prompt else {}
    whole = SentenceTransformer(modules=[router], device="cpu", **options)
    whole.save_pretrained(str(folder), create_model_card=False)
    if "image" in routes:  # the library that resizes pictures, which is read, but not written
        settings = folder / "image_0_Transformer/sentence_bert_config.json"
        backend = {"backend": cast(Any, routes["image"][0]).processor.backend}
        write_json(settings, read_json(settings) | {"processor_kwargs": backend})
    return SentenceTransformer(str(folder), device="cpu")


def _require_texts(whole: Any, student: Student) -> None:
    texts = list(PROBE_TEXTS)
    own = student.encode(texts)
    for found, expected in (
        (whole.encode(texts), own),
        (whole.encode_query(texts), student.ground_sentences(own)),
    ):
        if (worst := _difference(found, expected)) > _TOLERANCE:
            raise ModelError(
                f"sentence-transformers gives texts other vectors (a difference of {worst:.1g}).",
                "publish the student without --format.",
            )


def _require_pictures(encode: Any, student: Student, teacher: Teacher) -> None:
    """Compare the vectors of pictures that need no crop, or one of whole pixels."""
    side = teacher.decode.side
    noise = np.random.default_rng(0).integers(0, 256, (2 * side, 2 * side, 3), np.uint8)
    pictures = [Image.fromarray(noise), Image.fromarray(noise[:side, : side + 4])]
    pixels = torch.stack([teacher.decode.transform(picture) for picture in pictures])
    expected = student.ground_images(teacher.encode_images(pixels).numpy())
    if (worst := _difference(encode(pictures), expected)) > _TOLERANCE:
        msg = f"transformers gives other vectors for its pictures (a difference of {worst:.1g})"
        raise NotExpressibleError(msg)


def _write_tower(folder: Path, student: Student, teacher: Teacher, reason: str) -> None:
    """Write the image tower as ONNX, and compare its vectors."""
    import onnxruntime

    try:
        write_graph(teacher, student.heads, folder)
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
        processor = image_processor(teacher)

        def encode(pictures: list[Image.Image]) -> Vectors:
            pixels = processor(pictures, return_tensors="np")["pixel_values"]
            return cast(Vectors, session.run([VECTORS], {PIXELS: pixels})[0])

        _require_pictures(encode, student, teacher)
    except Exception as error:
        raise ModelError(
            f"the teacher's image tower cannot be published: {reason}; and as ONNX: "
            f"{first_line(error)}.",
            "publish the student without --format.",
        ) from error


def _difference(found: Vectors, expected: Vectors) -> float:
    """Of vectors, in lengths of the expected ones."""
    lengths = np.linalg.norm(expected, axis=1, keepdims=True)
    return float(np.abs((found - expected) / lengths).max())
