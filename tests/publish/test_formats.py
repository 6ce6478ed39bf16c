"""What others take away: a Router of sentence-transformers for texts and pictures, and ONNX."""

import io
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from sentence_transformers import SentenceTransformer

from pipeline.core.errors import ModelError, StaleArtifactError
from pipeline.features.teacher import Teacher
from pipeline.params.teacher import TeacherParams
from pipeline.publish.router import write_router
from pipeline.search.searcher import Searcher
from pipeline.student.encoder import (
    GroundingHeads,
    SentenceEncoder,
    Student,
    pool,
    save_student,
)
from tests.conftest import ROOT, assert_clear_error, invoke
from tests.features.tiny_teachers import SIDE, save_clip, save_open_clip, save_siglip

TEXTS = ["a red circle above a blue square", "two dogs", ""]
VIT = {"image_size": SIDE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
TEACHERS = {
    "clip": lambda at: f"transformers:{save_clip(at)}",
    "siglip": lambda at: f"transformers:{save_siglip(at)}",
    "open_clip": save_open_clip,
    "quick_gelu": lambda at: save_open_clip(at, quick_gelu=True),
    "resnet": lambda at: save_open_clip(at, vision_cfg=RESNET),
    "average": lambda at: save_open_clip(at, vision_cfg=VIT | {"pool_type": "avg"}),
}


def make_student(folder: Path, teacher: Teacher, shared: int | None, **settings) -> Student:
    torch.manual_seed(0)
    encoder = SentenceEncoder.load(ROOT / "data/demo/student", "mean")
    encoder.prompt = settings.get("prompt", "")
    heads = GroundingHeads(encoder.dim, teacher.probe().shape[1], shared).eval()
    objective = settings.get("objective", "kdmcse")
    student = Student(encoder.eval(), heads, objective, 0, (), teacher.identity.weights)
    folder.mkdir()
    save_student(folder, student, "card")
    return student


def pictures() -> list[Image.Image]:
    noise = np.random.default_rng(1).integers(0, 256, (70, 80, 3), np.uint8)
    sizes = ((70, 70), (32, 36), (36, 32))
    return [Image.fromarray(noise[:height, :width]) for height, width in sizes]


def own_vectors(student: Student, teacher: Teacher) -> np.ndarray:
    pixels = []
    for picture in pictures():
        picture.save(stream := io.BytesIO(), "PNG")
        pixels.append(teacher.decode(stream.getvalue()))
    return student.ground_images(teacher.encode_images(torch.stack(pixels)).numpy())


@pytest.mark.parametrize(
    ("kind", "shared", "prompt", "form"),
    [
        ("clip", 16, "", "transformers"),
        pytest.param("clip", None, "", "transformers", marks=pytest.mark.slow),
        ("siglip", 16, "", "transformers"),
        pytest.param("open_clip", 16, "about: ", "transformers", marks=pytest.mark.slow),
        ("quick_gelu", None, "about: ", "transformers"),
        pytest.param("resnet", 16, "", "onnx", marks=pytest.mark.slow),
        pytest.param("average", 16, "", "onnx", marks=[pytest.mark.slow, pytest.mark.smoke]),
    ],
)
def test_the_directory_gives_the_vectors_of_student_and_teacher(
    tmp_path, kind, shared, prompt, form
):
    params = TeacherParams(model=TEACHERS[kind](tmp_path / "teacher"))
    teacher = Teacher(params, torch.device("cpu"), "fp32")
    student = make_student(tmp_path / "student", teacher, shared, prompt=prompt)
    out = tmp_path / "out"
    out.mkdir()
    about = write_router(out, tmp_path / "student", params)
    assert about["image_tower"]["form"] == form
    model = SentenceTransformer(str(out), device="cpu")
    own = student.encode(TEXTS)
    np.testing.assert_allclose(model.encode(TEXTS), own, atol=1e-5)
    for shared_texts in (
        model.encode_query(TEXTS),
        model.encode_document(TEXTS),
        model.encode(TEXTS, task="shared"),
    ):
        np.testing.assert_allclose(shared_texts, student.ground_sentences(own), atol=1e-5)
    expected = own_vectors(student, teacher)
    if form == "onnx":
        assert about["image_tower"]["reason"].startswith("transformers ")
        with pytest.raises(ValueError, match="not supported"):
            model.encode(pictures())
        return
    paths = [str(tmp_path / f"{row}.png") for row in range(3)]
    for path, picture in zip(paths, pictures(), strict=True):
        picture.save(path)
    for given in (pictures(), paths, [{"image": one} for one in pictures()]):
        for task in (None, "shared", "query", "document"):
            np.testing.assert_allclose(model.encode(given, task=task), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"objective": "simcse"}, ModelError, "trained without pictures"),
        ({"other": True}, StaleArtifactError, "another teacher"),
    ],
)
def test_a_student_without_its_teacher_is_refused(tmp_path, settings, error, words):
    params = TeacherParams(model=save_open_clip(tmp_path / "teacher"))
    teacher = Teacher(params, torch.device("cpu"), "fp32")
    make_student(tmp_path / "student", teacher, 16, **settings)
    if "other" in settings:
        params = TeacherParams(model=TEACHERS["clip"](tmp_path / "other"))
    (out := tmp_path / "out").mkdir()
    with pytest.raises(error, match=words):
        write_router(out, tmp_path / "student", params)


