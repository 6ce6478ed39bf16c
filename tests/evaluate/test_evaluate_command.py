"""The command scores any encoder directory, says how, and refuses what it cannot score."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import AutoModel, AutoTokenizer

from pipeline.core.checksums import hash_weights
from pipeline.download.records import read_sts, write_sts
from pipeline.params.evaluate import PARTS
from pipeline.student.directory import write_student_checksums
from pipeline.student.encoder import SentenceEncoder
from tests.conftest import ROOT, TINY, assert_clear_error, invoke, unseal, write_params

PLAIN = ROOT / "data/demo/student"
RECALLS = {"recall@1", "recall@5", "recall@10", "median_rank"}


@pytest.fixture
def run(tiny_run, tmp_path, monkeypatch) -> Path:
    """The current folder is a copy of the tiny run, which a test may spoil."""
    shutil.copytree(tiny_run, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluate(*arguments: str, out: str = "scores.json") -> dict:
    """The report of a run of the command that must succeed."""
    result = invoke("evaluate", "--out", out, *arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(Path(out).read_text())


def values(report: dict, part: str) -> list[float | None]:
    return [one["value"] for one in report["systems"][0]["scores"] if one["part"] == part]


def save_sentence_transformer(folder: Path, *further: torch.nn.Module) -> str:
    """The demo student with mean pooling, as sentence-transformers itself writes it."""
    transformer = Transformer(str(PLAIN))
    pooling = Pooling(transformer.get_embedding_dimension(), "mean")
    SentenceTransformer(modules=[transformer, pooling, *further], device="cpu").save(str(folder))
    return str(folder)


def save_spoiled(folder: Path, weight: float) -> str:
    """The demo student with the weights of its last normalisation overwritten."""
    model = AutoModel.from_pretrained(PLAIN)
    with torch.no_grad():
        model.encoder.layer[-1].output.LayerNorm.weight.fill_(weight)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(PLAIN).save_pretrained(folder)
    return str(folder)


def assert_nothing_written(folder: Path) -> None:
    assert not (folder / "scores.json").exists()
    assert not (folder / "scores.csv").exists()


def test_the_bare_command_scores_every_part_of_the_trained_student(in_tiny_run):
    report = json.loads(Path("reports/evaluate/0.json").read_text())
    assert report.keys() == {*PARTS, "systems"}
    assert report["sts"].keys() >= {"SCENES", "SCENES-dev", "avg", "pairs"}
    assert report["transfer"].keys() > {"avg", "SCENES-PARAPHRASE"}
    assert report["retrieval"].keys() == {"text_to_image", "image_to_text"}
    assert all(numbers.keys() == RECALLS for numbers in report["retrieval"].values())
    assert [system["name"] for system in report["systems"]] == ["student"]
    table = pd.read_csv("reports/evaluate/0.csv")
    assert list(dict.fromkeys(table["part"])) == list(PARTS)


def test_the_report_says_how_the_student_was_measured(in_tiny_run):
    about = json.loads(Path("reports/evaluate/0.json").read_text())["systems"][0]["about"]
    encoder = SentenceEncoder.load(Path("data/models/0"))
    expected = {
        "model": "data/models/0",
        "pooling": "mean",
        "normalised": False,
        "lower_case": False,
        "prompt": "",
        "max_length": 256,
        "truncated": 0,
        "weights": hash_weights(encoder, without="pooler."),
        "seed": 0,
        "settings": {"convention": "senteval", "seed": 1111, "resamples": 1000},
        "device": "cpu",
    }
    assert {key: about[key] for key in expected} == expected
    assert about["data"].keys() == {*PARTS, "training_text"}
    assert about["libraries"].keys() >= {"python", "torch", "transformers", "scikit-learn"}
    assert about["evaluator"] >= 3
    assert about["repeated"].keys() == {"captions", "images"}


def test_beside_adds_the_systems_of_another_report_and_tables_go_to_stderr(run):
    result = invoke("evaluate", "--out", "scores.json", "--beside", "reports/baselines.json")
    assert result.stdout == ""
    for title in ("STS in detail", "Transfer: accuracy", "Retrieval on the pairs' test split"):
        assert title in result.stderr
    report = json.loads(Path("scores.json").read_text())
    assert [one["name"] for one in report["systems"]] == ["student", "untrained", "teacher"]
    baselines = json.loads(Path("reports/baselines.json").read_text())
    assert report["systems"][1:] == baselines["systems"]
    table = pd.read_csv("scores.csv")
    assert set(table["system"]) == {"student", "untrained", "teacher"}
    assert set(table.loc[table["system"] == "untrained", "part"]) == {"sts", "transfer"}


def test_beside_refuses_a_report_with_other_settings(run):
    write_params(run, TINY, {"evaluate": {"seed": 7}})
    result = invoke("evaluate", "--out", "scores.json", "--beside", "reports/baselines.json")
    assert_clear_error(result, "reports/baselines.json", "untrained", "different seed")
    assert_nothing_written(run)


def test_only_the_asked_tasks_are_scored(run):
    report = evaluate("--tasks", "sts")
    assert report.keys() == {"sts", "systems"}
    assert {one["part"] for one in report["systems"][0]["scores"]} == {"sts"}
    assert report["systems"][0]["about"]["data"].keys() == {"sts", "training_text"}


PLAIN_MEAN = ("--model", str(PLAIN), "--pooling", "mean")


REFUSED = {
    "an unknown task": (
        ("--tasks", "sts,clustering"),
        ("names 'clustering'", "sts, transfer,"),
    ),
    "retrieval without heads": (
        (*PLAIN_MEAN, "--tasks", "sts,retrieval"),
        ("no grounding heads", "leave retrieval out"),
    ),
    "no pooling": (("--model", str(PLAIN)), ("does not say how it pools", "--pooling mean")),
    "another pooling": (("--pooling", "cls"), ("is not the mean pooling",)),
    "no report beside": (("--beside", "nowhere.json"), ("nowhere.json does not exist",)),
    "one name twice": (
        ("--beside", "reports/evaluate/0.json"),
        ("two systems of the tables are called student", "--name"),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_scored_as_asked_is_refused(in_tiny_run, tmp_path, name):
    arguments, words = REFUSED[name]
    result = invoke("evaluate", "--out", str(tmp_path / "scores.json"), *arguments)
    assert_clear_error(result, *words)
    assert_nothing_written(tmp_path)


def test_default_tasks_leave_retrieval_out_for_a_model_without_heads(run):
    report = evaluate(*PLAIN_MEAN)
    assert report.keys() == {"sts", "transfer", "systems"}
    assert report["systems"][0]["about"]["seed"] is None


def change_heads(**values: object) -> dict:
    """Change what a student says of itself; returns what it said."""
    folder = Path("data/models/0")
    about = json.loads((folder / "heads.json").read_text())
    (folder / "heads.json").write_text(json.dumps(about | values))
    write_student_checksums(folder)
    return about


def test_a_student_trained_without_pictures_does_not_retrieve(run):
    change_heads(objective="simcse")
    report = evaluate()
    assert report.keys() == {"sts", "transfer", "systems"}
    assert report["systems"][0]["about"]["seed"] == 0
    result = invoke("evaluate", "--tasks", "retrieval", "--out", "scores.json")
    assert_clear_error(result, "no grounding heads trained on pictures")


@pytest.mark.slow
def test_a_sentence_transformers_directory_scores_as_the_plain_one_with_its_pooling(run):
    saved = save_sentence_transformer(run / "saved")
    theirs, plain = evaluate("--model", saved, "--tasks", "sts,transfer"), evaluate(*PLAIN_MEAN)
    for part in ("sts", "transfer"):
        assert values(theirs, part) == values(plain, part)
    weights = [report["systems"][0]["about"]["weights"] for report in (theirs, plain)]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_normalize_module_is_honoured_and_pooling_overrides_it(run):
    saved = save_sentence_transformer(run / "saved", Normalize())
    honoured = evaluate("--model", saved, "--tasks", "transfer")
    overridden = evaluate("--model", saved, "--pooling", "mean", "--tasks", "transfer")
    plain = evaluate(*PLAIN_MEAN, "--tasks", "transfer")
    assert honoured["systems"][0]["about"]["normalised"] is True
    assert overridden["systems"][0]["about"]["normalised"] is False
    assert values(honoured, "transfer") != values(plain, "transfer")
    assert values(overridden, "transfer") == values(plain, "transfer")


def test_a_normalised_model_gives_the_vectors_of_sentence_transformers(tmp_path):
    saved = save_sentence_transformer(tmp_path / "saved", Normalize())
    sentences = ["a red circle", "two small blue squares above a star"]
    ours = SentenceEncoder.load(saved).encode(sentences, batch_size=2)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)
    theirs = SentenceTransformer(saved, device="cpu").encode(sentences)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


@pytest.mark.slow
def test_sts_does_not_change_with_the_batch_size(run):
    found = []
    for batch_size in (1, 7, 128):
        write_params(run, TINY, {"evaluate": {"batch_size": batch_size}})
        found.append(evaluate("--tasks", "sts"))
    for report in found[1:]:
        assert values(report, "sts") == pytest.approx(values(found[0], "sts"), abs=1e-4)


@pytest.mark.parametrize(
    ("weight", "words"),
    [(float("nan"), "embedding that is not finite"), (0.0, "all pairs have the same cosine")],
)
def test_a_model_that_gives_no_usable_embedding_is_refused(run, weight, words):
    saved = save_spoiled(run / "spoiled", weight)
    result = invoke("evaluate", "--out", "scores.json", "--model", saved, "--pooling", "mean")
    assert_clear_error(result, words)
    assert_nothing_written(run)


def test_a_gold_score_that_is_no_number_is_named_by_file_and_row(run):
    path = Path("data/evaluation/sts.parquet")
    unseal(path.parent)
    table = pq.read_table(path)
    score = table["score"].to_pylist()
    score[17] = float("nan")
    pq.write_table(table.set_column(5, "score", pa.array(score, pa.float64())), path)
    result = invoke("evaluate", "--out", "scores.json")
    assert_clear_error(result, "sts.parquet row 17 has no usable score")
    assert_nothing_written(run)


def test_sentences_beyond_the_models_limit_are_counted(run):
    table = read_sts(Path("data/evaluation"))
    rows = table.index[table["split"] == "test"]
    table.loc[rows[:2], "sentence1"] = "a red circle " * 200  # one sentence, used twice
    table.loc[rows[2], "sentence2"] = "a blue square " * 200
    write_sts(Path("data/evaluation"), table)
    assert evaluate("--tasks", "sts")["systems"][0]["about"]["truncated"] == 2


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("scores.csv", "does not name a JSON file"),
        ("runs/margin-0.2", "does not name a JSON file"),
        ("folder.json", "does not name a JSON file"),
        ("params.yaml/scores.json", "could not be written"),
    ],
)
def test_an_out_that_cannot_be_written_is_refused_before_anything_is_read(
    tmp_path, monkeypatch, out, words
):
    write_params(tmp_path)  # and neither model nor data
    (tmp_path / "folder.json").mkdir()
    monkeypatch.chdir(tmp_path)
    assert_clear_error(invoke("evaluate", "--out", out), out, words)
    assert_nothing_written(tmp_path)


def test_spearman_is_that_of_sentence_transformers_own_evaluator(in_tiny_run):
    table = read_sts(Path("data/evaluation"))
    test = table[table["split"] == "test"]
    theirs = EmbeddingSimilarityEvaluator(
        *(list(test[column]) for column in ("sentence1", "sentence2", "score")),
        main_similarity="cosine",
        write_csv=False,
    )(SentenceTransformer("data/models/0", device="cpu"))
    ours = json.loads(Path("reports/evaluate/0.json").read_text())["sts"]["SCENES"] / 100
    assert ours == pytest.approx(theirs["spearman_cosine"], abs=1e-5)


def test_a_model_that_lacks_weights_is_refused(run, tmp_path):
    shutil.copytree("data/models/0", tmp_path / "holed")
    unseal(tmp_path / "holed")
    weights = load_file(tmp_path / "holed/model.safetensors")
    lost = next(name for name in weights if name.endswith("attention.self.query.weight"))
    kept = {name: value for name, value in weights.items() if name != lost}
    save_file(kept, tmp_path / "holed/model.safetensors", metadata={"format": "pt"})
    result = invoke("evaluate", "--model", str(tmp_path / "holed"), "--out", "x.json")
    assert_clear_error(result, "lacks 1 of its weights", lost)


def test_a_report_is_not_replaced_by_that_of_another_model_of_its_name(run, caplog):
    """Two folders called model; what they hold tells them apart, not their names."""
    shutil.copytree(PLAIN, "a/model")
    save_spoiled(Path("b/model"), 0.5)
    ask = ("--pooling", "mean", "--tasks", "sts")
    report = Path("reports/others/model.json")
    assert invoke("evaluate", "--model", "a/model", *ask).exit_code == 0
    first = report.read_bytes()
    refused = invoke("evaluate", "--model", "b/model", *ask)
    assert_clear_error(refused, f"{report} is the report of a/model, another model", "--out")
    refused = invoke("evaluate", "--model", "a/model", "--pooling", "cls", "--tasks", "sts")
    assert_clear_error(refused, "another model")
    assert report.read_bytes() == first
    shutil.copytree("a/model", "c/model")
    assert invoke("evaluate", "--model", "c/model/.", *ask).exit_code == 0  # the same model
    assert json.loads(report.read_text())["systems"][0]["about"]["model"] == "c/model/."
    caplog.set_level("WARNING", logger="kdmcse")
    evaluate("--model", "b/model", *ask, out=str(report))
    assert "is replaced: it was the report of c/model" in caplog.text
    report.write_text("{}")
    assert_clear_error(
        invoke("evaluate", "--model", "a/model", *ask), "not a report of this version"
    )


def test_a_matryoshka_student_is_scored_by_its_first_dimensions(run):
    change_heads(matryoshka=[32, 16])
    result = invoke("evaluate", "--out", "x.json", "--tasks", "sts")
    assert result.exit_code == 0, result.output
    report = json.loads(Path("x.json").read_text())
    assert set(report["matryoshka"]) == {"32", "16"}
    found = {name: numbers["avg"] for name, numbers in report["matryoshka"].items()}
    assert len({*found.values(), report["sts"]["avg"]}) == 3
    title = "STS of the first dimensions alone"
    table = result.stderr.split(title)[1].split("STS: Spearman")[0]
    for name, value in found.items():
        row = next(line for line in table.splitlines() if line.split()[:1] == [name])
        assert f"{value:.2f}" in row
    assert result.stderr.split(title)[0].count("SCENES-dev") == 1


def test_features_of_another_teacher_are_refused(run):
    assert len(change_heads(teacher="0" * 64)["teacher"]) == 64
    for stage in ("evaluate", "index"):
        assert_clear_error(invoke(stage), "another teacher", "dvc repro train")


def test_evaluation_data_alone_is_enough_to_score(run, caplog):
    """What asks for the training text is left out, and never counted as none dropped."""
    whole = evaluate(*PLAIN_MEAN, "--tasks", "sts")
    assert whole["sts"].keys() >= {"avg_unseen", "pairs_unseen"}
    for name in ("pairs", "text", "features.h5", "models"):
        path = Path("data", name)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    result = invoke("evaluate", "--out", "alone.json", *PLAIN_MEAN, "--tasks", "sts")
    assert result.exit_code == 0, result.output
    assert "no unseen scores: data/pairs/images.parquet does not exist" in caplog.text
    alone = json.loads(Path("alone.json").read_text())
    assert alone["sts"] == {
        key: value for key, value in whole["sts"].items() if not key.endswith("_unseen")
    }
    (system,) = alone["systems"]
    assert system["about"]["data"]["training_text"] is None
    assert not [one for one in system["scores"] if one["unseen"]]
    details = result.stderr.split("STS in detail")[1]
    row = next(line for line in details.splitlines() if line.split()[:1] == ["SCENES"]).split()
    assert row[-5] == row[-3] == "-"  # unseen, dropped
    beside = evaluate(*PLAIN_MEAN, "--tasks", "sts", "--beside", "scores.json", "--name", "alone")
    assert [one["name"] for one in beside["systems"]] == ["alone", "student"]
