"""The public names: the examples of docs/library.md run, and what they promise holds."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss

import pipeline
from pipeline.evaluate.report import read_report
from pipeline.features.teacher import Teacher
from tests.conftest import ROOT, invoke

TEACHER = f"local-dir:{ROOT / 'data/demo/teacher'}"
CAPTIONS = ["a red circle", "a blue square", "two green stars", "a red circle"]
EXAMPLES = re.findall(
    r"```python\n(.+?)```", (ROOT / "docs/library.md").read_text(), flags=re.DOTALL
)


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore")
def test_the_examples_run(tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    for name, folder in {"demo": ROOT, "models": tiny_run, "index": tiny_run}.items():
        Path("data", name).symlink_to(folder / "data" / name)
    names: dict = {}
    for example in EXAMPLES:
        exec(example, names)  # noqa: S102
    assert names["features"].shape == (4, 128)
    assert names["pictures"].iloc[0]["rank"] == 1
    assert list(names["hits"]["rank"]) == [1, 2]
    assert names["scores"]["task"].tolist()[-1] == "avg"


def test_every_public_name_is_shown_and_loads():
    examples = "\n".join(EXAMPLES)
    text = (ROOT / "docs/library.md").read_text()
    for name in pipeline.__all__:
        assert getattr(pipeline, name).__name__ == name
        assert f"`{name}`" in text
        assert not name[0].isupper() or name in examples or name.endswith("Error")
    assert set(pipeline.__all__) <= set(dir(pipeline))
    with pytest.raises(AttributeError, match="nothing"):
        _ = pipeline.nothing


@pytest.fixture(scope="module")
def model():
    """The demo's student, without dropout, so that two passes give one vector."""
    return SentenceTransformer(str(ROOT / "data/demo/student")).eval()


def tokens(model, *columns: list[str]) -> list[dict]:
    return [model.preprocess(texts) for texts in columns]


