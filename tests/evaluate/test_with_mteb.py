"""mteb's own evaluators give our numbers on the same pairs, from tables and from the hub."""

import importlib.util
import io
import json
import shutil
from pathlib import Path

import mteb
import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict
from mteb.abstasks import abstask
from PIL import Image
from sentence_transformers import SentenceTransformer

from pipeline.core.device import choose_device
from pipeline.download.packed_images import PackedImages
from pipeline.download.records import read_pairs, read_sts, write_sts
from pipeline.evaluate import with_mteb
from pipeline.evaluate.sts import StsTask
from pipeline.evaluate.with_mteb import LIMIT, MtebModel, describe_model
from pipeline.features.store import read_features
from pipeline.features.teacher import Teacher
from pipeline.params.teacher import TeacherParams
from pipeline.student.encoder import Student
from tests.conftest import TINY, assert_clear_error, invoke, write_params

pytestmark = pytest.mark.integration

DIRECTIONS = {"pairs-t2i-local", "pairs-i2t-local"}
RECALLS = {"recall@1", "recall@5", "recall@10"}


@pytest.fixture
def run(tiny_run, tmp_path, monkeypatch) -> Path:
    """The current folder is a copy of the tiny run, which a test may spoil."""
    shutil.copytree(tiny_run, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(with_mteb, "is_offline_mode", lambda: False)
    monkeypatch.setattr(with_mteb.HfApi, "dataset_info", no_hub)
    return tmp_path


def compare(*arguments: str) -> list[dict]:
    """What the command says of mteb's numbers."""
    result = invoke("evaluate", "--with", "mteb", "--out", "x.json", *arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    assert "By mteb's evaluators" in result.stderr
    return json.loads(Path("x.json").read_text())["systems"][0]["about"]["mteb"]


def result_files() -> dict[str, Path]:
    found = Path("reports/mteb/results").glob("kdmcse__0/*/*.json")
    return {path.stem: path for path in found if path.stem != "model_meta"}


@pytest.mark.parametrize("convention", ["karpathy", "mieb-flickr30k", "mieb-coco"])
def test_mteb_retrieves_as_we_do(run, convention):
    """Retrieval in MIEB's protocol would come from the hub, which is not there."""
    write_params(run, TINY, {"evaluate": {"retrieval": convention}})
    rows = compare("--tasks", "retrieval")
    assert {row["task"] for row in rows} == DIRECTIONS
    assert {row["data"] for row in rows} == {"our table"}
    measures = {row["measure"] for row in rows}
    assert measures == RECALLS | ({"ndcg@10"} if convention != "karpathy" else set())
    assert all(abs(row["difference"]) <= LIMIT for row in rows), rows


def test_mteb_gives_our_numbers_in_its_result_files_and_whole_ones_are_kept(
    run, monkeypatch, caplog
):
    first = compare("--tasks", "sts")
    [row] = first
    assert (row["task"], row["data"], row["measure"]) == ("SCENES-local", "our table", "spearman")
    assert abs(row["difference"]) <= LIMIT
    report = json.loads(Path("x.json").read_text())
    assert row["ours"] == report["sts"]["SCENES"]
    task = mteb.TaskResult.from_disk(result_files()["SCENES-local"])
    assert 100 * task.get_score() == pytest.approx(row["mteb"], abs=1e-4)
    assert task.dataset_revision == report["systems"][0]["about"]["data"]["sts"]
    path = result_files()["SCENES-local"]
    whole, written = path.read_bytes(), path.stat().st_mtime_ns
    assert "mteb's spearman is" not in caplog.text
    with monkeypatch.context() as patch:
        patch.setattr(with_mteb, "LIMIT", -1)
        assert compare("--tasks", "sts") == first
    assert "SCENES-local (our table): mteb's spearman is" in caplog.text
    assert path.stat().st_mtime_ns == written
    path.write_bytes(whole[:100])  # killed while it was written
    assert compare("--tasks", "sts") == first
    assert len(json.loads(path.read_text())["scores"]["test"]) == 1
    table = read_sts(Path("data/evaluation"))
    rows = table["split"] == "test"
    table.loc[rows, "score"] = np.random.default_rng(0).permutation(table.loc[rows, "score"])
    write_sts(Path("data/evaluation"), table)
    (other,) = compare("--tasks", "sts")
    assert other["mteb"] != first[0]["mteb"]
    assert abs(other["difference"]) <= LIMIT


def no_hub(self, *_: object, **__: object) -> None:
    raise ConnectionError("no network")


@pytest.mark.filterwarnings("ignore")  # mteb's own
def test_sentence_transformers_read_by_mteb_itself_scores_the_same(in_tiny_run):
    """The student's folder through mteb's own wrapper, without any code of ours."""
    ours = json.loads(Path("reports/evaluate/0.json").read_text())["sts"]["SCENES"]
    table = read_sts(Path("data/evaluation"))
    task = StsTask("SCENES", "test", table[table["split"] == "test"])
    local = with_mteb._local_sts(task, "x")
    found = mteb.evaluate(SentenceTransformer("data/models/0", device="cpu"), local, cache=None)
    assert 100 * found.task_results[0].get_score() == pytest.approx(ours, abs=LIMIT)


def rename_task(name: str) -> pd.DataFrame:
    table = read_sts(Path("data/evaluation"))
    write_sts(Path("data/evaluation"), table.assign(task=name))
    return table[table["split"] == "test"]


def test_mteb_s_own_task_is_scored_on_the_pairs_of_the_hub(run, monkeypatch):
    """Ours beside it is of the hub's pairs too, which may differ from our table's."""
    pairs = rename_task("STS-B")[["sentence1", "sentence2", "score"]].iloc[:40]
    asked = []

    def load_dataset(**about: object) -> DatasetDict:
        asked.append(about["path"])
        return DatasetDict({"test": Dataset.from_dict(pairs.to_dict("list"))})

    monkeypatch.setattr(with_mteb.HfApi, "dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(abstask, "load_dataset", load_dataset)
    (row,) = compare("--tasks", "sts")
    assert asked == ["mteb/stsbenchmark-sts"]
    assert (row["task"], row["data"], row["count"]) == (
        "STSBenchmark", "mteb/stsbenchmark-sts@b0fddb5", 40
    )  # fmt: skip
    assert abs(row["difference"]) <= LIMIT
    assert row["ours"] != json.loads(Path("x.json").read_text())["sts"]["STS-B"]
    assert set(result_files()) == {"STSBenchmark"}


def test_without_the_hub_our_tables_are_scored_and_it_is_asked_once(run, caplog):
    table = read_sts(Path("data/evaluation"))
    both = [table.assign(task=name) for name in ("STS12", "STS13")]
    write_sts(Path("data/evaluation"), pd.concat(both))
    rows = compare("--tasks", "sts")
    assert [row["task"] for row in rows] == ["STS12-local", "STS13-local"]
    assert caplog.text.count("no data from the hub (no network)") == 1


def test_a_machine_without_mteb_is_told_what_to_install(run, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "mteb" else find(n))
    result = invoke("evaluate", "--with", "mteb", "--out", "x.json")
    assert_clear_error(result, "--with mteb needs mteb", "pip install -e '.[mteb]'")


def test_pictures_of_the_hub_go_through_the_teacher(tiny_run):
    """A picture lands where the cached features of its file do."""
    device, folder = choose_device(), tiny_run / "data"
    student = Student.load(folder / "models/0", device)
    params = TeacherParams(model=TINY["teacher"]["model"], pretrained=None)
    about = {"max_length": 9}
    model = MtebModel(
        describe_model("0", about, student),
        student.encoder,
        student,
        lambda: Teacher(params, device),
    )
    pairs = read_pairs(folder / "pairs")
    features = read_features(folder / "features.h5", params, pairs.fingerprint())
    packed = PackedImages(pairs.folder, pairs.images["archive"], pairs.images["member"])
    pictures = [Image.open(io.BytesIO(packed.read(row))) for row in range(3)]
    metadata = mteb.get_task("Flickr30kT2IRetrieval").metadata
    found, cached = (
        model.encode([{"image": some}], task_metadata=metadata)
        for some in (pictures, features.images[:3].tolist())
    )
    np.testing.assert_allclose(found, cached, atol=2e-3)
    texts = model.encode([{"text": ["a red circle"]}], task_metadata=metadata)
    assert texts.shape[1] == found.shape[1]


def test_the_revision_follows_all_that_changes_a_vector():
    about = {"weights": "w", "pooling": "cls", "max_length": 9, "truncated": 0}
    same = describe_model("0", {**about, "truncated": 5}, None)
    assert describe_model("0", about, None).revision == same.revision
    for change in ({"weights": "v"}, {"pooling": "mean"}, {"prompt": "query: "}):
        assert describe_model("0", about | change, None).revision != same.revision
