"""What people's files have in common, held against every reader: forms of captions, text, paths."""

import csv
import io
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
from pipeline.download.corpora import Fetcher, make_pairs, read_sentences_file
from pipeline.download.fetch import fetch
from pipeline.download.karpathy import read_karpathy
from pipeline.download.records import Pairs, read_pairs
from pipeline.download.senteval import read_cased_benchmark, read_senteval
from pipeline.download.sources import BY_NAME, SCENES, RemoteFile
from pipeline.download.tar_shards import find_shards
from pipeline.download.webdataset import read_shard
from pipeline.params.download import DownloadParams
from pipeline.params.places import PathText, expanded
from tests.conftest import invoke, write_params
from tests.download.conftest import download_params, image_bytes
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

pytestmark = pytest.mark.usefixtures("connected")
Made = tuple[Pairs, dict[str, int]]


def make(place: Path, pairs: str, **changes) -> Made:
    params = download_params(pairs=pairs, **changes)
    counts = make_pairs(place / "pairs", params, Fetcher(place / "downloads", None))
    return read_pairs(place / "pairs"), counts


def from_table(folder: Path, ending: str, cell: object, connected) -> Made:
    """A picture whose caption is `cell`, in a table."""
    (folder / "photos").mkdir()
    (folder / "photos/a.png").write_bytes(image_bytes(1))
    table = folder / f"t{ending}"
    if ending == ".parquet":
        table.write_bytes(table_bytes(pa.array(["a.png"]), pa.array([cell])))
    elif ending == ".jsonl":
        table.write_text(json.dumps({"image": "a.png", "caption": cell}))
    else:
        with table.open("w", newline="") as stream:
            separator = "\t" if ending == ".tsv" else ","
            csv.writer(stream, delimiter=separator).writerows(
                [("image", "caption"), ("a.png", cell)]
            )
    return make(folder, "folder", folder={"images": f"{folder}/photos", "captions": str(table)})


def from_shard(folder: Path, ending: str, cell: object, connected) -> Made:
    """The same, in a shard."""
    content = json.dumps({"caption": cell}) if ending == "json" else str(cell)
    path = write_shard(folder / "0.tar", {"0.png": image_bytes(1), f"0.{ending}": content.encode()})
    return make(folder, "webdataset", webdataset={"shards": str(path)})


def from_hub(folder: Path, _ending: str, cell: object, connected) -> Made:
    images = pa.array([image_bytes(1)])
    connected.datasets["o/n"] = {"0.parquet": table_bytes(images, pa.array([cell]))}
    return make(folder, "hub", hub={"dataset": "o/n"})


CELLS: dict[str, tuple[Callable[..., Made], str]] = {
    **{f"folder {ending}": (from_table, ending) for ending in READERS},
    "webdataset .txt": (from_shard, "txt"),
    "webdataset .json": (from_shard, "json"),
    "hub": (from_hub, ""),
}
"""Every reader of captions of one's own; tables by their endings."""

of_every_reader = pytest.mark.parametrize("reader", CELLS)


def test_every_source_of_pairs_is_among_the_readers():
    known = {name.split()[0] for name in CELLS}
    assert set(get_args(DownloadParams.model_fields["pairs"].annotation)) == known | {
        SCENES,
        *(name for name, source in BY_NAME.items() if source.kind == "pairs"),  # Karpathy's
    }


def read_cell(reader: str, folder: Path, cell: object, connected) -> tuple[list[str], int]:
    read, ending = CELLS[reader]
    pairs, counts = read(folder, ending, cell, connected)
    assert len(pairs.images) == 1
    return pairs.captions["caption"].tolist(), counts["captions_empty"]


@of_every_reader
@pytest.mark.parametrize(
    ("cell", "captions"),
    [
        ("A dog, a ball.", ["A dog, a ball."]),
        ('["A dog", "a \\"ball\\""]', ["A dog", 'a "ball"']),
        ("['A dog', \"a dog's ball\"]", ["A dog", "a dog's ball"]),
        ("('A dog', 'a ball')", ["A dog", "a ball"]),
        ('["A dog", null]', ["A dog", ""]),
        ("[a dog barks]", ["[a dog barks]"]),
        ("(a dog)", ["(a dog)"]),
        ("\ufeffA dog", ["A dog"]),
    ],
)
def test_lists_are_read_as_lists_however_they_are_written(
    tmp_path, connected, reader, cell, captions
):
    found, _ = read_cell(reader, tmp_path, cell, connected)
    if reader == "webdataset .txt":  # in which a line without text is no caption
        captions = [caption for caption in captions if caption]
    assert found == captions


