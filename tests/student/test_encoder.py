"""The student's contract: one directory, three libraries, the same embeddings."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from pipeline.core.errors import InputError, MissingArtifactError, ModelError
from pipeline.student.directory import hash_student
from pipeline.student.encoder import GroundingHeads, SentenceEncoder, Student, save_student
from pipeline.student.settings import read_settings
from tests.conftest import ROOT, unseal

START = ROOT / "data/demo/student"
SENTENCES = [
    "A small red circle.",
    "",
    "two blue squares above a large green star " * 3,
    "dogs run",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A saved student of each pooling; do not change them."""
    folders = {}
    for pooling in ("cls", "mean"):
        torch.manual_seed(0)
        encoder = SentenceEncoder.load(START, pooling)
        folders[pooling] = tmp_path_factory.mktemp(pooling)
        save_student(
            folders[pooling], Student(encoder, GroundingHeads(encoder.dim, 6, 8), "kdmcse"), ""
        )
    return folders


@pytest.fixture
def saved(made, tmp_path):
    """A copy of the student with mean pooling."""
    return Path(shutil.copytree(made["mean"], tmp_path / "saved"))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_all_three_libraries_give_the_same_embeddings(made, pooling):
    saved = made[pooling]
    ours = SentenceEncoder.load(saved)
    expected = ours.encode(SENTENCES, batch_size=2)
    theirs = SentenceTransformer(str(saved), device="cpu")
    np.testing.assert_allclose(theirs.encode(SENTENCES), expected, atol=2e-6)
    tokens = AutoTokenizer.from_pretrained(saved)(
        SENTENCES, padding=True, truncation=True, max_length=ours.max_length, return_tensors="pt"
    )
    with torch.inference_mode():
        hidden = AutoModel.from_pretrained(saved).eval()(**tokens).last_hidden_state.numpy()
    mask = tokens["attention_mask"].numpy().astype(bool)
    plain = [
        h[0] if ours.pooling == "cls" else h[m].mean(0) for h, m in zip(hidden, mask, strict=True)
    ]
    np.testing.assert_allclose(plain, expected, atol=2e-6)


def test_a_saved_student_is_read_back(saved):
    student = Student.load(saved, torch.device("cpu"))
    assert student.objective == "kdmcse"
    features = np.random.default_rng(0).standard_normal((3, 6))
    grounded = student.ground_images(features)
    np.testing.assert_allclose(np.linalg.norm(grounded, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(student.ground_images(features * 20), grounded, atol=1e-6)
    weight, bias = (p.detach().numpy() for p in student.heads.image[0].parameters())
    unit = features / np.sqrt((features**2).mean(axis=1, keepdims=True))
    projected = np.tanh(unit @ weight.T + bias)
    by_hand = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    np.testing.assert_allclose(grounded, by_hand, atol=1e-6)


def test_embeddings_do_not_depend_on_batch_size_or_order(saved):
    encoder = SentenceEncoder.load(saved)
    encoder.train()
    one = encoder.encode(SENTENCES, batch_size=1)
    assert encoder.training
    assert encoder.backbone.training
    np.testing.assert_allclose(encoder.encode(SENTENCES, batch_size=4), one, atol=2e-6)
    np.testing.assert_allclose(encoder.encode(SENTENCES[::-1], batch_size=3)[::-1], one, atol=2e-6)
    tokenized = encoder.tokenize_all(SENTENCES)
    np.testing.assert_allclose(encoder.encode_tokenized(tokenized, batch_size=2), one, atol=2e-6)
    encoder.tokenizer.padding_side = "left"  # we pad on the right, whatever it does
    np.testing.assert_allclose(encoder.encode(SENTENCES, batch_size=4), one, atol=2e-6)


def test_pooling_is_never_guessed():
    assert read_settings(START).pooling is None
    with pytest.raises(ModelError, match="does not say how it pools") as error:
        SentenceEncoder.load(START)
    assert "--pooling" in error.value.fix


def test_the_hash_follows_what_changes_an_embedding(saved):
    before = hash_student(saved)
    (saved / "README.md").write_text("another card")
    assert hash_student(saved) == before
    pooling = json.loads((saved / "1_Pooling/config.json").read_text())
    pooling["pooling_mode_cls_token"] = not pooling["pooling_mode_cls_token"]
    (saved / "1_Pooling/config.json").write_text(json.dumps(pooling))
    assert hash_student(saved) != before


def test_damage_is_named(saved):
    (saved / "heads.safetensors").write_bytes(b"rot")
    with pytest.raises(InputError, match=r"heads\.safetensors is damaged: its sha256"):
        Student.load(saved, torch.device("cpu"))
    unseal(saved)
    with pytest.raises(InputError, match="no usable grounding heads"):
        Student.load(saved, torch.device("cpu"))
    (saved / "model.safetensors").write_bytes(b"rot")
    with pytest.raises(ModelError, match="cannot be loaded"):
        Student.load(saved, torch.device("cpu"))


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(MissingArtifactError, match="nowhere does not exist"):
        SentenceEncoder.load(tmp_path / "nowhere", "mean")
    with pytest.raises(ModelError, match="no/such"):
        SentenceEncoder.load("no/such/folder", "mean")


def test_a_text_only_student_does_not_ground(saved):
    student = Student.load(saved, torch.device("cpu"))
    blind = Student(student.encoder, student.heads, "simcse")
    with pytest.raises(ModelError, match="trained without images"):
        blind.ground_images(np.zeros((1, 6)))
    with pytest.raises(ModelError, match="5 wide"):
        student.ground_images(np.zeros((1, 5)))


def test_an_encoder_that_gives_nan_is_refused(saved):
    encoder = SentenceEncoder.load(saved)
    with torch.no_grad():
        next(encoder.backbone.parameters()).fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        encoder.encode(["a"], batch_size=1)


def test_sentences_that_are_cut_are_counted(saved):
    encoder = SentenceEncoder.load(saved)
    long = "circle " * (encoder.max_length + 1)
    encoder.encode(["a circle", long, long + "again"], batch_size=2)
    assert encoder.truncated == 2
    ids = encoder.tokenize_all([long]).ids[0]
    assert len(ids) == encoder.max_length
    assert ids[-1] == encoder.tokenizer.sep_token_id


def test_tokenising_in_chunks_changes_nothing(saved, monkeypatch):
    encoder = SentenceEncoder.load(saved)
    sentences = [*SENTENCES, "circle " * (encoder.max_length + 1)]
    whole = encoder.tokenize_all(sentences)
    monkeypatch.setattr("pipeline.student.encoder._TOKENIZED_AT_ONCE", 2)
    chunked = encoder.tokenize_all(sentences)
    assert [list(ids) for ids in chunked.ids] == [list(ids) for ids in whole.ids]
    assert chunked.truncated == whole.truncated == 1


def test_the_seed_travels_with_the_student(saved, tmp_path_factory):
    student = Student.load(saved, torch.device("cpu"))
    assert student.seed is None
    folder = tmp_path_factory.mktemp("seeded")
    save_student(folder, Student(student.encoder, student.heads, "kdmcse", 7), "# card\n")
    assert Student.load(folder, torch.device("cpu")).seed == 7
    about = json.loads((folder / "heads.json").read_text())
    del about["seed"]
    unseal(folder)
    (folder / "heads.json").write_text(json.dumps(about))
    assert Student.load(folder, torch.device("cpu")).seed is None