def test_the_loss_is_the_pure_function_of_embeddings_and_teacher_rows(model):
    first, second = CAPTIONS[:3], ["red circle", "square", "stars"]
    features = torch.randn(7, 24, generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([4, 0, 6])
    embedded = [torch.tensor(model.encode(texts)) for texts in (first, second)]
    settings = {"margin": 0.95, "temperature": 0.1, "gate": "shift"}

    def expected(alpha: torch.Tensor) -> float:
        return pipeline.adap_acse_loss(*embedded, alpha, **settings).item()

    by_row = pipeline.AdapACSELoss(model, features.half().numpy(), **settings)
    alpha = pipeline.cosines(features[rows].half(), features[rows].half())
    loss = by_row(tokens(model, first, second), rows)
    assert loss.item() == pytest.approx(expected(alpha), abs=1e-5)
    assert expected(alpha) != pytest.approx(expected(torch.zeros(3, 3)), abs=1e-3)
    other_gate = pipeline.adap_acse_loss(*embedded, alpha, **settings | {"gate": "margin"})
    assert expected(alpha) != pytest.approx(other_gate.item(), abs=1e-3)
    assert "teacher" not in "".join(by_row.state_dict())

    by_features = pipeline.AdapACSELoss(model, **settings)
    one, other = features[rows], features[[1, 2, 3]]
    for labels, alpha in (
        ([one], pipeline.cosines(one, one)),
        ([torch.stack([one, other], dim=1)], pipeline.cosines(one, other)),
        ([], torch.zeros(3, 3)),
    ):
        loss = by_features(tokens(model, first, second), *labels)
        assert loss.item() == pytest.approx(expected(alpha), abs=1e-5)


@pytest.mark.parametrize("columns", [1, 2])
def test_within_matryoshka_loss_it_sees_shorter_embeddings_and_the_whole_teacher(model, columns):
    texts = [CAPTIONS[:3], ["red circle", "square", "stars"]][:columns]
    features = torch.randn(3, model.get_embedding_dimension())  # as wide as the embeddings
    alpha = pipeline.cosines(features, features)
    loss = pipeline.AdapACSELoss(model, features, margin=0.4, temperature=0.1)
    model.train()  # with dropout, so that the two views of one column differ
    torch.manual_seed(0)
    found = MatryoshkaLoss(model, loss, [128, 32])(tokens(model, *texts), torch.arange(3))
    torch.manual_seed(0)
    views = tokens(model, *(texts * 2)[:2])
    embedded = [model(view)["sentence_embedding"] for view in views]
    model.eval()
    parts = [
        pipeline.adap_acse_loss(
            *(one[:, :dim] for one in embedded), alpha, margin=0.4, temperature=0.1
        )
        for dim in (128, 32)
    ]
    assert found.item() == pytest.approx(sum(parts).item(), abs=1e-5)
    found.backward()
    shortened = MatryoshkaLoss(model, pipeline.AdapACSELoss(model), [128, 32])
    with pytest.raises(ValueError, match="MatryoshkaLoss shortened the labels"):
        shortened(tokens(model, *texts), features)


def test_labels_that_are_no_teacher_s_are_refused(model):
    loss = pipeline.AdapACSELoss(model)
    with pytest.raises(ValueError, match="one or two text columns, not 3"):
        loss(tokens(model, CAPTIONS, CAPTIONS, CAPTIONS))
    for labels in (torch.rand(4), torch.arange(4), torch.ones(4, 3, dtype=torch.int64)):
        with pytest.raises(ValueError, match="labels are the teacher's features"):
            loss(tokens(model, CAPTIONS), labels)
    with pytest.raises(ValueError, match="needs labels"):
        pipeline.AdapACSELoss(model, torch.rand(4, 3))(tokens(model, CAPTIONS))


def test_a_cached_teacher_never_encodes_a_row_twice(tmp_path, monkeypatch):
    encoded: list[int] = []
    for name in ("encode_images", "encode_tokens"):
        original = getattr(Teacher, name)

        def counting(self, rows, *more, original=original):
            encoded.append(len(more[0] if more else rows))
            return original(self, rows, *more)

        monkeypatch.setattr(Teacher, name, counting)
    paths = []
    for colour in ("red", "blue"):
        paths.append(tmp_path / f"{colour}.png")
        Image.new("RGB", (80, 60), colour).save(paths[-1])

    teacher = pipeline.CachedTeacher(TEACHER, None, tmp_path / "cache")
    encoded.clear()  # the probe's
    assert len(teacher.encode_captions([])) == len(teacher.encode_images([])) == 0
    captions = teacher.encode_captions(CAPTIONS)
    images = teacher.encode_images([*paths, paths[0]])
    assert sum(encoded) == 3 + 2
    assert captions.dtype == images.dtype == np.float32
    np.testing.assert_array_equal(captions[0], captions[3])
    np.testing.assert_array_equal(images[0], images[2])
    assert not np.allclose(images[0], images[1])

    again = pipeline.CachedTeacher(TEACHER, None, str(tmp_path / "cache"))
    encoded.clear()
    np.testing.assert_array_equal(again.encode_captions(CAPTIONS[::-1]), captions[::-1])
    np.testing.assert_array_equal(again.encode_images(map(str, paths)), images[:2])
    assert encoded == []
    assert len(again.encode_captions([*CAPTIONS, "a new one"])) == 5
    assert sum(encoded) == 1


def test_an_unusable_image_is_named_and_a_damaged_cache_is_made_again(tmp_path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.new("RGB", (9, 9), "green").save(good)
    bad.write_text("no picture")
    teacher = pipeline.CachedTeacher(TEACHER, None, tmp_path / "cache")
    for wrong, reason in ((bad, "unreadable"), (tmp_path / "none.png", "missing")):
        with pytest.raises(pipeline.PipelineError, match=f"1 of 2 .*{wrong.name}: {reason}"):
            teacher.encode_images([good, wrong])
    before = teacher.encode_captions(CAPTIONS)
    (shard,) = (tmp_path / "cache").glob("*/captions/*.h5")
    content = bytearray(shard.read_bytes())
    content[content.index(before[0].astype(np.float16).tobytes())] ^= 1
    shard.write_bytes(content)
    again = pipeline.CachedTeacher(TEACHER, None, tmp_path / "cache")
    np.testing.assert_array_equal(again.encode_captions(CAPTIONS), before)


PAIRS = pd.DataFrame(
    {
        "sentence1": ["a", "b", "c", "d"],
        "sentence2": ["e", "f", "g", "h"],
        "score": [4, 1, 3, 0],
    },
    index=[3, 3, 3, 3],
)
ANGLES = dict(zip("abcdefgh", [0, 0, 0, 0, 0.2, 0.9, 0.5, 1.3], strict=True))


def by_angle(texts: list[str]) -> np.ndarray:
    angles = np.array([ANGLES[text] for text in texts])
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_any_encoder_is_scored_on_any_table():
    class Model:
        def encode(self, texts, batch_size):
            assert batch_size == 3
            return torch.tensor(by_angle(texts)).requires_grad_()

    found = pipeline.evaluate_sts(by_angle, PAIRS)
    values = found.set_index(["task", "measure"])["value"]
    assert values["STS", "spearman"] == values["avg", "spearman"] == 100
    gold = np.corrcoef(np.cos([0.2, 0.9, 0.5, 1.3]), PAIRS["score"])[0, 1]
    assert values["STS", "pearson"] == pytest.approx(100 * gold)
    pd.testing.assert_frame_equal(pipeline.evaluate_sts(Model(), PAIRS, batch_size=3), found)

    tasks = pd.concat([PAIRS.assign(task="one"), PAIRS.assign(task="two", score=[0, 1, 2, 3])])
    values = pipeline.evaluate_sts(by_angle, tasks).query("measure == 'spearman'")["value"]
    assert values.tolist() == [100, pytest.approx(-80), pytest.approx(10)]


SAMPLES = pd.DataFrame({"sentence1": [*ANGLES] * 5, "label": [0, 1] * 20})


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (PAIRS.drop(columns="score"), "has no score"),
        (PAIRS.iloc[:0], "has no rows"),
        (PAIRS.assign(sentence2=None), "has a sentence2 that is not text"),
        (PAIRS.assign(sentence1=1), "has a sentence1 that is not text"),
        (PAIRS.assign(score="1"), "has a score that is not a number"),
        (PAIRS.assign(score=[1, 2, 3, np.inf]), "has a score that is not finite"),
        (PAIRS.assign(score=[1, 2, 3, None]), "has a score that is not finite"),
        (SAMPLES.iloc[:0], "has no rows"),
        (SAMPLES.assign(label=0.5), "has a label that is not a whole number"),
        (SAMPLES.assign(sentence2=["a", None] * 20), "has a sentence2 that is not text"),
    ],
)
def test_a_table_that_cannot_be_scored_is_refused(table, words):
    if "label" in table:
        evaluate, sound = pipeline.evaluate_transfer, SAMPLES
    else:
        evaluate, sound = pipeline.evaluate_sts, PAIRS
    assert len(evaluate(by_angle, sound)) > 1
    with pytest.raises(pipeline.PipelineError, match=f"the table {words}"):
        evaluate(by_angle, table)