@pytest.mark.parametrize("reader", ["folder .jsonl", "folder .parquet", "webdataset .json", "hub"])
def test_lists_that_are_lists_are_lists(tmp_path, connected, reader):
    assert read_cell(reader, tmp_path, ["A dog", "a ball"], connected)[0] == ["A dog", "a ball"]


@of_every_reader
@pytest.mark.parametrize(
    "cell", ["['A dog' 'a ball']", '["A dog', "array(['A dog'])", "[1, 2]", '{"raw": "A dog"}']
)
def test_lists_that_cannot_be_read_are_refused_or_counted(
    tmp_path, connected, caplog, reader, cell
):
    words = "a list that cannot be read"
    if reader.startswith("webdataset"):
        with pytest.raises(InputError, match="no sample of 1 shards has a caption"):
            read_cell(reader, tmp_path, cell, connected)
        assert words in caplog.text
        return
    with pytest.raises(InputError, match=words) as error:
        read_cell(reader, tmp_path, cell, connected)
    assert any(row in error.value.what for row in ("line 2: ", "line 1: ", "row 0: "))


@pytest.mark.parametrize("reader", CELLS)
@pytest.mark.parametrize("cell", ["nan", "NaN", "None", "null", "\u200b\ufeff", "\xa0\u2003 "])
def test_what_stands_for_no_caption_is_none(tmp_path, connected, reader, cell):
    if reader.startswith("webdataset"):
        with pytest.raises(InputError, match="no sample of 1 shards has a caption"):
            read_cell(reader, tmp_path, cell, connected)
    else:
        assert read_cell(reader, tmp_path, cell, connected) == ([""], 1)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_txt_of_a_shard_has_a_caption_a_line(tmp_path, connected, end):
    text = f"one{end}{end} two {end}\u2028three\x0b{end}"
    found, _ = read_cell("webdataset .txt", tmp_path, text, connected)
    assert found == ["one", "two", "three"]


def sentences(folder: Path, content: bytes) -> list[str]:
    (folder / "text.txt").write_bytes(content)
    return read_sentences_file(folder / "text.txt")


def rows(ending: str) -> Callable[[Path, bytes], list[str]]:
    def read(folder: Path, content: bytes) -> list[str]:
        (folder / f"t{ending}").write_bytes(content)
        found = read_rows(folder / f"t{ending}", download_params().folder)
        return [text for row in found for text in (row.image, *row.captions)]

    return read


def samples(ending: str) -> Callable[[Path, bytes], list[str]]:
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


def task_file(name: str) -> Callable[[Path, bytes], list[str]]:
    def read(folder: Path, content: bytes) -> list[str]:
        cased = name.startswith("stsbenchmark")
        files = (cased_files() if cased else small_files()) | {name: content}
        path = pack(folder / "senteval.tar", files)
        tables = [read_cased_benchmark(path)] if cased else read_senteval(path)
        return [str(cell) for table in tables for row in table.to_numpy() for cell in row]

    return read


PICTURE = {"imgid": 0, "split": "train", "filename": "a", "sentences": [{"raw": "One é"}]}
TEXTS: dict[str, tuple[str, Callable[[Path, bytes], list[str]]]] = {
    "sentences": ("One é.\nTwo.\n", sentences),
    "karpathy": (json.dumps({"images": [PICTURE]}, indent=1, ensure_ascii=False), karpathy),
    "webdataset .txt": ("One é.\nTwo.\n", samples("txt")),
    "webdataset .json": ('{\n"caption": "One é."}\n', samples("json")),
    "folder .jsonl": (
        '{"image": "a", "caption": "One é"}\n\n{"image": "b", "caption": "2"}\n',
        rows(".jsonl"),
    ),
    **{
        f"folder {ending}": ("image,caption\na,One é\nb,2\n".replace(",", separator), rows(ending))
        for ending, separator in ((".csv", ","), (".tsv", "\t"), (".txt", ","))
    },
    **{
        f"senteval {name}": (small_files()[name].decode("latin-1"), task_file(name))
        for name in (GOLD, INPUT, STSB, SICK, TREC, SST, "MR/rt-polarity.pos")
    },
    f"senteval {MRPC}": (
        "Quality\t1\t2\tA\tB\n1\t7\t8\tl\tb\n",
        task_file(MRPC),
    ),
    "cased STS-B": (
        cased_files()["stsbenchmark/sts-dev.csv"].decode(),
        task_file("stsbenchmark/sts-dev.csv"),
    ),
}  # fmt: skip
"""Every reader of text that others wrote, with a text of its own; of SentEval one file a kind."""
LATIN = ("MR/", "TREC/")


