"""Source `hub`, against a loopback hub: shards, Parquet, splits by file name, refusals."""

import io
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import DownloadError, InputError
from pipeline.download.archives import Archive
from pipeline.download.image_tables import archive_of, configs_of, split_in_name
from pipeline.download.pairing import draw_split
from pipeline.params.download import SplitsParams
from tests.download.conftest import Made, image_bytes, make_own
from tests.download.test_webdataset import sample, write_shard

SPLITS = SplitsParams(val=0.3, test=0.3)
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def table_bytes(images: pa.Array, captions: pa.Array | list, **options) -> bytes:
    stream = io.BytesIO()
    pq.write_table(
        pa.table({"image": images, "id": range(len(images)), "caption": captions}),
        stream,
        **options,
    )
    return stream.getvalue()


def structs(*numbers: int, path: str = "x/{}.png") -> pa.Array:
    cells = [{"bytes": image_bytes(number), "path": path.format(number)} for number in numbers]
    return pa.array(cells, STRUCT)


def make(folder: Path, **hub) -> Made:
    own = {"dataset": "org/photos"} | hub
    return make_own(folder, "hub", hub=own, splits=SPLITS.model_dump())


def test_parquet_files_become_a_zip_each(connected, tmp_path):
    connected.datasets["org/photos"] = {
        "README.md": b"a card",
        "data/train-00000-of-00002.parquet": table_bytes(
            structs(0, 1, 2), ["one", None, " two "], row_group_size=2
        ),
        "data/train-00001-of-00002.parquet": table_bytes(structs(3, path=""), ["three"]),
        "data/validation-00000-of-00001.parquet": table_bytes(structs(4), ["four"]),
    }
    pairs, counts = make(tmp_path)
    first, second, third = (
        "data--train-00000-of-00002.zip",
        "data--train-00001-of-00002.zip",
        "data--validation-00000-of-00001.zip",
    )
    assert list(zip(pairs.images["archive"], pairs.images["member"], strict=True)) == [
        *((first, f"0000000{row}.png") for row in range(3)),
        (second, "00000000"),
        (third, "00000000.png"),
    ]
    assert pairs.images["split"].tolist() == ["train"] * 4 + ["val"]
    assert pairs.captions["caption"].tolist() == ["one", "", "two", "three", "four"]
    assert pairs.captions["image_id"].tolist() == list(range(5))
    for row in pairs.images.itertuples():
        with Archive(pairs.folder / row.archive) as archive:
            assert archive.read(row.member) == image_bytes(row.image_id)
    assert (counts["files"], counts["samples_without_image"], counts["captions_empty"]) == (3, 0, 1)
    with zipfile.ZipFile(pairs.folder / first) as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


def test_a_column_of_splits_counts_before_the_name_of_the_file(connected, tmp_path):
    """As in nlphuji/flickr30k, whose one split is called test."""
    images = pa.array([image_bytes(number) for number in range(4)])
    names = ["train", "restval", "Validation", "test"]

    def splits(column: list, **hub) -> list[str]:
        stream = io.BytesIO()
        pq.write_table(pa.table({"image": images, "caption": ["x"] * 4, "split": column}), stream)
        name = f"org/photos{len(connected.datasets)}"
        connected.datasets[name] = {"TEST-0000.parquet": stream.getvalue()}
        return make(tmp_path, dataset=name, **hub)[0].images["split"].tolist()

    assert splits(names) == ["train", "train", "val", "test"]
    assert splits([0, 1, 2, 3]) == ["test"] * 4  # numbers are not names
    assert splits(names, split_column=None) == ["test"] * 4
    with pytest.raises(InputError, match="row 1 has the split 'hold-out'") as error:
        splits(["train", "hold-out", "val", "test"])
    assert "to null" in error.value.fix


def test_plain_bytes_lists_of_captions_and_rows_without_an_image(connected, tmp_path):
    images = pa.array([image_bytes(0), None, b"", image_bytes(3)])
    captions = [["a", None], ["b"], ["c"], []]
    connected.datasets["org/photos"] = {"0000.parquet": table_bytes(images, captions)}
    pairs, counts = make(tmp_path)
    assert pairs.images["member"].tolist() == ["00000000", "00000003"]
    assert pairs.captions["caption"].tolist() == ["a", "", ""]
    assert pairs.captions["image_id"].tolist() == [0, 0, 1]
    assert (counts["samples_without_image"], counts["captions_empty"]) == (2, 2)


