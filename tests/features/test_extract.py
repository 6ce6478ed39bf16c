"""Extraction with the demo teacher: the same features as plain open_clip, rejects accounted for."""

import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from PIL import Image

from pipeline.download.records import Pairs, read_pairs, write_pairs
from pipeline.errors import InputError, InterruptedRunError, ModelError
from pipeline.features.extract import decode_image, extract_features
from pipeline.features.teacher import Teacher, needs_quick_gelu
from pipeline.params.features import FeaturesParams
from pipeline.params.teacher import TeacherParams
from tests.conftest import ROOT, TINY

PARAMS = FeaturesParams(batch_size=3, workers=0, max_rejected=0.9)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher(TeacherParams(model=TINY["teacher"]["model"]), torch.device("cpu"))


@pytest.fixture(scope="module")
def jpegs(tiny_run: Path) -> list[bytes]:
    """Five pictures of the world, as JPEG."""
    jpegs = []
    with zipfile.ZipFile(tiny_run / "data/pairs/images.zip") as archive:
        for name in archive.namelist()[:5]:
            stream = io.BytesIO()
            Image.open(archive.open(name)).convert("RGB").save(stream, "JPEG", quality=95)
            jpegs.append(stream.getvalue())
    return jpegs


def make_pairs(folder: Path, contents: list[bytes]) -> Pairs:
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for number, content in enumerate(contents):
            archive.writestr(f"{number}.jpg", content)
    images = pd.DataFrame(
        {
            "image_id": [10 + number for number in range(len(contents))],
            "split": "train",
            "archive": "images.zip",
            "member": [f"{number}.jpg" for number in range(len(contents))],
        }
    )
    captions = pd.DataFrame(
        [
            (2 * row + k, 10 + row, f"caption {'long ' * k}of {row}")
            for row in range(len(contents))
            for k in (1, 0)
        ],
        columns=["caption_id", "image_id", "caption"],
    )
    write_pairs(folder, images, captions)
    return read_pairs(folder)


def test_features_are_those_of_plain_open_clip(tmp_path, teacher, jpegs):
    pairs = make_pairs(tmp_path, jpegs)
    features = extract_features(pairs, teacher, PARAMS).features
    name = TINY["teacher"]["model"]
    model, preprocess = open_clip.create_model_from_pretrained(name)
    tokenize = open_clip.get_tokenizer(name)
    model.eval()
    with torch.inference_mode():
        for row, content in enumerate(jpegs):
            image = preprocess(Image.open(io.BytesIO(content)))[None]
            np.testing.assert_allclose(
                features.images[row], model.encode_image(image)[0].numpy(), rtol=2e-3, atol=2e-3
            )
        for row, caption in enumerate(pairs.captions["caption"]):
            np.testing.assert_allclose(
                features.captions[row],
                model.encode_text(tokenize([caption]))[0].numpy(),
                rtol=2e-3,
                atol=2e-3,
            )
    assert list(features.image_ids) == [10, 11, 12, 13, 14]
    assert list(features.caption_image) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_bad_images_are_skipped_counted_and_named(tmp_path, teacher, jpegs, caplog):
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    contents = [jpegs[0], jpegs[1][:400], b"<html>", jpegs[2], b"", bomb.getvalue()]
    extraction = extract_features(make_pairs(tmp_path, contents), teacher, PARAMS)
    assert list(extraction.features.image_ids) == [10, 13]
    assert list(extraction.features.caption_ids) == [1, 0, 7, 6]
    assert list(extraction.features.caption_image) == [0, 0, 1, 1]
    assert list(extraction.rejected["member"]) == ["1.jpg", "2.jpg", "4.jpg", "5.jpg"]
    assert extraction.metrics["rejected"] == 4
    assert sum(extraction.metrics["rejected_by_reason"].values()) == 4
    assert "runcated" in extraction.rejected["reason"][0]
    assert "1.jpg" in caplog.text