def test_every_kind_of_text_table_is_among_the_texts():
    assert {f"folder {ending}" for ending in READERS if ending != ".parquet"} <= set(TEXTS)


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("change", ["mark", "CR LF", "CR", "no end", "joined", "UTF-16", "NUL"])
def test_text_is_read_alike_by_all(tmp_path, name, change):
    text, read = TEXTS[name]
    if change == "no end" and text.endswith("\n\n"):
        return  # the last line is empty: without its end it is none
    latin = name.removeprefix("senteval ").startswith(LATIN)
    encoding = "latin-1" if latin else "utf-8"
    wanted = read(tmp_path, text.encode(encoding))
    assert len(wanted) > 0
    changed = {
        "mark": b"\xef\xbb\xbf" + text.encode(encoding),
        "CR LF": text.replace("\n", "\r\n").encode(encoding),
        "CR": text.replace("\n", "\r").encode(encoding),
        "no end": text.removesuffix("\n").encode(encoding),
        "joined": text.replace("\n", "\n\ufeff").encode("latin-1" if latin else "utf-8", "ignore"),
        "UTF-16": text.encode("utf-16"),
        "NUL": text.encode(encoding) + b"\0",
    }[change]
    if change in {"UTF-16", "NUL"}:
        if latin or name.startswith(("senteval", "cased")):
            return  # pinned by their checksums and counts; latin-1 has a letter for every byte
        with pytest.raises(InputError, match="UTF-16"):
            read(tmp_path, changed)
    else:
        assert read(tmp_path, changed) == wanted


@pytest.mark.parametrize("end", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"])
def test_nothing_else_ends_a_line(tmp_path, end):
    assert sentences(tmp_path, f"One{end}two\n".encode()) == [f"One{end}two"]
    assert rows(".csv")(tmp_path, f"image,caption\na,x{end}y\n".encode()) == ["a", f"x{end}y"]
    line = json.dumps({"image": "a", "caption": f"x{end}y"}, ensure_ascii=False)
    if end >= "\x20":  # JSON holds control characters as escapes only
        assert rows(".jsonl")(tmp_path, line.encode()) == ["a", f"x{end}y"]


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".txt"])
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
def test_separators_are_recognised(tmp_path, ending, table):
    found = rows(ending)(tmp_path, table.encode())
    assert [" ".join(text.split()) for text in found] == ["a.png", "One two"]


@pytest.mark.parametrize(
    "spelling", ["dogs\\1.png", "dogs%2F1.png", "dogs/1", "DOGS/1.PNG", "photos/dogs/1.png"]
)
def test_an_image_that_is_spelt_otherwise_is_shown_beside_the_folder_s(tmp_path, spelling):
    (tmp_path / "photos/dogs").mkdir(parents=True)
    (tmp_path / "photos/dogs/1.png").write_bytes(image_bytes(1))
    (tmp_path / "t.csv").write_text(f"image,caption\n{spelling},x\n")
    own = {"images": f"{tmp_path}/photos", "captions": f"{tmp_path}/t.csv"}
    with pytest.raises(InputError) as error:
        make(tmp_path, "folder", folder=own)
    assert f"the first is {spelling}, the folder has dogs/1.png" in error.value.what


SHARES = {"val": 0.3, "test": 0.3}


def twice_from_folder(folder: Path, contents: list[bytes], connected) -> Made:
    (folder / "photos").mkdir()
    for name, content in enumerate(contents):
        (folder / f"photos/{name}.png").write_bytes(content)
    table = [f"{name}.png,x{name}" for name in range(len(contents))]
    (folder / "t.csv").write_text("\n".join(["image,caption", *table]))
    own = {"images": f"{folder}/photos", "captions": f"{folder}/t.csv"}
    return make(folder, "folder", folder=own, splits=SHARES)


