"""`--dry-run`: what download will read, counted as it will be, and nothing written."""

import json
from pathlib import Path

import pytest

from pipeline.download.preview import SHOWN, preview
from tests.conftest import assert_clear_error, invoke, write_params
from tests.download import test_kinds
from tests.download.conftest import Made, download_params, image_bytes, make_own
from tests.download.test_hub import convert
from tests.download.test_webdataset import sample, write_shard


def make_both(place: Path, pairs: str, **changes) -> Made:
    """The pairs, after their preview was found to be like them."""
    shown: list[list[dict[str, str]]] = []
    params = download_params(pairs=pairs, **changes)
    before = sorted(place.rglob("*"))
    part = preview(params, place / "downloads", shown.append)["pairs"]
    assert sorted(set(place.rglob("*")) - {place / "hub"}) == before or pairs == "hub"
    made, counts = make_own(place, pairs, **changes)
    assert part.counts == counts
    rows = made.captions.merge(made.images, on="image_id").rename(columns={"member": "image"})
    assert part.rows == rows[["image", "split", "caption"]][:SHOWN].to_dict("records")
    assert shown == [part.rows]
    assert "images are in test" in part.warnings[-1]
    return made, counts


@pytest.mark.parametrize("count", [3, SHOWN, 2 * SHOWN])
@test_kinds.of_every_source
def test_a_preview_counts_what_is_read(tmp_path, connected, monkeypatch, source, count):
    monkeypatch.setattr(test_kinds, "make_own", make_both)
    read, ending = test_kinds.SOURCES[source]
    cells = ["a dog", "None", "['two', 'three']", *[f"caption {number}" for number in range(count)]]
    read(tmp_path, ending, cells, connected, splits={"val": 0.3, "test": 0.3})


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with two photos, a table that names three, and sentences."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number in range(2):
        (tmp_path / f"photos/{number}.png").write_bytes(image_bytes(number))
    lines = [f"{number}.png,a [red] dog {number}" for number in range(3)]
    (tmp_path / "t.csv").write_text("\n".join(["image,caption", *lines]))
    (tmp_path / "s.txt").write_text("One.\nTwo.\n")
    own = {"images": "photos", "captions": "t.csv"}
    block = {"pairs": "folder", "folder": own, "text": "file", "text_file": "s.txt"}
    write_params(tmp_path, {"download": block})
    return tmp_path


def test_the_command_shows_rows_counts_and_warnings(project):
    before = sorted(project.rglob("*"))
    result = invoke("download", "--dry-run")
    assert result.exit_code == 0, result.output
    for words in (
        "0.png  train  a [red] dog 0",
        "pairs: folder: images 3, captions 3, train_images 3",
        "images_missing 1",
        "warning: t.csv line 4 names 2.png, which is not a file of the folder",
        "text: file: sentences 2",
    ):
        assert words in result.stdout, result.stdout
    assert sorted(project.rglob("*")) == before
    found = json.loads(invoke("download", "--dry-run", "--json").stdout)
    assert found["pairs"]["rows"][1] == {
        "image": "1.png",
        "split": "train",
        "caption": "a [red] dog 1",
    }
    assert found["pairs"]["counts"]["images_missing"] == 1
    assert len(found["pairs"]["warnings"]) == 2
    assert found["text"] == {
        "source": "file",
        "is_read": True,
        "rows": [{"sentence": "One."}, {"sentence": "Two."}],
        "counts": {"sentences": 2, "sentences_empty": 0},
        "warnings": [],
    }


def test_faults_are_those_of_the_real_run(project):
    (project / "t.csv").write_text("image,text\n0.png,x\n")
    assert_clear_error(invoke("download", "--dry-run"), "has no column 'caption'")


def test_what_is_not_one_s_own_is_not_read(project):
    write_params(project, {"download": {"pairs": "coco", "text": "wiki1m"}})
    result = invoke("download", "--dry-run")
    assert "pairs: coco (not yours, nothing was read): images 123,287" in result.stdout
    assert "text: wiki1m (not yours, nothing was read): sentences 1,000,000" in result.stdout


def test_of_remote_files_the_first_is_fetched(connected, server, tmp_path):
    connected.datasets["org/photos"] = convert({f"{number}.parquet": number for number in range(3)})
    params = download_params(pairs="hub", hub={"dataset": "org/photos"})
    part = preview(params, tmp_path, lambda _: None)["pairs"]
    assert part.counts["files"] == part.counts["images"] == 1
    assert part.warnings[0] == "only the first of 3 files is fetched, and counted"
    url, folder, handler = server
    for number in range(2):
        write_shard(folder / f"{number}.tar", sample(f"{number}", "x"))
        write_shard(tmp_path / f"cc/{number}.tar", sample(f"{number + 2}", "y"))
    names = [f"{url}/{{0..1}}.tar", f"{tmp_path}/cc/*.tar"]
    params = download_params(pairs="webdataset", webdataset={"shards": names})
    part = preview(params, tmp_path / "downloads", lambda _: None)["pairs"]
    assert (part.counts["shards"], part.counts["captions"]) == (3, 3)
    assert {path for path, _ in handler.requests} == {"/0.tar"}