def test_a_stop_signal_is_no_fault_of_the_image(jpegs):
    def stopped(_image):
        raise InterruptedRunError("features was stopped by SIGTERM", "run it again")

    with pytest.raises(InterruptedRunError):
        decode_image(jpegs[0], stopped)


def test_rejected_images_do_not_change_the_others(tmp_path, teacher, jpegs):
    for name in ("good", "mixed"):
        (tmp_path / name).mkdir()
    good = extract_features(make_pairs(tmp_path / "good", jpegs[:3]), teacher, PARAMS).features
    mixed = make_pairs(tmp_path / "mixed", [jpegs[0], b"rot", jpegs[1], jpegs[2]])
    found = extract_features(mixed, teacher, PARAMS).features
    np.testing.assert_allclose(found.images, good.images, rtol=2e-3, atol=2e-3)


def test_too_many_rejected_images_fail(tmp_path, teacher, jpegs):
    pairs = make_pairs(tmp_path, [jpegs[0], b"rot"])
    strict = PARAMS.model_copy(update={"max_rejected": 0.4})
    with pytest.raises(InputError, match=r"1 of 2 images were rejected.*1\.jpg"):
        extract_features(pairs, teacher, strict)


def test_no_image_at_all_fails(tmp_path, teacher):
    with pytest.raises(InputError, match="all 2 images were rejected"):
        extract_features(make_pairs(tmp_path, [b"rot", b"rot"]), teacher, PARAMS)


def test_workers_and_batch_size_change_nothing(tmp_path, teacher, jpegs):
    pairs = make_pairs(tmp_path, jpegs)
    one = extract_features(pairs, teacher, PARAMS).features
    other = PARAMS.model_copy(update={"workers": 2, "batch_size": 2})
    two = extract_features(pairs, teacher, other).features
    np.testing.assert_allclose(two.images, one.images, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(two.captions, one.captions, rtol=2e-3, atol=2e-3)


def test_cutting_the_context_is_exact(teacher):
    captions = ["a circle", "two small red circles above a large blue square on white"]
    whole = teacher._tokenizer(captions)
    with torch.inference_mode():
        expected = teacher.model.encode_text(whole)
    torch.testing.assert_close(teacher.encode_captions(captions), expected, rtol=1e-5, atol=1e-5)
    assert (whole == 0).any(dim=0).sum() > 0  # there was padding to cut


def test_the_teacher_is_in_inference_mode_and_its_identity_is_stable(teacher):
    assert not teacher.model.training
    again = Teacher(TeacherParams(model=TINY["teacher"]["model"]), torch.device("cpu"))
    assert again.identity == teacher.identity
    assert "0x" not in teacher.identity.preprocessing


def test_another_weight_gives_another_identity(tmp_path, teacher):
    copy = shutil.copytree(ROOT / "data/demo/teacher", tmp_path / "copy")
    weights = copy / "open_clip_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1000] ^= 0x01
    weights.write_bytes(bytes(content))
    other = Teacher(TeacherParams(model=f"local-dir:{copy}"), torch.device("cpu"))
    assert other.identity.weights != teacher.identity.weights


@pytest.mark.parametrize(
    ("model", "pretrained", "quick"),
    [
        ("ViT-L-14", "openai", True),
        ("ViT-B-32", "laion2b_s34b_b79k", False),
        ("local-dir:x", None, False),
    ],
)
def test_weights_get_the_activation_they_were_trained_with(model, pretrained, quick):
    assert needs_quick_gelu(model, pretrained) is quick


@pytest.mark.parametrize(
    ("model", "pretrained", "words"),
    [
        ("local-dir:no/such/folder", None, "no/such/folder does not exist"),
        ("ViT-B-32", None, "teacher.pretrained is null"),
        ("ViT-B-33", "openai", "cannot be loaded"),
        ("ViT-B-32", "no-such-tag", "cannot be loaded"),
    ],
)
def test_a_teacher_that_cannot_be_loaded_is_named(model, pretrained, words):
    with pytest.raises(ModelError, match=words):
        Teacher(TeacherParams(model=model, pretrained=pretrained), torch.device("cpu"))
