"""Mutated indexes, students and teachers: in place of each file of theirs, broken bytes.

Checksums notice most of it at once; where the folder is sealed again behind the damage, the
libraries themselves meet it.
"""

import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPModel

from pipeline.core.checksums import CHECKSUMS, write_checksums
from pipeline.download.records import read_pairs
from pipeline.features.teacher import Teacher
from pipeline.index.format import Window
from pipeline.params.teacher import TeacherParams
from pipeline.search.searcher import Searcher
from pipeline.student.directory import POOLING_FILE
from pipeline.student.encoder import Student
from tests.faults.fuzz.runner import Target, account, run
from tests.faults.ledger import record, times
from tests.features.tiny_teachers import save_clip, save_open_clip

CPU = torch.device("cpu")
INDEX = [
    "manifest.json",
    "texts.faiss",
    "grounded.faiss",
    "images.faiss",
    "texts.parquet",
    "images.parquet",
    "query.onnx",
    "tokenizer.json",
]
STUDENT = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "modules.json",
    "model.safetensors",
]
HEADS = ["heads.json", "heads.safetensors"]
CLIP = ["config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"]
OPEN_CLIP = ["open_clip_config.json", "open_clip_model.safetensors"]
TOKENS = (b"null", b"[]", b"{}", b"-1", b"1e9", b"99999999999", b'"x"', b"true", b"[" * 2000)


@dataclass(frozen=True)
class Reader:
    """Something that reads a folder, and what it gives of it as it is."""

    read: Callable[[Path], object]
    expected: object


def broken(folder: Path, name: str, reader: Reader, *, again: bool = False) -> Target:
    """A target that puts the bytes in the place of one file of a copy of a folder.

    Args:
        folder: what is copied.
        name: the file.
        reader: of the copy.
        again: seal the file anew behind the change, so that libraries meet it.
    """
    sealed = name in json.loads(read_or(folder / CHECKSUMS, "{}"))
    assert sealed or not again, f"{name} has no checksum"

    def place(work: Path, content: bytes) -> None:
        copy = work / "copy"
        if not copy.exists():
            shutil.copytree(folder, copy)
        (copy / name).write_bytes(content)
        if again:
            write_checksums(copy, name)

    def is_right(found: object) -> bool:
        return found == reader.expected

    return Target(
        f"{folder.name} {name}{' sealed again' if again else ''}",
        folder.name,
        [(folder / name).read_bytes()],
        [reader.expected],
        place,
        lambda work: reader.read(work / "copy"),
        TOKENS,
        accepts=is_right if sealed and not again else None,
        guarded=sealed and not again,
    )


def read_or(path: Path, default: str) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else default


def check(target: Target, folder: Path, cases: int) -> None:
    kept = Path(os.environ.get("KDMCSE_FUZZ", folder))
    kept.mkdir(parents=True, exist_ok=True)
    outcome = run(target, range(cases), kept)
    assert not outcome.findings, (kept, outcome.findings[:20])
    for said, count in account(target, outcome).items():
        record(f"mutated {target.name}", target.where, said, count)


QUERY = "a small red circle"


@pytest.fixture(scope="module")
def search_reader(tiny_run) -> Reader:
    """Of an index: what it finds, held against all captions and images, compared one by one."""
    model = tiny_run / "data/models/0"
    student = Student.load(model, CPU)
    pairs = read_pairs(tiny_run / "data/pairs")
    features = load_features(tiny_run / "data/features.h5")
    caption = str(pairs.captions["caption"].iloc[0])
    vectors = student.encoder.encode([QUERY], batch_size=1)
    near = student.ground_sentences(vectors) @ student.ground_images(features).T

    def read(folder: Path) -> object:
        searcher = Searcher.open(model, folder)
        (texts,) = searcher.search([caption], target="texts", window=Window(1))
        (images,) = searcher.search([QUERY], target="images", window=Window(1))
        assert texts, "no text is found"
        assert images, "no image is found"
        text, image = texts[0], images[0]
        return text.text, text.score, image.kind, image.score

    best = pytest.approx(float(near.max()), abs=1e-4)
    return Reader(read, (caption, pytest.approx(1, abs=1e-4), "image", best))


def load_features(path: Path) -> np.ndarray:
    """Of the images, as any HDF5 reader has them."""
    with h5py.File(path) as file:
        return file["image/features"][:].astype(np.float32)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("name", INDEX)
def test_an_index(tiny_run, search_reader, tmp_path, name, again):
    target = broken(tiny_run / "data/index", name, search_reader, again=again)
    check(target, tmp_path, times(8, 150))


