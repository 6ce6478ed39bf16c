"""From sources to the evaluation folder, offline: made here, or from small archives in a mirror."""

import pytest

from pipeline.core.checksums import CHECKSUMS
from pipeline.download.corpora import Fetcher, make_evaluation
from pipeline.download.records import read_sts, read_transfer
from tests.download.conftest import download_params
from tests.download.test_scenes import SMALL
from tests.download.test_senteval import cased_files, pack, small_files


@pytest.fixture
def fetcher(tmp_path):
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    pack(mirror / "senteval.tar", small_files())
    pack(mirror / "Stsbenchmark.tar.gz", cased_files())
    return Fetcher(tmp_path / "downloads", str(mirror))


def make(name: str, folder, fetcher) -> dict[str, int]:
    params = download_params(evaluation=name, scenes=SMALL.model_dump())
    counts = make_evaluation(folder, params, fetcher)
    assert {path.name for path in folder.iterdir()} == {
        "sts.parquet",
        "transfer.parquet",
        CHECKSUMS,
    }
    return counts


@pytest.mark.slow
def test_scenes_come_with_sts_pairs_and_transfer_tasks(tmp_path, fetcher):
    counts = make("scenes", tmp_path / "evaluation", fetcher)
    assert counts == {
        "scenes": 300,
        "scenes_one_colour": 60,
        "scenes_first_shape": 120,
        "scenes_paraphrase": 90,
    }
    transfer = read_transfer(tmp_path / "evaluation")
    assert set(transfer[transfer["sentence2"].notna()]["task"]) == {"SCENES-PARAPHRASE"}
    assert not fetcher.folder.exists()


def test_mteb_is_senteval_plus_the_cased_benchmark(tmp_path, fetcher):
    plain = make("senteval", tmp_path / "senteval", fetcher)
    counts = make("mteb", tmp_path / "mteb", fetcher)
    assert counts == plain | {"sts_b_cased": 4}
    assert plain["sts_b"] == 3
    assert plain["as_published"] == counts["as_published"] == 0
    senteval, mteb = read_sts(tmp_path / "senteval"), read_sts(tmp_path / "mteb")
    assert mteb[: len(senteval)].equals(senteval)
    assert set(mteb[len(senteval) :]["task"]) == {"STS-B-cased"}
    assert read_transfer(tmp_path / "senteval").equals(read_transfer(tmp_path / "mteb"))
