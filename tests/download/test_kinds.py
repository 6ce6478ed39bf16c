"""What people's files have in common, held against every reader: forms of captions, text, paths."""

import csv
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pytest
from pydantic import TypeAdapter

from pipeline.core.errors import DownloadError, InputError
from pipeline.download.caption_table import READERS, read_rows
from pipeline.download.fetch import fetch
from pipeline.download.karpathy import read_karpathy
from pipeline.download.sentences import read_own_sentences, read_sentences_file
from pipeline.download.senteval import read_cased_benchmark, read_senteval
from pipeline.download.sources import BY_NAME, SCENES, RemoteFile
from pipeline.download.tar_shards import find_shards
from pipeline.download.webdataset import read_shard
from pipeline.params.download import DownloadParams
from pipeline.params.places import PathText, expanded
from tests.download.conftest import Made, download_params, image_bytes, make_own
from tests.download.test_hub import table_bytes
from tests.download.test_senteval import (
    GOLD,
    INPUT,
    MRPC,
    SICK,
    SST,
    STSB,
    TREC,
    cased_files,
    pack,
    small_files,
)
from tests.download.test_webdataset import write_shard

Cells = list[object]


def from_table(folder: Path, ending: str, cells: Cells, connected, **changes) -> Made:
    """Pictures, with captions in a table."""
    (folder / "photos").mkdir(parents=True)
    names = [f"{number}.png" for number in range(len(cells))]
    for number, name in enumerate(names):
        (folder / "photos" / name).write_bytes(image_bytes(number % 20))
    table = folder / f"t{ending}"
    rows = list(zip(names, cells, strict=True))
    if ending == ".parquet":
        table.write_bytes(table_bytes(pa.array(names), pa.array(cells)))
    elif ending == ".jsonl":
        table.write_text("\n".join(json.dumps({"image": i, "caption": c}) for i, c in rows))
    elif ending == ".json":
        table.write_text(json.dumps([{"image": i, "caption": c} for i, c in rows]))
    elif ending == ".token":
        table.write_text("".join(f"{i}#0\t{c}\n" for i, c in rows))
    else:
        with table.open("w", newline="") as stream:
            separator = "\t" if ending == ".tsv" else ","
            csv.writer(stream, delimiter=separator).writerows([("image", "caption"), *rows])
    own = {"images": f"{folder}/photos", "captions": str(table)}
    return make_own(folder, "folder", folder=own, **changes)


def from_texts(folder: Path, _ending: str, cells: Cells, connected, **changes) -> Made:
    """The same, in a text beside each picture, and no table."""
    (folder / "photos").mkdir(parents=True)
    for number, cell in enumerate(cells):
        (folder / f"photos/{number:02d}.png").write_bytes(image_bytes(number % 20))
        (folder / f"photos/{number:02d}.txt").write_text(str(cell))
    return make_own(folder, "folder", folder={"images": f"{folder}/photos"}, **changes)


def from_parquet(folder: Path, _ending: str, cells: Cells, connected, **changes) -> Made:
    """The same, in a Parquet file that holds the pictures."""
    images = pa.array([image_bytes(number % 20) for number in range(len(cells))])
    (folder / "t").mkdir(parents=True)
    (folder / "t/0.parquet").write_bytes(table_bytes(images, pa.array(cells)))
    return make_own(folder, "folder", folder={"captions": f"{folder}/t"}, **changes)


def from_shard(folder: Path, ending: str, cells: Cells, connected, **changes) -> Made:
    """The same, in a shard."""
    members = {}
    for number, cell in enumerate(cells):
        content = json.dumps({"caption": cell}) if ending == "json" else str(cell)
        members |= {
            f"{number}.png": image_bytes(number % 20),
            f"{number}.{ending}": content.encode(),
        }
    path = write_shard(folder / "0.tar", members)
    return make_own(folder, "webdataset", webdataset={"shards": str(path)}, **changes)


def from_hub(folder: Path, _ending: str, cells: Cells, connected, **changes) -> Made:
    images = pa.array([image_bytes(number % 20) for number in range(len(cells))])
    name = f"o/n{len(connected.datasets)}"
    connected.datasets[name] = {"0.parquet": table_bytes(images, pa.array(cells))}
    return make_own(folder, "hub", hub={"dataset": name}, **changes)


SOURCES: dict[str, tuple[Callable[..., Made], str]] = {
    **{f"folder {ending}": (from_table, ending) for ending in READERS},
    "folder without a table": (from_texts, ""),
    "folder of images in Parquet": (from_parquet, ""),
    "webdataset .txt": (from_shard, "txt"),
    "webdataset .json": (from_shard, "json"),
    "hub": (from_hub, ""),
}
"""Every reader of captions of one's own; tables by their endings."""

of_every_source = pytest.mark.parametrize("source", SOURCES)