def twice_from_shards(folder: Path, contents: list[bytes], connected) -> Made:
    members = [{f"{n}.png": one, f"{n}.txt": b"x"} for n, one in enumerate(contents)]
    write_shard(folder / "0.tar", *members)
    return make(folder, "webdataset", webdataset={"shards": f"{folder}/0.tar"}, splits=SHARES)


def twice_from_hub(folder: Path, contents: list[bytes], connected) -> Made:
    table = table_bytes(pa.array(contents), ["x"] * len(contents))
    connected.datasets["o/n"] = {"0.parquet": table}
    return make(folder, "hub", hub={"dataset": "o/n"}, splits=SHARES)


@pytest.mark.parametrize("read", [twice_from_folder, twice_from_shards, twice_from_hub])
def test_equal_pictures_are_in_one_split(tmp_path, connected, read):
    contents = [image_bytes(number % 20) for number in range(60)]
    pairs, _ = read(tmp_path, contents, connected)
    splits = pairs.images["split"].tolist()
    assert set(splits) == {"train", "val", "test"}
    assert splits[:20] == splits[20:40] == splits[40:]


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


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("~/photos", "/home/me/photos"),
        ("$HOME/photos", "/home/me/photos"),
        ("${DATA}/a/{00..11}.tar", "/data/a/{00..11}.tar"),
        ("local-dir:~/teacher", "local-dir:/home/me/teacher"),
        ("transformers:$DATA/clip", "transformers:/data/clip"),
        ("file:///data/my%20photos", "/data/my photos"),
        ("https://host/~me/$DATA/0.tar", "https://host/~me/$DATA/0.tar"),
        ("~nobody-of-this-name/x", "~nobody-of-this-name/x"),
        ("$NO_SUCH/x", "$NO_SUCH/x"),
        ("bert-base-uncased", "bert-base-uncased"),
    ],
)
def test_the_home_folder_and_variables_are_put_in(monkeypatch, written, path):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.delenv("NO_SUCH", raising=False)
    assert expanded(written) == TypeAdapter(PathText).validate_python(written) == path


def test_options_and_the_mirror_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    """As in `--out=~/scores.json`, which no shell expands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA_MIRROR", "~/mirror")
    (tmp_path / "mirror").mkdir()
    pack(tmp_path / "mirror/senteval.tar", small_files())
    small = {"images": 100, "captions_per_image": 1, "sentences": 100, "sts_pairs": 300}
    write_params(tmp_path, {"download": {"evaluation": "senteval", "scenes": small}})
    result = invoke("download", "--metrics=~/a/counts.json", "--evaluation=$HOME/tasks")
    assert result.exit_code == 0, result.output
    counts = json.loads((tmp_path / "a/counts.json").read_text())
    assert counts["evaluation"]["mpqa"] == 2
    assert (tmp_path / "tasks/sts.parquet").is_file()
    assert not (tmp_path / "~").exists()


FILE = RemoteFile("file.bin", "http://127.0.0.1:9/file.bin", 1)
MISSING: dict[str, tuple[str, Callable[[str], object]]] = {
    "images": (
        "download.folder.images",
        lambda path: make(Path(), "folder", folder={"images": path, "captions": "/t.csv"}),
    ),
    "captions": (
        "download.folder.captions",
        lambda path: list(read_rows(Path(f"{path}.csv"), download_params().folder)),
    ),
    "shards": ("download.webdataset.shards", find_shards),
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


def test_a_folder_of_this_machine_is_no_data_set_of_the_hub(tmp_path, connected):
    with pytest.raises(DownloadError) as error:
        make(tmp_path, "hub", hub={"dataset": str(tmp_path)})
    assert "set download.pairs to folder or webdataset" in error.value.fix


def test_lists_of_lists_are_no_captions(tmp_path, connected):
    captions = pa.array([[["x"]]])
    with pytest.raises(InputError, match=r"column caption of list<.*list<.*, not text"):
        read_cell("hub", tmp_path, captions[0].as_py(), connected)


def test_stream_of_lines_is_closed_at_the_end(tmp_path):
    from pipeline.core.plaintext import read_lines

    stream = io.BytesIO(b"a\nb")
    assert list(read_lines(stream, "x")) == [(1, "a\n"), (2, "b")]
    assert stream.closed