def test_all_files_of_an_index_are_broken(tiny_run):
    assert {path.name for path in (tiny_run / "data/index").iterdir()} == {*INDEX, CHECKSUMS}


@pytest.fixture(scope="module")
def student(tiny_run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "student"
    return shutil.copytree(tiny_run / "data/models/0", folder)


@pytest.fixture(scope="module")
def student_reader(student) -> Reader:
    """Of a student: a sentence in both spaces, held against transformers and the plain formula."""

    def read(folder: Path) -> object:
        loaded = Student.load(folder, CPU)
        vectors = loaded.encoder.encode([QUERY], batch_size=1)
        return np.concatenate([vectors, loaded.ground_sentences(vectors)], axis=1)[0]

    backbone = AutoModel.from_pretrained(student).eval()
    tokens = AutoTokenizer.from_pretrained(student)(QUERY, return_tensors="pt")
    with torch.inference_mode():
        hidden = backbone(**tokens).last_hidden_state[0].numpy()
    pooling = json.loads((student / "1_Pooling/config.json").read_text())
    vector = hidden[0] if pooling["pooling_mode_cls_token"] else hidden.mean(axis=0)
    heads = load_file(student / "heads.safetensors")
    grounded = np.tanh(heads["grounding.0.weight"] @ vector + heads["grounding.0.bias"])
    both = np.concatenate([vector, grounded / np.linalg.norm(grounded)])
    return Reader(read, pytest.approx(both, abs=1e-4))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("name", [*STUDENT, *HEADS])
def test_a_student(student, student_reader, tmp_path, name, again):
    check(broken(student, name, student_reader, again=again), tmp_path, times(4, 40))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", [CHECKSUMS, POOLING_FILE.as_posix()])
def test_a_file_of_a_student_that_has_no_checksum(student, student_reader, tmp_path, name):
    check(broken(student, name, student_reader), tmp_path, times(4, 150))


def draw_picture() -> bytes:
    """A JPEG of gradients, edges and stripes."""
    x, y = np.meshgrid(np.arange(600), np.arange(400))
    channels = [x * 255 // 600, (x // 40 + y // 40) % 2 * 200, (x * y // 64) % 256]
    stream = io.BytesIO()
    Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


PICTURE, CAPTION = draw_picture(), "A small dog's red ball, on 2 square metres of grass."


def probe(name: str) -> np.ndarray:
    """Features of one picture and one caption, as unit vectors."""
    teacher = Teacher(TeacherParams(model=name), CPU)
    pixels = teacher.decode(PICTURE)
    assert isinstance(pixels, torch.Tensor)
    features = [teacher.encode_images(pixels[None]), teacher.encode_captions([CAPTION])]
    return unit(torch.cat(features).numpy())


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", CLIP)
def test_a_teacher_of_transformers(tmp_path, name):
    folder = Path(save_clip(tmp_path / "clip"))
    expected = pytest.approx(features_of_clip(folder), abs=_OTHER_RESIZING)
    reader = Reader(lambda copy: probe(f"transformers:{copy}"), expected)
    check(broken(folder, name, reader), tmp_path, times(4, 40))


def features_of_clip(folder: Path) -> np.ndarray:
    """What transformers itself makes of picture and caption."""
    pictures = AutoImageProcessor.from_pretrained(folder)([picture()], return_tensors="pt")
    texts = AutoTokenizer.from_pretrained(folder)([CAPTION], return_tensors="pt")
    with torch.inference_mode():
        found = CLIPModel.from_pretrained(folder).eval()(**pictures, **texts)
    return unit(torch.cat([found.image_embeds, found.text_embeds]).numpy())


_OTHER_RESIZING = 0.01
"""A unit vector's values differ by less where a library scales large pictures in its own way."""


def picture() -> Image.Image:
    return Image.open(io.BytesIO(PICTURE))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", OPEN_CLIP)
def test_a_teacher_of_open_clip(tmp_path, name):
    teacher = save_open_clip(tmp_path / "open_clip")
    expected = pytest.approx(features_of_open_clip(teacher), abs=_OTHER_RESIZING)
    reader = Reader(lambda copy: probe(f"local-dir:{copy}"), expected)
    check(broken(tmp_path / "open_clip", name, reader), tmp_path, times(4, 40))


def features_of_open_clip(name: str) -> np.ndarray:
    """What open_clip itself makes of picture and caption."""
    model, _, transform = open_clip.create_model_and_transforms(name)
    model.eval()
    tokens = open_clip.get_tokenizer(name)([CAPTION])
    with torch.inference_mode():
        image, text = model.encode_image(transform(picture())[None]), model.encode_text(tokens)
    return unit(torch.cat([image, text]).numpy())
