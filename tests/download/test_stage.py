"""The stage: from params.yaml to the three folders and the counts."""

import json
import zipfile
from pathlib import Path

import pytest

from pipeline.core.checksums import CHECKSUMS
from pipeline.download.records import read_pairs, read_sentences, read_sts, read_transfer
from pipeline.download.sources import BY_NAME
from pipeline.evaluate.selection import dev_pairs
from pipeline.evaluate.sts import sts_tasks
from stages import paths
from tests.conftest import TINY, assert_clear_error, invoke, write_params
from tests.download.conftest import image_bytes
from tests.download.test_karpathy import image
from tests.download.test_senteval import cased_files, mteb_pairs, pack, small_files
from tests.download.test_webdataset import sample, write_shard


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """The current folder, with photos, a table, shards and a mirror."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA_MIRROR", "~/mirror")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(image_bytes(1))
    (tmp_path / "t.csv").write_text("image,caption\na.png,a dog\n")
    write_shard(tmp_path / "cc/0.tar", sample("000000000", "a cat"))
    write_shard(tmp_path / "cc/1.tar", sample("000000001", "a bird"))
    (tmp_path / "mirror").mkdir()
    pack(tmp_path / "mirror/senteval.tar", small_files())
    pack(tmp_path / "mirror/Stsbenchmark.tar.gz", cased_files())
    (tmp_path / "mirror/wiki1m_for_simcse.txt").write_text("One.\nTwo.\n")
    return tmp_path


def download(*arguments: str, **own) -> dict:
    """The counts, by part."""
    block = {"text": "wiki1m", "evaluation": "senteval"} | own
    write_params(Path(), {"download": block})
    result = invoke("download", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(Path("reports/download.json").read_text())


@pytest.mark.parametrize(
    ("pairs", "needed"),
    [
        ("folder", "needs folder.images or folder.captions"),
        ("webdataset", "needs webdataset.shards"),
        ("hub", "needs hub.dataset"),
    ],
)
def test_what_is_null_is_named(project, pairs, needed):
    write_params(project, {"download": {"pairs": pairs}})
    assert_clear_error(invoke("download"), needed)


def test_the_stage_reads_a_folder(project):
    counts = download(pairs="folder", folder={"images": "photos", "captions": "~/t.csv"})
    assert counts["pairs"]["images"] == 1
    assert counts["text"] == {"as_published": 0, "sentences": 2}
    assert read_sentences(Path("data/text")) == ["One.", "Two."]
    tables = {"captions.parquet", "images.parquet", "images.zip", CHECKSUMS}
    assert {path.name for path in Path("data/pairs").iterdir()} == tables


def test_mteb_is_senteval_plus_the_cased_benchmark(project):
    own = {"pairs": "webdataset", "webdataset": {"shards": "cc/0.tar"}}
    plain = download(**own)["evaluation"]
    sts, transfer = read_sts(Path("data/evaluation")), read_transfer(Path("data/evaluation"))
    counts = download(evaluation="mteb", **own)["evaluation"]
    assert counts == plain | {"sts_b_cased": 4}
    assert (plain["sts_b"], plain["mpqa"], plain["as_published"]) == (3, 2, 0)
    mteb = read_sts(Path("data/evaluation"))
    assert mteb[: len(sts)].equals(sts)
    assert set(mteb[len(sts) :]["task"]) == {"STS-B-cased"}
    assert read_transfer(Path("data/evaluation")).equals(transfer)


def test_mteb_sts_comes_from_the_hub_alone(project, connected, monkeypatch):
    monkeypatch.delenv("DATA_MIRROR")
    for file in BY_NAME["mteb-sts"].files:
        name, path = file.address.removeprefix("hf://datasets/").split("@")
        revision, content = path.split("/")
        connected.revisions.add(revision)
        connected.datasets.setdefault(name, {})[content] = mteb_pairs(3.5)
    own = {"pairs": "webdataset", "webdataset": {"shards": "cc/0.tar"}, "text": "scenes"}
    scored = {"convention": "mteb", "tasks": ["sts"]}
    write_params(project, {"download": own | {"evaluation": "mteb-sts"}, "evaluate": scored})
    assert invoke("download").exit_code == 0
    counts = json.loads(Path("reports/download.json").read_text())["evaluation"]
    assert counts.pop("as_published") == 0
    assert counts == dict.fromkeys(counts, 1) | {"sts_b_cased": 3}
    table = read_sts(Path("data/evaluation"))
    tasks = [(task.name, task.split) for task in sts_tasks(table, "mteb")]
    assert tasks[-3:] == [("STS-B", "test"), ("SICK-R", "all"), ("STS-B", "dev")]
    assert len(tasks) == 8
    assert dev_pairs(table)["task"].tolist() == ["STS-B-cased"]
    assert not Path("data/evaluation/transfer.parquet").exists()
    for other in ({"convention": "senteval"}, {"tasks": ["sts", "transfer"]}):
        block = {"download": own | {"evaluation": "mteb-sts"}, "evaluate": scored | other}
        write_params(project, block)
        assert_clear_error(invoke("download"), "needs evaluate.convention mteb")


@pytest.mark.parametrize(("pairs", "trained"), [("coco", 2), ("coco-train2014", 1)])
def test_coco_with_and_without_restval_from_plain_json(project, pairs, trained, caplog):
    """The mirror has no caption_datasets.zip, but what serves as well."""
    splits = [("train", "a"), ("restval", "b"), ("val", "c"), ("test", "d")]
    listed = [image(row, split, f"{name}.jpg") for row, (split, name) in enumerate(splits)]
    (project / "mirror/dataset_coco.json").write_text(json.dumps({"images": listed}))
    for year, names in (("train2014", "a"), ("val2014", "bcd")):
        with zipfile.ZipFile(project / f"mirror/{year}.zip", "w") as archive:
            for name in names:
                archive.writestr(f"{year}/{name}.jpg", image_bytes(1))
    counts = download(pairs=pairs)["pairs"]
    assert counts["train_images"] == trained
    assert (counts["val_images"], counts["test_images"]) == (1, 1)
    assert "holds no caption_datasets.zip" in caplog.text
    found = read_pairs(Path("data/pairs")).images
    assert ("val2014/b.jpg" in set(found["member"])) == (pairs == "coco")


def test_options_may_begin_with_the_home_folder(project):
    """As in `--out=~/scores.json`, which no shell expands."""
    own = {"pairs": "webdataset", "webdataset": {"shards": "cc/{0..1}.tar"}}
    counts = download("--metrics=~/reports/download.json", "--evaluation=$HOME/tasks", **own)
    assert counts["pairs"]["shards"] == 2
    assert (project / "tasks/sts.parquet").is_file()
    assert not (project / "~").exists()


def test_fetched_shards_are_kept_where_the_environment_says(project, server, monkeypatch):
    """A path in the copy of the project that an experiment runs in would go with it."""
    url, folder, _ = server
    (folder / "0.tar").write_bytes((project / "cc/0.tar").read_bytes())
    (project / "copy").mkdir()
    monkeypatch.chdir(project / "copy")
    monkeypatch.setenv("KDMCSE_DOWNLOADS", str(project / "kept"))
    download(pairs="webdataset", webdataset={"shards": f"{url}/0.tar"})
    archives = read_pairs(Path("data/pairs")).images["archive"]
    assert all(Path(path).is_relative_to(project / "kept") for path in archives)
    assert not Path("data/downloads").exists()
    assert paths.KEPT["KDMCSE_DOWNLOADS"] == paths.DOWNLOADS  # what stages.grid sets


@pytest.mark.slow
def test_a_run_without_text_goes_through_all_stages(tmp_path, monkeypatch):
    """With a teacher of text, whose rows of sentences are then none."""
    monkeypatch.chdir(tmp_path)
    changes = {
        "download": {"text": "none"},
        "teacher": {"text": {"encoders": [TINY["student"]["encoder"]], "pooling": "mean"}},
        "loss": {"distillation": {"weight": 1.0, "target": "text"}},
        "train": {"pair_every": "auto"},
    }
    write_params(tmp_path, TINY, changes)
    for stage in ("download", "features", "train", "baselines", "evaluate", "summary", "index"):
        result = invoke(stage)
        assert result.exit_code == 0, (stage, result.output, result.exception)
    assert read_sentences(Path("data/text")) == []
    assert json.loads(Path("reports/train/0/metrics.json").read_text())["paired_share"] == 1