def test_every_source_of_pairs_is_among_the_readers():
    known = {name.split()[0] for name in SOURCES}
    assert set(get_args(DownloadParams.model_fields["pairs"].annotation)) == known | {
        SCENES,
        *(name for name, source in BY_NAME.items() if source.kind == "pairs"),  # Karpathy's
    }


def read_cell(source: str, folder: Path, cell: object, connected) -> list[str]:
    read, ending = SOURCES[source]
    return read(folder, ending, [cell], connected)[0].captions["caption"].tolist()


FORMS: dict[str, list[str]] = {
    "A dog, a ball.": ["A dog, a ball."],
    '["A dog", "a \\"ball\\""]': ["A dog", 'a "ball"'],
    "['A dog', \"a dog's ball\"]": ["A dog", "a dog's ball"],
    "('A dog', 'a ball')": ["A dog", "a ball"],
    '["A dog", null]': ["A dog", ""],
    "[a dog barks]": ["[a dog barks]"],
    "(a dog)": ["(a dog)"],
    "\ufeffA dog": ["A dog"],
}


@of_every_source
def test_lists_are_read_as_lists_however_they_are_written(tmp_path, connected, source):
    read, ending = SOURCES[source]
    pairs, _ = read(tmp_path, ending, list(FORMS), connected)
    found = pairs.captions.groupby("image_id")["caption"].agg(list).tolist()
    # In a .txt a line without text is no caption.
    keeps_empty = source not in {"webdataset .txt", "folder without a table"}
    assert found == [[one for one in forms if one or keeps_empty] for forms in FORMS.values()]


@pytest.mark.parametrize(
    "source",
    [
        "folder .json",
        "folder .jsonl",
        "folder .parquet",
        "folder of images in Parquet",
        "webdataset .json",
        "hub",
    ],
)
def test_lists_that_are_lists_are_lists(tmp_path, connected, source):
    read, ending = SOURCES[source]
    pairs, counts = read(tmp_path, ending, [["A dog", None, "a ball"], [], None], connected)
    assert pairs.captions["caption"].tolist() == ["A dog", "", "a ball", "", ""]
    assert pairs.captions["image_id"].tolist() == [0, 0, 0, 1, 2]
    assert counts["captions_empty"] == 3


@of_every_source
def test_lists_that_cannot_be_read_are_refused_or_counted(tmp_path, connected, caplog, source):
    words = "a list that cannot be read"
    cells = ["['A dog' 'a ball']", '["A dog', "array(['A dog'])", "[1, 2]", '{"raw": "A dog"}']
    for number, cell in enumerate(cells):
        with pytest.raises(InputError) as error:
            read_cell(source, tmp_path / str(number), cell, connected)
        if source.startswith("webdataset"):
            assert "1 shards hold no sample with a caption" in error.value.what
            assert words in caplog.text
        else:
            assert words in error.value.what
            places = ("line 2: ", "line 1: ", "line 1 is", "row 0: ", "entry 0: ", "00.txt is ")
            assert any(place in error.value.what for place in places)
        caplog.clear()


@of_every_source
def test_what_stands_for_no_caption_is_none(tmp_path, connected, source):
    cells = ["nan", "NaN", "None", "null", "\u200b\ufeff", "\xa0\u2003 "]
    read, ending = SOURCES[source]
    pairs, counts = read(tmp_path, ending, [*cells, "a dog"], connected)
    assert pairs.captions["caption"].tolist() == [*[""] * len(cells), "a dog"]
    assert counts["captions_empty"] == len(cells)


@pytest.mark.parametrize("source", ["folder .csv", "webdataset .txt", "hub"])
def test_equal_pictures_are_in_one_split(tmp_path, connected, source):
    read, ending = SOURCES[source]
    shares = {"val": 0.3, "test": 0.3}
    pairs, _ = read(tmp_path, ending, ["x"] * 60, connected, splits=shares)
    splits = pairs.images["split"].tolist()
    assert set(splits) == {"train", "val", "test"}
    assert splits[:20] == splits[20:40] == splits[40:]


Texts = Callable[[Path, bytes], list[str]]


def sentences(folder: Path, content: bytes) -> list[str]:
    (folder / "text.txt").write_bytes(content)
    return read_sentences_file(folder / "text.txt", "")


def rows(ending: str) -> Texts:
    def read(folder: Path, content: bytes) -> list[str]:
        (folder / f"t{ending}").write_bytes(content)
        found = read_rows(folder / f"t{ending}", download_params().folder)
        return [text for row in found for text in (row.image, *row.captions)]

    return read


def samples(ending: str) -> Texts:
    def read(folder: Path, content: bytes) -> list[str]:
        sample = read_shard(write_shard(folder / "0.tar", {f"0.{ending}": content}), None)["0"]
        if sample.unreadable is not None:
            raise sample.unreadable
        return sample.captions

    return read


