"""The stage: from params.yaml to the three folders and the counts."""

import json
from pathlib import Path

import pytest

from pipeline.core.checksums import CHECKSUMS
from pipeline.download.records import read_pairs, read_sentences, read_sts, read_transfer
from stages import paths
from tests.conftest import TINY, assert_clear_error, invoke, write_params
from tests.download.conftest import image_bytes
from tests.download.test_senteval import cased_files, pack, small_files
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


@pytest.mark.integration
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
