"""Publishing: what a hub-ready folder holds, says and refuses, and how it is pushed."""

import base64
import contextlib
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, constants
from ruamel.yaml import YAML

from pipeline.core.errors import ModelError
from pipeline.evaluate.report import System, describe_encoder, write_report
from pipeline.evaluate.score import Score
from pipeline.features.store import Features, TeacherIdentity, write_features
from pipeline.publish.provenance import folder_md5, public
from pipeline.publish.push import push
from pipeline.results.compare import summarise
from pipeline.student.encoder import GroundingHeads, SentenceEncoder, Student, save_student
from tests.conftest import (
    ROOT,
    assert_clear_error,
    invoke,
    unseal,
    write_params,
)

BASE = ROOT / "data/demo/student"
SENTENCES = ["a red circle above a blue square", "a blue square below a red circle"]
DEV = {0: 51.5, 1: 50.25}
TEST = {0: 40.0, 1: 60.0}
"""The seed that is better on dev is worse on test."""
POOLING = {0: "mean", 1: "cls"}
TEACHER_DIM, SHARED_DIM = 24, 16


def make_student(seed: int, objective: str = "kdmcse", shared: int | None = SHARED_DIM) -> Student:
    torch.manual_seed(seed)
    encoder = SentenceEncoder.load(BASE, POOLING[seed])
    with torch.no_grad():
        for weights in encoder.parameters():
            weights.add_(0.01 * torch.randn_like(weights))
    heads = GroundingHeads(encoder.dim, TEACHER_DIM, shared)
    return Student(encoder.eval(), heads.eval(), objective, seed, (64, 32))


def make_scores(seed: int) -> list[Score]:
    sts, value = ("sts", "STS12", "test", "spearman"), TEST[seed]
    return [
        Score(*sts, value, 100, "all", low=value - 3, high=value + 2.5),
        Score(*sts, 99.0, 50, "mean"),
        Score(*sts, 98.0, 50, "all", subset="MSRpar"),
        Score(*sts, value - 6, 80, "all", unseen=True, low=value - 9, high=value - 4),
        Score("sts", "STS-B", "dev", "spearman", 77.0, 70, "all"),
        Score("sts", "avg", "test", "spearman", value, 100, "all"),
        Score("sts", "avg", "test", "spearman", value - 6, 80, "all", unseen=True),
        Score("transfer", "MR", "all", "accuracy", 70.0 + seed, 600),
        Score("transfer", "MR", "all", "dev_accuracy", 97.0, 600),
        Score("retrieval", "text_to_image", "test", "recall@1", 30.0 + seed, 90),
        Score("retrieval", "text_to_image", "test", "median_rank", 2.0, 90),
        Score(*sts, 39.25, 100, "all", dimensions=64),
        Score(*sts, 31.0, 80, "all", unseen=True, dimensions=64),
        Score(*sts, 37.75, 100, "all", dimensions=32),
    ]


def write_evaluation(folder: Path, seed: int, student: Student) -> None:
    about = {"evaluator": 2, "data": {"sts": "d"}, "settings": {"seed": 1}, "seed": seed}
    own = System("student", about | describe_encoder(student.encoder), make_scores(seed))
    start = [Score("sts", "avg", "test", "spearman", 12.5, 100, "all")]
    path = folder / f"reports/evaluate/{seed}.json"
    write_report(path, [own, System("untrained", about, start)])


def write_summary(folder: Path) -> None:
    """As `stages.summary` writes it, as far as a card needs it."""
    reports, values = [], {}
    for seed in DEV:
        content = json.loads((folder / f"reports/evaluate/{seed}.json").read_text())
        blocks = {part: content[part] for part in ("sts", "transfer", "retrieval")}
        reports.append({"seed": seed, **blocks})
        for name in ("avg", "avg_unseen", "STS12"):
            values.setdefault(f"sts.{name}", []).append(content["sts"][name])
    scores = [
        {"score": name, "n": 2, "mean": one.mean, "sd": one.sd, "low": None, "high": None}
        for name, found in values.items()
        for one in [summarise(np.array(found))]
    ]
    content = {"seeds": 2, "scores": scores, "reports": reports}
    (folder / "reports/summary.json").write_text(json.dumps(content))