def karpathy(folder: Path, content: bytes) -> list[str]:
    with zipfile.ZipFile(folder / "c.zip", "w") as archive:
        archive.writestr("dataset_x.json", content)
    return read_karpathy(folder / "c.zip", "x", [])[1]["caption"].tolist()


def task_file(name: str) -> Texts:
    def read(folder: Path, content: bytes) -> list[str]:
        cased = name.startswith("stsbenchmark")
        files = (cased_files() if cased else small_files()) | {name: content}
        path = pack(folder / "senteval.tar", files)
        tables = [read_cased_benchmark(path)] if cased else read_senteval(path)
        return [str(cell) for table in tables for row in table.to_numpy() for cell in row]

    return read


PICTURE = {"imgid": 0, "split": "train", "filename": "a", "sentences": [{"raw": "One é"}]}
TABLE = "image,caption\na,One é\nb,2\n"
OBJECTS = '{"image": "a", "caption": "One é"}\n\n{"image": "b", "caption": "2"}\n'
TOKENS = 'a#0\tOne "é\nb#1\t2\n'
CASED = "stsbenchmark/sts-dev.csv"
TEXTS: dict[str, tuple[str, Texts]] = {
    "sentences": ("One é.\nTwo.\n", sentences),
    "karpathy": (json.dumps({"images": [PICTURE]}, indent=1, ensure_ascii=False), karpathy),
    "webdataset .txt": ("One é.\n\n Two.\n\u2028three\x0b", samples("txt")),
    "webdataset .json": ('{\n"caption": "One é."}\n', samples("json")),
    "folder .jsonl": (OBJECTS, rows(".jsonl")),
    "folder .json": ("[\n" + OBJECTS.strip().replace("\n\n", ",\n") + "]\n", rows(".json")),
    "folder .token": (TOKENS, rows(".token")),
    "folder .csv": (TABLE, rows(".csv")),
    "folder .tsv": (TABLE.replace(",", "\t"), rows(".tsv")),
    "folder .txt": (TABLE, rows(".txt")),
    **{
        f"senteval {name}": (small_files()[name].decode("latin-1"), task_file(name))
        for name in (GOLD, INPUT, STSB, SICK, TREC, SST, "MR/rt-polarity.pos")
    },
    f"senteval {MRPC}": ("Quality\t1\t2\tA\tB\n1\t7\t8\tl\tb\n", task_file(MRPC)),
    "senteval cased": (cased_files()[CASED].decode(), task_file(CASED)),
}
"""Every reader of text that others wrote, with a text of its own; of SentEval one file a kind."""


@pytest.mark.parametrize("name", TEXTS)
def test_text_is_read_alike_by_all(tmp_path, name):
    text, read = TEXTS[name]
    encoding = "latin-1" if name.startswith(("senteval MR/", "senteval TREC/")) else "utf-8"
    wanted = read(tmp_path, text.encode(encoding))
    assert len(wanted) > 0
    changed = {
        "mark": b"\xef\xbb\xbf" + text.encode(encoding),
        "CR LF": text.replace("\n", "\r\n").encode(encoding),
        "CR": text.replace("\n", "\r").encode(encoding),
        "no end": text.removesuffix("\n").encode(encoding),
        "joined": text.replace("\n", "\n\ufeff").encode(encoding, "ignore"),
    }
    if text.endswith("\n\n"):  # the last line is empty: without its end it is none
        del changed["no end"]
    for change, content in changed.items():
        assert read(tmp_path, content) == wanted, change
    if not name.startswith("senteval"):  # pinned by its checksum and counts
        for content in (text.encode("utf-16"), text.encode(encoding) + b"\0"):
            with pytest.raises(InputError, match="UTF-16"):
                read(tmp_path, content)