@pytest.mark.parametrize("mode", ["longest", "shortest"])
def test_a_transform_that_transformers_lacks_is_named(tmp_path, mode):
    config = VIT | {"image_size": [32, 48] if mode == "shortest" else 32}
    name = save_open_clip(tmp_path / "t", vision_cfg=config, preprocess={"resize_mode": mode})
    params = TeacherParams(model=name)
    make_student(tmp_path / "student", Teacher(params, torch.device("cpu"), "fp32"), 16)
    (out := tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match=f"no image processor that resizes to {mode}"):
        write_router(out, tmp_path / "student", params)


def code_of(folder: Path) -> list[str]:
    text = ModelCard.load(folder / "README.md").text
    return re.findall(r"```python\n(.+?)```", text, re.DOTALL)


@pytest.mark.slow
def test_the_card_s_code_finds_what_a_search_finds(in_tiny_run, tmp_path, monkeypatch):
    out = str(tmp_path / "router")
    result = invoke("publish", "--format", "sentence-transformers", "--json", "--out", out)
    assert result.exit_code == 0, (result.output, result.exception)
    seed = json.loads(result.stdout)["seed"]
    searcher = Searcher.open(Path(f"data/models/{seed}"), Path("data/index"))
    hits = searcher.search([TEXTS[0]], target="images")[0]
    names: dict = {"pictures": []}
    for hit in hits:
        with zipfile.ZipFile(Path("data/pairs", hit.archive)) as archive:
            names["pictures"].append(Image.open(io.BytesIO(archive.read(hit.member))))
    setting, text, shared, transformers = code_of(tmp_path / "router")
    monkeypatch.chdir(out)
    exec(setting + text + shared, names)  # noqa: S102
    found = names["similarity"][0].tolist()
    assert found == pytest.approx([hit.score for hit in hits], abs=5e-5)
    embeddings = names["embeddings"]
    exec(transformers, names)  # noqa: S102
    np.testing.assert_allclose(names["embeddings"], embeddings, atol=1e-5)


@pytest.mark.integration
def test_the_directory_needs_nothing_of_this_project(tmp_path):
    params = TeacherParams(model=save_open_clip(tmp_path / "teacher"))
    make_student(tmp_path / "student", Teacher(params, torch.device("cpu"), "fp32"), 16)
    (out := tmp_path / "out").mkdir()
    write_router(out, tmp_path / "student", params)
    pictures()[0].save(tmp_path / "one.png")
    code = (
        "import sys; sys.modules |= dict.fromkeys(['pipeline', 'open_clip', 'timm']); "
        "from sentence_transformers import SentenceTransformer; m = SentenceTransformer('out'); "
        "print(m.similarity(m.encode_query(['a dog']), m.encode(['one.png'])).shape)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "torch.Size([1, 1])\n"


@pytest.mark.slow
def test_onnx_files_give_the_student_s_vectors_and_their_sts(in_tiny_run, tmp_path):
    out = tmp_path / "exported"
    result = invoke("publish", "--onnx", "--out", str(out))
    assert result.exit_code == 0, (result.output, result.exception)
    facts = json.loads((out / "provenance.json").read_text())
    assert set(facts["onnx"]) == {"onnx/model.onnx", "onnx/model_int8.onnx"}
    row = next(one for one in facts["scores"] if one["score"] == "sts.avg")
    assert facts["onnx"]["onnx/model.onnx"]["avg"] == pytest.approx(row["value"], abs=0.01)
    student = Student.load(out, torch.device("cpu"))
    tokens = student.encoder.tokenize(TEXTS)
    own = student.encode(TEXTS)
    sizes, differences = [], []
    for name in facts["onnx"]:
        session = onnxruntime.InferenceSession(out / name)
        given = {key: ids.numpy() for key, ids in tokens.items()}
        hidden = torch.from_numpy(session.run(["last_hidden_state"], given)[0])
        vectors = pool(hidden, tokens["attention_mask"], student.encoder.pooling).numpy()
        differences.append(np.abs(vectors - own).max())
        sizes.append((out / name).stat().st_size)
    assert differences[0] < 1e-5 < differences[1] < 0.5
    assert sizes[1] < sizes[0] / 2
    text = (out / "README.md").read_text()
    assert "| torch | onnx/model.onnx | onnx/model_int8.onnx |" in text
    both = invoke("publish", "--onnx", "--format", "sentence-transformers")
    assert_clear_error(both, "--onnx does not go with --format")