@pytest.mark.parametrize(
    ("encoder", "table", "words"),
    [
        (by_angle, "nowhere", "nowhere does not exist"),
        (lambda texts: by_angle(texts[:2]), PAIRS, r"gave an array \(2, 2\) for 8 texts"),
        (lambda texts: by_angle(texts) * np.nan, PAIRS, "not finite"),
    ],
)
def test_files_and_embeddings_that_cannot_be_scored_are_refused(encoder, table, words):
    with pytest.raises(pipeline.PipelineError, match=words):
        pipeline.evaluate_sts(encoder, table)


def test_library_and_command_give_the_same_scores(tiny_run):
    student = pipeline.Student.load(tiny_run / "data/models/0")
    report = read_report(tiny_run / "reports/evaluate/0.json")[0].scores
    for part, evaluate in (
        ("sts", pipeline.evaluate_sts),
        ("transfer", pipeline.evaluate_transfer),
    ):
        table = evaluate(student, tiny_run / "data/evaluation")
        expected = {
            (one.task, one.split, one.measure): one.value
            for one in report
            if one.part == part and not (one.unseen or one.subset)
        }
        assert len(table)
        for row in table.itertuples():
            key = (row.task, row.split, row.measure)
            assert row.value == pytest.approx(expected[key], abs=1e-3), key


def test_a_student_finds_what_a_comparison_by_hand_finds(tiny_run):
    student = pipeline.Student.load(tiny_run / "data/models/0")
    texts = ["a red circle", "two blue squares", "a green star below a red circle"]
    found = student.search(texts[:2], texts, k=5)
    vectors = student.encode(texts)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors[:2] @ vectors.T
    assert found["row"].tolist() == np.argsort(-cosines, axis=1).ravel().tolist()
    np.testing.assert_allclose(found["score"], -np.sort(-cosines, axis=1).ravel(), atol=1e-6)
    assert found["rank"].tolist() == [1, 2, 3] * 2
    assert found["text"].tolist()[:1] == found["query"].tolist()[:1] == texts[:1]
    with pytest.raises(pipeline.PipelineError, match="nowhere"):
        pipeline.Student.load("nowhere")


def test_the_index_is_searched_as_by_the_command(in_tiny_run):
    found = pipeline.search_index("data/models/0", "data/index", ["a red circle"], k=3)
    said = json.loads(invoke("search", "a red circle", "-k", "3", "--json").stdout)
    assert found.drop(columns="query").to_dict("records") == said["hits"]