def test_shards_are_read_in_the_hub_s_cache(connected, tmp_path):
    shard = write_shard(tmp_path / "s.tar", sample("000000001", "x"), sample("000000002", "y"))
    connected.datasets["org/photos"] = {
        "test/0.tar": shard.read_bytes(),
        "0.tar": shard.read_bytes(),
        "notes.parquet": b"not read where there are shards",
    }
    pairs, counts = make(tmp_path)
    drawn = [draw_split(image_bytes(number), SPLITS) for number in (1, 2)]
    assert pairs.images["split"].tolist() == [*drawn, "test", "test"]
    assert all(Path(path).is_relative_to(tmp_path / "hub") for path in pairs.images["archive"])
    assert pairs.archives["archive"].tolist() == list(dict.fromkeys(pairs.images["archive"]))
    assert pairs.archives["bytes"].tolist() == [shard.stat().st_size] * 2
    with Archive(pairs.folder / pairs.images["archive"][3]) as archive:
        assert archive.read(pairs.images["member"][3]) == image_bytes(2)
    assert counts["shards"] == 2
    asked = len([path for path in connected.seen if "/resolve/" in path])
    make(tmp_path)
    heads = [path for path in connected.seen if "/resolve/" in path][asked:]
    assert len(heads) <= 2  # nothing is fetched again


CONFIGS = {
    "default/train/0000.parquet": 0,
    "default/partial-test/0000.parquet": 1,
    "small/train/0000.parquet": 0,
}


def convert(files: dict[str, int]) -> dict[str, bytes]:
    """A Parquet file of one picture each, captioned with the file's name."""
    return {name: table_bytes(structs(number), [name]) for name, number in files.items()}


def test_files_of_several_configs_are_not_merged(connected, tmp_path):
    connected.datasets["org/photos"] = convert(CONFIGS)
    with pytest.raises(InputError, match="several configs: default, small") as error:
        make(tmp_path)
    assert "download.hub.files" in error.value.fix
    assert not (tmp_path / "pairs").exists()
    pairs, counts = make(tmp_path, files="default/**")
    assert pairs.captions["caption"].tolist() == sorted(CONFIGS)[:2]
    assert (pairs.images["split"].tolist(), counts["files"]) == (["test", "train"], 2)
    assert len(make(tmp_path, files="**")[0].images) == 3
    with pytest.raises(InputError, match=r"no \.parquet or \.tar files that match .*larg\*"):
        make(tmp_path, files="larg*")


@pytest.mark.parametrize(
    ("files", "configs"),
    [
        (["data/train-00000-of-00002.parquet", "data/validation-0.parquet"], ["data"]),
        (["train/0.parquet", "test/0.parquet"], ["."]),
        (["train/train-0.parquet", "val2017/val-0.parquet", "0.parquet"], ["."]),
        (["en/train-0.parquet", "de/train-0.parquet", "de/test-0.parquet"], ["de", "en"]),
        (
            ["mini-train/train/0.parquet", "full-train/train/0.parquet"],
            ["full-train", "mini-train"],
        ),
        (["data/en/test/0.parquet", "data/de/test/0.parquet"], ["data/de", "data/en"]),
        (["0.parquet", "large/0.parquet"], [".", "large"]),
    ],
)
def test_configs_are_the_folders_that_are_no_splits(files, configs):
    assert configs_of(files) == configs


@given(st.lists(st.text("a-/%.P", min_size=1, max_size=12), min_size=2, max_size=20, unique=True))
def test_no_two_files_get_one_archive(names):
    files = [f"{name}.parquet" for name in names] + [f"{name}.Parquet" for name in names]
    archives = [archive_of(file) for file in files]
    assert len(set(archives)) == len(files)
    assert not any("/" in archive for archive in archives)


def test_a_damaged_shard_says_what_to_delete(connected, tmp_path):
    connected.datasets["org/photos"] = {"0.tar": b"<html>" * 500}
    with pytest.raises(InputError, match=r"0\.tar is damaged") as error:
        make(tmp_path)
    named = Path(error.value.fix.split()[1])
    assert named.is_relative_to(tmp_path / "hub")
    assert named.read_bytes() == b"<html>" * 500


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("data/train-00000-of-00003.parquet", "train"),
        ("data/Validation-0.parquet", "val"),
        ("default/test/0000.parquet", "test"),
        ("train/dev.parquet", "val"),  # the name of the file counts before its folders'
        ("cc3m-train-0001.tar", "train"),
        ("val_2017/x.tar", "val"),
        ("training/contest/latest.parquet", None),
        ("evaluation/0.parquet", None),
    ],
)
def test_splits_in_file_names(file, split):
    assert split_in_name(file) == split