def write_teacher_features(folder: Path, **changes: str) -> None:
    rows, ids = np.ones((2, TEACHER_DIM), np.float16), np.arange(2)
    identity = {
        "model": "local-dir:data/demo/teacher",
        "pretrained": "",
        "source": "s",
        "architecture": "a",
        "weights": "5ee4" * 16,
        "tokenizer": "t",
        "preprocessing": "Compose(\n  Resize | 64\n)",
        "library": "open_clip 3.3.0",
        "dtype": "float32",
    }
    features = Features(rows, ids, rows, ids, ids)
    write_features(folder / "data/features.h5", features, TeacherIdentity(**identity | changes), "")


def write_lock(folder: Path, **train: object) -> None:
    def file(path: str, md5: str) -> dict:
        return {"path": path, "hash": "md5", "md5": md5, "size": 1}

    student = folder_md5(folder / "data/models/0")
    recorded = {
        "student": {"encoder": "data/demo/student", "pooling": "mean"},
        "loss": {"margin": 0.125},
        "train": {"objective": "kdmcse", "batch_size": 48, "pair_every": "auto"},
    }
    stages = {
        "download": {"outs": [file("data/pairs", "aa11.dir")]},
        "train@0": {
            "deps": [file("data/features.h5", "bb22")],
            "params": {"params.yaml": recorded | train},
            "outs": [file("data/models/0", student)],
        },
        "summary": {"params": {"params.yaml": {"train.seeds": [0, 1]}}},
    }
    with (folder / "dvc.lock").open("w") as stream:
        YAML().dump({"schema": "2.0", "stages": stages}, stream)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two seeds; do not change it."""
    folder = tmp_path_factory.mktemp("finished")
    for seed, dev_best in DEV.items():
        student, place = make_student(seed), folder / f"data/models/{seed}"
        place.mkdir(parents=True)
        save_student(place, student, "the short card")
        metrics = folder / f"reports/train/{seed}/metrics.json"
        metrics.parent.mkdir(parents=True)
        metrics.write_text(json.dumps({"steps": 9, "dev_best": dev_best}))
        write_evaluation(folder, seed, student)
    write_summary(folder)
    write_teacher_features(folder)
    write_lock(folder)
    write_params(folder)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run, and the current folder."""
    shutil.copytree(finished, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def published(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """What the command makes of the finished run without any option."""
    folder = tmp_path_factory.mktemp("published") / "run"
    shutil.copytree(finished, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return publish()


def publish(*options: str) -> SimpleNamespace:
    result = invoke("publish", "--json", *options)
    assert result.exit_code == 0, (result.output, result.exception)
    said = json.loads(result.stdout)
    folder = Path(said["folder"]).absolute()
    card = ModelCard.load(folder / "README.md")
    facts = json.loads((folder / "provenance.json").read_text())
    text = " ".join(card.text.split())
    return SimpleNamespace(said=said, folder=folder, card=card, text=text, facts=facts)


def files_of(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def table_row(text: str, first: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("| ").split(" | ")]


def test_the_best_seed_on_dev_is_published_as_it_is(published, finished):
    done = published
    assert done.said == {"folder": "data/publish", "seed": 0, "url": None}
    new, old = files_of(done.folder), files_of(finished / "data/models/0")
    assert set(new) == set(old) | {"CONTAMINATION.md", "mteb_model.py", "provenance.json"}
    assert {name for name in old if new[name] != old[name]} == {"README.md"}
    assert "Seed 0 has the best score on STS dev; test scores played no part" in done.text
    assert "0: 51.50, 1: 50.25" in done.text
    assert done.facts["selection"] == {
        "seed": 0,
        "named": False,
        "dev_best": {"0": 51.5, "1": 50.25},
    }


def test_metadata_for_the_hub(published):
    data = published.card.data
    assert (data.library_name, data.pipeline_tag, data.language, data.license) == (
        "sentence-transformers",
        "sentence-similarity",
        "en",
        "apache-2.0",
    )
    assert (data.get("base_model"), data.get("datasets")) == (None, None)
    (result,) = data.eval_results
    found = (result.dataset_name, result.dataset_split, result.metric_type, result.metric_value)
    assert found == ("STS12", "test", "spearman_cosine", 0.4)
    assert data.model_name == "kdmcse-student"


def test_names_on_the_hub_become_metadata(run):
    real = {"pairs": "flickr30k", "text": "wiki1m", "evaluation": "senteval"}
    write_params(run, {"download": real})
    write_lock(run, student={"encoder": "org/bert-small"})
    done = publish()
    assert done.card.data.base_model == "org/bert-small"
    assert done.card.data.datasets == ["nlphuji/flickr30k", "princeton-nlp/datasets-for-simcse"]
    assert done.card.data.eval_results[0].dataset_type == "princeton-nlp/datasets-for-simcse"
    row = table_row(done.card.text, "images with captions")
    assert row[1:4] == [
        "flickr30k",
        "photos: Flickr's terms, research use; captions: CC BY 3.0",
        "Young et al., TACL 2014; Karpathy and Fei-Fei, CVPR 2015 (splits)",
    ]
    assert "<https://huggingface.co/datasets/nlphuji/flickr30k>" in row[4]
    assert not any(key.startswith("download.scenes") for key in done.facts["parameters"])
    assert "Trained on flickr30k and wiki1m" in done.text
    assert "these tasks took captions from public image data sets" in done.text
    assert done.card.data.license is None
    assert "No licence was stated" in done.text
    assert publish("--licence", "cc-by-nc-4.0").card.data.license == "cc-by-nc-4.0"
    assert_clear_error(invoke("publish", "--licence", "Apache 2"), "--licence Apache 2")


@pytest.mark.parametrize(("seed", "shared"), [(0, None), (0, SHARED_DIM), (1, SHARED_DIM)])
def test_the_card_s_code_gives_the_student_s_embeddings(run, seed, shared, monkeypatch):
    if shared is None:
        save_student(run / "data/models/0", make_student(0, shared=None), "the short card")
        write_lock(run)
    done = publish("--seed", str(seed), "--out", "elsewhere")
    assert (done.said["seed"], done.said["folder"]) == (seed, "elsewhere")
    assert f"Seed {seed} was chosen by the publisher" in done.text
    student = Student.load(run / f"data/models/{seed}", torch.device("cpu"))
    expected = student.encoder.encode(SENTENCES, batch_size=2)
    monkeypatch.chdir(done.folder)
    setting, sentence_transformers, transformers, heads = re.findall(
        r"```python\n(.+?)```", done.card.text, re.DOTALL
    )
    names: dict = {"image_features": 7 * torch.rand(3, TEACHER_DIM)}
    exec(setting + sentence_transformers, names)  # noqa: S102
    np.testing.assert_allclose(names["embeddings"], expected, atol=1e-6)
    exec(transformers, names)  # noqa: S102
    np.testing.assert_allclose(names["embeddings"], expected, atol=1e-6)
    exec(heads, names)  # noqa: S102
    images = student.ground_images(names["image_features"].numpy())
    similarity = student.ground_sentences(expected) @ images.T
    np.testing.assert_allclose(names["similarity"], similarity, atol=1e-5)


def test_the_tables_show_all_seeds_and_this_one(published):
    text = published.card.text
    assert table_row(text, "STS12") == [
        *("STS12", "50.00 ± 14.14", "40.00 [37.00, 42.50]", "100", "34.00 [31.00, 36.00]", "80")
    ]
    assert table_row(text, "avg")[4] == "34.00; all seeds 44.00 ± 14.14"
    assert table_row(text, "STS-B-dev")[2:] == ["77.00", "70", "-", "-"]
    assert table_row(text, "MR") == ["MR", "-", "70.00", "600"]
    assert table_row(text, "text_to_image, recall@1") == [
        *("text_to_image, recall@1", "-", "30.00", "90")
    ]
    assert table_row(text, "untrained") == ["untrained", "12.50"]
    assert [table_row(text, size)[1] for size in ("64", "32")] == ["39.25", "37.75"]
    assert [table_row(text, seed) for seed in "01"] == [
        ["0", "51.50", "40.00"],
        ["1", "50.25", "60.00"],
    ]
    assert not re.search(r"9[789]\.00", text)  # other aggregations, sub-sets and dev accuracies
    assert "can also appear in STS tests. Here that concerns 20 of 100 test pairs." in text


def test_parameters_are_those_of_dvc_lock(published):
    done = published
    assert table_row(done.card.text, "`loss.margin`")[1] == "`0.125`"  # params.yaml has 0.15
    assert done.facts["parameters"]["train.batch_size"] == 48
    assert done.facts["parameters"]["train.seeds"] == [0, 1]  # the summary's, not the student's
    assert done.facts["parameters"]["loss.filter.kind"] == "none"
    assert table_row(done.card.text, "`train.steps`")[1] == "`null`"
    assert table_row(done.card.text, "`loss.terms`")[1] == '`["image", "caption"]`'
    missing = done.facts["parameters_unrecorded"]
    assert {"download", "teacher", "loss.temperature"} <= set(missing)
    assert not {"loss.margin", "train.batch_size", "loss", "download.pairs"} & set(missing)


def test_hashes_and_the_teacher_or_that_they_are_not_recorded(published, run):
    text, stages = published.card.text, published.facts["stages"]
    assert table_row(text, "weights")[1] == f"`{'5ee4' * 16}`"
    assert stages["download"] == {"deps": {}, "outs": {"data/pairs": "aa11.dir"}}
    assert stages["train@0"]["deps"] == {"data/features.h5": "bb22"}
    assert (stages["features"], stages["evaluate@0"]) == (None, None)
    assert "`features`: not recorded." in text
    assert f"`{stages['train@0']['outs']['data/models/0']}`" in text
    assert "The git commit was not recorded." in text
    Path("dvc.lock").unlink()
    Path("data/features.h5").unlink()
    done = publish()
    assert (set(done.facts["stages"].values()), done.facts["teacher"]) == ({None}, None)
    assert "the hash of its weights was not recorded" in done.text


def test_no_path_of_this_machine_is_published(run):
    write_params(run, {"teacher": {"model": f"local-dir:{run}/clip"}})
    write_lock(run, student={"encoder": f"{run}/bert"})
    write_teacher_features(run, model=f"local-dir:{run}/clip")
    done = publish()
    assert done.facts["parameters"]["teacher.model"] == "local-dir:clip"
    assert done.facts["student"]["encoder"] == "bert"
    for name in ("README.md", "provenance.json"):
        assert str(run) not in (done.folder / name).read_text()


def test_the_hash_of_a_folder_is_that_of_dvc():
    lock = YAML(typ="safe", pure=True).load((ROOT / "dvc.lock").read_text())
    deps = [dep for stage in lock["stages"].values() for dep in stage["deps"]]
    recorded = {dep["md5"] for dep in deps if dep["path"] == "data/demo/teacher"}
    assert recorded == {folder_md5(ROOT / "data/demo/teacher")}


def test_text_that_training_did_not_read_is_not_named(run):
    write_params(run, {"download": {"pairs": "flickr30k", "text": "wiki1m"}})
    write_lock(run, train={"pair_every": 1})
    assert "Trained on flickr30k:" in publish().text


def test_the_card_of_a_text_only_student_mentions_no_images(run):
    student = make_student(0, "simcse")
    save_student(run / "data/models/0", student, "")
    write_lock(run)
    assert "None: training used no pictures." not in publish().text  # it had the teacher's rows
    write_lock(run, loss={"positives": "dropout", "distillation": {"weight": 0.0}})
    done = publish()
    assert "None: training used no pictures." in done.text
    assert "Two dropout masks give the two views of a sentence." in done.text
    assert "image_features" not in done.text
    assert table_row(done.card.text, "images with captions (captions used as text)")


def git(*arguments: str) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_revision_is_that_of_git_and_dvc(run):
    Path(".gitignore").write_text("/data/\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "all")
    commit = git("rev-parse", "HEAD")
    done = publish()
    assert f"Published at commit `{commit}`, without uncommitted changes." in done.text
    assert f"git checkout {commit}\ndvc repro\npython -m stages.publish --seed 0" in done.card.text

    Path("notes.txt").write_text("new")
    write_lock(run, loss={"margin": 0.25})
    revision = publish().facts["revision"]
    assert (revision["experiment"], revision["changed"]) == (None, ["dvc.lock", "notes.txt"])

    git("add", "dvc.lock")
    experiment = git("commit-tree", git("write-tree"), "-p", commit, "-m", "x")
    git("update-ref", f"refs/exps/{commit[:2]}/{commit[2:]}/wide-margin", experiment)
    done = publish()
    assert done.facts["revision"] == {
        "commit": commit,
        "experiment": "wide-margin",
        "experiment_commit": experiment,
        "changed": ["notes.txt"],
    }
    assert f"git checkout {commit}\ndvc exp apply wide-margin\ndvc repro" in done.card.text


def test_only_a_publication_of_the_same_student_is_replaced(run):
    Path("mine").mkdir()
    publish("--out", "mine")  # an empty folder holds nothing to lose
    Path("mine/stale.txt").write_text("of an earlier version")
    assert not (publish("--out", "mine").folder / "stale.txt").exists()
    Path("broken").mkdir()
    Path("broken/provenance.json").write_text("{}")
    before = files_of(run)
    for taken in ("data/models/1", "params.yaml", "data", "broken"):
        assert_clear_error(invoke("publish", "--out", taken), taken, "provenance.json")
    other = invoke("publish", "--seed", "1", "--out", "mine")
    start = "kdmcse from data/demo/student with seed"
    assert_clear_error(other, f"mine holds another student, {start} 0; this one is {start} 1")
    write_params(run, {"student": {"encoder": "org/bert"}})
    write_lock(run, student={})
    assert_clear_error(invoke("publish", "--out", "mine"), "org/bert with seed 0", "another folder")
    for name in ("params.yaml", "dvc.lock"):
        (run / name).write_bytes(before[name])
    assert files_of(run) == before


def edit(path: str, change: dict) -> None:
    Path(path).write_text(json.dumps(json.loads(Path(path).read_text()) | change))


def test_parts_of_different_runs_are_refused(run):
    shutil.copytree("data/models/0", "kept")
    for seed in "01":
        unseal(Path("data/models", seed))
    shutil.copy("data/models/1/model.safetensors", "data/models/0/model.safetensors")
    assert_clear_error(invoke("publish"), "reports/evaluate/0.json", "another student")
    shutil.rmtree("data/models/0")
    shutil.copytree("kept", "data/models/0")
    unseal(Path("data/models/0"))
    edit("data/models/0/config.json", {"note": "touched"})  # no weight, so only dvc.lock knows
    assert_clear_error(invoke("publish"), "dvc.lock", "train@0")
    edit("data/models/1/heads.json", {"seed": 0})
    assert_clear_error(invoke("publish", "--seed", "1"), "data/models/1", "seed 0")
    shutil.rmtree("data/models/0")
    shutil.copytree("kept", "data/models/0")
    write_teacher_features(run, model="ViT-L-14")
    assert_clear_error(invoke("publish"), "features.h5", "ViT-L-14")
    write_teacher_features(run)
    summary = json.loads(Path("reports/summary.json").read_text())
    summary["reports"][0]["sts"]["avg"] = 41.0
    edit("reports/summary.json", summary)
    assert_clear_error(invoke("publish"), "evaluate/0.json", "sts differs")
    assert not Path("data/publish").exists()


def test_a_missing_or_unreadable_file_is_named(run):
    made_by = {
        "reports/summary.json": "summary",
        "reports/train/1/metrics.json": "train",
        "reports/evaluate/0.json": "evaluate",
        "data/models/0": "train",
    }
    for path, stage in made_by.items():
        Path(path).rename("away")
        assert_clear_error(invoke("publish"), path, f"dvc repro {stage}")
        Path("away").rename(path)
    for path in ("data/features.h5", "reports/summary.json", "dvc.lock"):
        content = Path(path).read_bytes()
        Path(path).write_text("{]")
        assert_clear_error(invoke("publish"), path)
        Path(path).write_bytes(content)
    assert_clear_error(invoke("publish", "--seed", "7"), "--seed 7", "0, 1")


OWN = {
    "text": "wiki1m",
    "evaluation": "senteval",
    "folder": {"images": "/home/me/photos", "captions": "captions.csv"},
    "webdataset": {"shards": "/data/{0..9}.tar"},
    "hub": {"dataset": "org/photos"},
}


@pytest.mark.parametrize(
    ("pairs", "name", "licence", "kept"),
    [
        ("flickr30k", "flickr30k", "photos: Flickr's terms", set()),
        ("folder", "own pairs (folder)", "as its owner states", {"folder", "splits"}),
        ("hub", "org/photos", "as its page on the Hub states", {"hub", "splits"}),
    ],
)
def test_corpora_and_only_the_blocks_of_params_that_made_them(run, pairs, name, licence, kept):
    write_params(run, {"download": OWN | {"pairs": pairs}})
    done = publish()
    corpus = done.facts["corpora"][0]
    assert (corpus["part"], corpus["name"]) == ("pairs", name)
    assert corpus["licence"].startswith(licence)
    assert ("org/photos" in done.card.data.datasets) == (pairs == "hub")
    assert bool(corpus["addresses"]) == (pairs in {"flickr30k", "hub"})
    keys = [key.split(".") for key in done.facts["parameters"]]
    assert {key[1] for key in keys if key[0] == "download" and len(key) == 3} == kept


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"text": "none"}, {"pairs": "flickr30k"}),
        (
            {"text": "file", "text_file": ["/home/me/a.txt"]},
            {"pairs": "flickr30k", "text": "own text (file)"},
        ),
        (
            {"pairs": "hub", "hub": {"dataset": "/home/me/photos"}},
            {"pairs": "own pairs (folder)", "text": "wiki1m"},
        ),
        (
            {"pairs": "hub", "hub": {"dataset": "data/models"}},
            {"pairs": "own pairs (folder)", "text": "wiki1m"},
        ),
    ],
)
def test_corpora_of_one_s_own_are_not_given_another_s_name_or_licence(run, changes, names):
    write_params(run, {"download": OWN | {"pairs": "flickr30k"} | changes})
    done = publish()
    found = {corpus["part"]: corpus for corpus in done.facts["corpora"]}
    assert {part: one["name"] for part, one in found.items()} == names | {"evaluation": "senteval"}
    own = [one for one in found.values() if one["name"].startswith("own ")]
    assert all(one["licence"] == "as its owner states" for one in own)
    assert "/home/me" not in str(done.card)
    assert "org/photos" not in done.card.data.get("datasets", [])


def test_paths_and_addresses_lose_what_is_private():
    kept = {
        "/home/me/photos": "photos",
        "photos/here": "photos/here",
        "/data/cc/{00000..00331}.tar": "{00000..00331}.tar",
        "https://me:secret@host/a/{0..9}.tar?token=x#y": "https://host/a/{0..9}.tar",
        "http://host:80/a.tar": "http://host:80/a.tar",
        "https://host/a@b.tar": "https://host/a@b.tar",
        "local-dir:/home/me/clip": "local-dir:clip",
        "transformers:/home/me/clip": "transformers:clip",
        "transformers:org/clip": "transformers:org/clip",
        None: None,
        0.1: 0.1,
    }
    assert public(list(kept)) == list(kept.values())


class Hub(http.server.BaseHTTPRequestHandler):
    """Speaks what creating a repository and uploading a folder of small files needs."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, self.headers.get("Authorization"), body))
        if self.path == "/api/repos/create":
            self._create(json.loads(body)["name"])
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": f, "uploadMode": "regular", "shouldIgnore": False} for f in files]
            self._answer({"files": modes})
        else:
            self._answer(
                {"success": True, "commitUrl": self._url("org/new/commit/1"), "commitOid": "1"}
            )

    def do_GET(self) -> None:
        private = self.path.endswith("/closed")
        about = {"id": "org/open", "private": private, "siblings": [], "tags": []}
        self._answer(about, self._status(self.path.rpartition("/")[2]))

    def _create(self, name: str) -> None:
        self._answer({"url": self._url(f"org/{name}")}, self._status(name))

    def _status(self, name: str) -> int:
        return {"refused": 403, "unknown": 401, "broken": 500}.get(name, 200)

    def _url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{path}"

    def _answer(self, content: dict, status: int = 200) -> None:
        payload = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: object) -> None:
        """Keep the test output clean."""


@pytest.fixture
def hub() -> Iterator[http.server.ThreadingHTTPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.seen = []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def online(home: Path, port: int) -> dict[str, str]:
    """An environment in which the hub is the loopback server."""
    return os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_test",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }


@pytest.mark.slow
def test_a_push_uploads_the_whole_folder(run, tmp_path, hub):
    command = [sys.executable, "-m", "stages.publish", "--push", "org/new"]
    done = subprocess.run(
        command, env=online(tmp_path, hub.server_port), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"http://127.0.0.1:{hub.server_port}/org/new\n"
    paths, tokens, bodies = zip(*hub.seen, strict=True)
    assert paths[0] == "/api/repos/create"
    assert json.loads(bodies[0]).get("visibility") is None
    assert set(tokens) == {"Bearer hf_test"}
    assert paths[-1] == "/api/models/org/new/commit/main"
    lines = [json.loads(line) for line in bodies[-1].splitlines()]
    arrived = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"])
        for line in lines
        if line["key"] == "file"
    }
    assert arrived == files_of(run / "data/publish")
    assert 'snapshot_download("org/new")' in arrived["README.md"].decode()
    assert ModelCard.load(run / "data/publish/README.md").data.model_name == "new"


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch, hub: http.server.ThreadingHTTPServer) -> None:
    """This process, whose environment is offline, may speak to the loopback server."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_test")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("refused", "403"),
        ("unknown", "401"),
        ("broken", "500"),
        ("open", "exists and is public"),
    ],
)
def test_a_refused_push_says_why_and_what_to_do(tmp_path, hub, connected, name, words):
    with pytest.raises(ModelError, match=f"was written, but not pushed to org/{name}: ") as error:
        push(tmp_path, f"org/{name}", private=True)
    assert words in str(error.value)
    assert "hf_test" not in str(error.value)
    assert not any("commit" in path for path, _, _ in hub.seen)