@pytest.mark.parametrize("end", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"])
def test_nothing_else_ends_a_line(tmp_path, end):
    assert sentences(tmp_path, f"One{end}two\n".encode()) == [f"One{end}two"]
    assert rows(".csv")(tmp_path, f"image,caption\na,x{end}y\n".encode()) == ["a", f"x{end}y"]
    line = json.dumps({"image": "a", "caption": f"x{end}y"}, ensure_ascii=False)
    if end >= "\x20":  # JSON holds control characters as escapes only
        assert rows(".jsonl")(tmp_path, line.encode()) == ["a", f"x{end}y"]


@pytest.mark.parametrize(
    "table",
    [
        "image,caption\na.png,One two\n",
        "image;caption\na.png;One two\n",
        "\ufeffimage\tcaption\na.png\tOne two\n",
        "image| n| caption\na.png| 0| One two\n",
        '"image";"caption"\n"a.png";"One two"\n',
        " image , caption,\na.png, One two,\n",
        'image,caption\na.png,"One\r\ntwo"\n',
    ],
)
def test_separators_are_recognised(tmp_path, table):
    for ending in (".csv", ".tsv", ".txt"):
        found = rows(ending)(tmp_path, table.encode())
        assert [" ".join(text.split()) for text in found] == ["a.png", "One two"]


@pytest.mark.parametrize(
    ("written", "words", "fix"),
    [
        ("cc", "cc is a folder", "cc/*.tar"),
        ("s3://b/{0..1}.tar", "s3://b/0.tar is an address of a kind", "copy the shards"),
        ("gs://b/*.tar", r"gs://b/\*\.tar is an address of a kind", "copy the shards"),
        ("pipe:aws s3 cp s3://b/0.tar -", "is an address of a kind", "copy the shards"),
        ("hf://datasets/o/n/0.tar", "is an address of a kind", "download.pairs to hub"),
        ("file:///no/0.tar", "the first: /no/0.tar does not exist", "download.webdataset.shards"),
        ("no/0.tar", "the first: no/0.tar does not exist", "relative paths start at"),
    ],
)
def test_shards_are_named_as_they_were_written(tmp_path, monkeypatch, written, words, fix):
    monkeypatch.chdir(tmp_path)
    write_shard(tmp_path / "cc/0.tar", {"0.png": b"x"})
    with pytest.raises(InputError, match=words) as error:
        find_shards(download_params(webdataset={"shards": written}).webdataset.shards)
    assert fix in error.value.fix
    assert f"{tmp_path}/s3:" not in str(error.value)


def test_addresses_of_files_are_paths(tmp_path):
    path = write_shard(tmp_path / "my shards/0.tar", {"0.png": b"x"})
    for written in (f"file://{tmp_path}/my%20shards/{{0..0}}.tar", f"file://localhost{path}"):
        block = download_params(webdataset={"shards": [written]}).webdataset
        assert find_shards(block.shards) == [str(path)]


PATHS = {
    "~/photos": "/home/me/photos",
    "$HOME/photos": "/home/me/photos",
    "${DATA}/a/{00..11}.tar": "/data/a/{00..11}.tar",
    "local-dir:~/teacher": "local-dir:/home/me/teacher",
    "transformers:$DATA/clip": "transformers:/data/clip",
    "file:///data/my%20photos": "/data/my photos",
    "https://host/~me/$DATA/0.tar": "https://host/~me/$DATA/0.tar",
    "~nobody-of-this-name/x": "~nobody-of-this-name/x",
    "$NO_SUCH/x": "$NO_SUCH/x",
    "bert-base-uncased": "bert-base-uncased",
}


@pytest.mark.parametrize("written", PATHS)
def test_the_home_folder_and_variables_are_put_in(monkeypatch, written):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.delenv("NO_SUCH", raising=False)
    path = TypeAdapter(PathText).validate_python(written)
    assert expanded(written) == path == PATHS[written]


FILE = RemoteFile("file.bin", "http://127.0.0.1:9/file.bin", 1)
MISSING: dict[str, tuple[str, Callable[[str], object]]] = {
    "images": (
        "download.folder.images",
        lambda path: make_own(Path(), "folder", folder={"images": path, "captions": "/t.csv"}),
    ),
    "captions": (
        "download.folder.captions",
        lambda path: list(read_rows(Path(f"{path}.csv"), download_params().folder)),
    ),
    "shards": ("download.webdataset.shards", find_shards),
    "text": (
        "download.text_file",
        lambda path: read_own_sentences(download_params(text="file", text_file=path)),
    ),
    "mirror": ("DATA_MIRROR", lambda path: fetch(FILE, Path("downloads"), path)),
}
"""Every path of one's own that `download` follows."""


@pytest.mark.parametrize("name", MISSING)
def test_a_relative_path_in_the_copy_of_an_experiment_is_told_so(tmp_path, monkeypatch, name):
    key, read = MISSING[name]
    copy = tmp_path / "project/.dvc/tmp/exps/standalone/tmp1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    with pytest.raises((InputError, DownloadError), match="in the copy of the project") as error:
        read("my photos")
    assert f"set {key} to an absolute path, such as {tmp_path}/project/my photos" in error.value.fix
    with pytest.raises((InputError, DownloadError)) as error:
        read("/my photos")
    assert "copy of the project" not in error.value.what
    monkeypatch.chdir(tmp_path)
    with pytest.raises((InputError, DownloadError)) as error:
        read("my photos")
    assert f"check {key}; relative paths start at {tmp_path}" in error.value.fix


@pytest.mark.parametrize("name", ["images", "mirror"])
def test_an_address_where_a_path_is_wanted_is_refused(tmp_path, monkeypatch, name):
    key, read = MISSING[name]
    monkeypatch.chdir(tmp_path)
    with pytest.raises((InputError, DownloadError), match=f"s3://b/x is an address, which {key}"):
        read("s3://b/x")