@pytest.mark.parametrize(
    ("changes", "words", "fix"),
    [
        ({"dataset": "org/none"}, "the data set org/none is not there", "download.hub.dataset"),
        ({"dataset": "a/b/c"}, "a/b/c has an invalid name", "ORG/NAME"),
        ({"revision": "v9"}, "has no revision v9", "download.hub.revision"),
        ({"dataset": "org/closed"}, "open only to those who accepted its terms", "hf auth login"),
    ],
)
def test_what_the_hub_refuses_is_said(connected, tmp_path, changes, words, fix):
    connected.datasets["org/photos"] = {}
    connected.gated.add("org/closed")
    with pytest.raises(DownloadError, match=words) as error:
        make(tmp_path, **changes)
    assert fix in error.value.fix
    assert not (tmp_path / "pairs").exists()


@pytest.mark.parametrize(
    ("constant", "value", "words"),
    [
        ("HF_HUB_OFFLINE", True, "HF_HUB_OFFLINE is set"),
        ("ENDPOINT", "http://127.0.0.1:9", "could not be downloaded: .*HF_ENDPOINT"),
    ],
)
def test_a_hub_out_of_reach_is_said(connected, tmp_path, monkeypatch, constant, value, words):
    monkeypatch.setattr(constants, constant, value)
    with pytest.raises(DownloadError, match=f"(?s){words}"):
        make(tmp_path)


LOCAL = {"train-0.parquet": 0, "test-0.parquet": 1, ".cache/huggingface/train-0.parquet": 2}


def test_a_data_set_of_this_machine_is_read_as_one_of_the_hub(connected, tmp_path, monkeypatch):
    connected.datasets["org/photos"] = convert({name: LOCAL[name] for name in list(LOCAL)[:2]})
    for name, content in convert(LOCAL).items():
        (tmp_path / "o/n" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "o/n" / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    theirs, counts = make(tmp_path)
    for name in (f"{tmp_path}/o/n", "o/n", f"file://{tmp_path}/o/n"):
        pairs, again = make(tmp_path, dataset=name)
        assert (pairs.fingerprint(), again) == (theirs.fingerprint(), counts)
    one, _ = make(tmp_path, dataset="o/n/test-0.parquet")
    assert one.images["split"].tolist() == ["test"]
    shard = write_shard(tmp_path / "tars/val.tar", sample("000000001", "x"))
    pairs, _ = make(tmp_path, dataset=str(shard.parent))
    assert pairs.images["archive"].tolist() == [str(shard)]
    assert pairs.images["split"].tolist() == ["val"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": "/none/here"}, "/none/here does not exist"),
        ({"revision": "main"}, "is of this machine, where download.hub.revision has no meaning"),
        ({}, r"has no \.parquet or \.tar files, but notes\.md"),
    ],
)
def test_what_cannot_be_a_data_set_of_this_machine_is_said(connected, tmp_path, changes, words):
    (tmp_path / "n").mkdir()
    (tmp_path / "n/notes.md").write_text("none")
    with pytest.raises(InputError, match=words) as error:
        make(tmp_path, **{"dataset": f"{tmp_path}/n"} | changes)
    assert "download.hub.dataset" in error.value.fix


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"image_column": "img"},
            r"a\.parquet has no column 'img'; its columns are 'image', 'id', 'caption'",
        ),
        ({"caption_column": "text"}, "has no column 'text'"),
        ({"caption_column": "id"}, "column id of int64, not text"),
        ({"image_column": "caption"}, "column caption of string, not images"),
        ({"dataset": "org/empty"}, "no image bytes in column image"),
        ({"caption_column": ["caption", "text*"]}, r"has no column 'text\*'"),
        ({"dataset": "org/damaged"}, r"a\.parquet cannot be read as Parquet"),
        ({"dataset": "org/other"}, r"no \.parquet or \.tar files, but a\.csv, b\.md"),
    ],
)
def test_data_sets_that_cannot_be_used_say_why(connected, tmp_path, changes, words):
    connected.datasets |= {
        "org/photos": {"a.parquet": table_bytes(structs(0), ["x"])},
        "org/empty": {"a.parquet": table_bytes(pa.array([None], STRUCT), ["x"])},
        "org/damaged": {"a.parquet": b"PAR1 PAR1"},
        "org/other": {"a.csv": b"", "b.md": b""},
    }
    with pytest.raises(InputError, match=words):
        make(tmp_path, **changes)
    assert not (tmp_path / "pairs").exists()