def test_a_private_push_makes_a_private_repository(tmp_path, hub, connected):
    (tmp_path / "README.md").write_text("---\nlanguage: en\n---\n")
    assert push(tmp_path, "org/closed", private=True).endswith("/org/closed")
    created, committed = json.loads(hub.seen[0][2]), hub.seen[-1][0]
    assert (created["visibility"], committed) == ("private", "/api/models/org/closed/commit/main")


def test_an_unreachable_hub_is_named(tmp_path, connected, monkeypatch):
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        with pytest.raises(ModelError, match=f"{address} did not accept it") as error:
            push(tmp_path, "org/name", private=False)
    assert "the network and HF_ENDPOINT" in error.value.fix


def test_impossible_pushes_are_refused_before_any_request(run, tmp_path, monkeypatch):
    result = invoke("publish", "--push", "org/name")  # the tests' own environment is offline
    assert_clear_error(result, "not pushed to org/name", "HF_HUB_OFFLINE")
    assert (run / "data/publish/README.md").is_file()
    for name in ("name", "org/na me", "a/b/c", f"org/{'n' * 96}"):
        assert_clear_error(invoke("publish", "--push", name), f"--push {name}", "ORG/NAME")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    assert_clear_error(invoke("publish", "--push", "org/name"), "no access token", "hf auth login")
