"""Source `folder`: tables of every kind, splits that stay, images packed once, what is refused."""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import InputError, ResourceError
from pipeline.core.plaintext import is_blank
from pipeline.download.archives import Archive
from pipeline.download.caption_table import read_rows
from pipeline.download.pairing import MOST_CHARACTERS, clean_caption, draw_split, is_missing
from pipeline.params.download import SplitsParams
from tests.conftest import ROOT, invoke, write_params
from tests.download.conftest import Made, download_params, image_bytes, make_own

IMAGES = ("a.png", "sub/b.png", "sub/ü c.png")
CAPTIONS = {"a.png": ["One, two", 'He said "hi"'], "sub/b.png": [""], "sub/ü c.png": ["  x  y "]}
ROWS = [(image, caption) for image, captions in CAPTIONS.items() for caption in captions]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with the images."""
    return write_photos(tmp_path / "photos")


def write_photos(folder: Path) -> Path:
    for number, name in enumerate(IMAGES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(image_bytes(number))
    return folder


def write_rows(path: Path, rows: list[tuple], header: tuple = ("image", "caption")) -> Path:
    """A table with one caption a row, in the form that the ending names."""
    if path.suffix in {".csv", ".tsv"}:
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, delimiter="," if path.suffix == ".csv" else "\t")
            writer.writerows([header, *rows])
    elif path.suffix == ".jsonl":
        lines = [json.dumps(dict(zip(header, row, strict=True))) for row in rows]
        path.write_text("\n".join(lines) + "\n\n")
    else:
        columns = {name: [row[i] for row in rows] for i, name in enumerate(header)}
        pq.write_table(pa.table(columns), path)
    return path


def make(table: Path, photos: Path, **folder) -> Made:
    own = {"images": str(photos), "captions": str(table)} | folder
    return make_own(table.parent, "folder", folder=own)


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_every_kind_of_table_gives_the_same_pairs(tmp_path, photos, ending):
    (tmp_path / "link").symlink_to(photos)
    pairs, counts = make(write_rows(tmp_path / f"t.{ending}", ROWS), tmp_path / "link")
    assert pairs.images["member"].tolist() == list(IMAGES)
    assert pairs.images["image_id"].tolist() == [0, 1, 2]
    assert set(pairs.images["archive"]) == {"images.zip"}
    assert pairs.captions.to_dict("list") == {
        "caption_id": [0, 1, 2, 3],
        "image_id": [0, 0, 1, 2],
        "caption": ["One, two", 'He said "hi"', "", "x y"],
    }
    assert (counts["images"], counts["captions"], counts["captions_empty"]) == (3, 4, 1)
    assert (counts["images_missing"], counts["images_unnamed"]) == (0, 0)


def test_images_are_packed_once_stored_and_dated_alike(tmp_path, photos):
    table = write_rows(tmp_path / "t.csv", [*ROWS, ROWS[0], ("./a.png", "again")])
    pairs, _ = make(table, photos)
    assert pairs.captions["image_id"].tolist() == [0, 0, 1, 2, 0, 0]  # equal rows are kept
    with zipfile.ZipFile(pairs.folder / "images.zip") as archive:
        assert archive.namelist() == list(IMAGES)
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.read(pairs.images["member"][2]) == (photos / IMAGES[2]).read_bytes()
    before = {path.name: path.read_bytes() for path in pairs.folder.iterdir()}
    for path in photos.rglob("*.png"):
        os.utime(path, (1, 1))
    make(table, photos)
    assert {path.name: path.read_bytes() for path in pairs.folder.iterdir()} == before


def test_other_columns_and_splits_of_the_table(tmp_path, photos):
    rows = [("x", "a.png", "Train"), ("y", "sub/b.png", "validation"), ("z", "sub/ü c.png", "TEST")]
    table = write_rows(tmp_path / "t.csv", rows, ("text", "file", "part"))
    columns = {"image_column": "file", "caption_column": "text", "split_column": "part"}
    pairs, counts = make(table, photos, **columns)
    assert pairs.images["split"].tolist() == ["train", "val", "test"]
    assert [counts[f"{split}_images"] for split in ("train", "val", "test")] == [1, 1, 1]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("a.png", "x", "hold-out")], r"line 2 has the split 'hold-out'"),
        ([("a.png", "x", "")], r"line 2: split is empty"),
        ([("a.png", "x", "val"), ("a.png", "y", "test")], r"line 3 has a\.png in split test"),
    ],
)
def test_splits_that_are_none_are_named(tmp_path, photos, rows, words):
    table = write_rows(tmp_path / "t.csv", rows, ("image", "caption", "split"))
    with pytest.raises(InputError, match=words):
        make(table, photos, split_column="split")


def test_a_split_follows_from_the_content_alone_and_other_shares_move_no_more_than_needed():
    names = [f"{number:04d}" for number in range(2000)]
    few, more = SplitsParams(val=0.05, test=0.1), SplitsParams(val=0.3, test=0.1)
    for name in names[:200]:
        place = int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) / 16**16
        wanted = "test" if place < 0.1 else "val" if place >= 0.95 else "train"
        assert draw_split(name, few) == draw_split(name.encode(), few) == wanted
    drawn = [(draw_split(name, few), draw_split(name, more)) for name in names]
    assert abs([old for old, _ in drawn].count("val") - 100) < 30
    assert abs([old for old, _ in drawn].count("test") - 200) < 45
    assert {pair for pair in drawn if pair[0] != pair[1]} == {("train", "val")}


def test_images_that_are_not_there_keep_their_row(tmp_path, photos, caplog):
    (photos / "loose.JPG").write_bytes(b"named by no row")
    (photos / "notes.txt").write_text("no image")
    (photos / "folder.png").mkdir()
    rows = [*ROWS, ("gone.png", "x"), ("folder.png", "y"), ("n" * 300 + ".png", "z")]
    pairs, counts = make(write_rows(tmp_path / "t.csv", rows), photos)
    assert pairs.images["member"].tolist()[3:5] == ["gone.png", "folder.png"]
    assert (counts["images"], counts["images_missing"], counts["images_unnamed"]) == (6, 3, 1)
    assert "gone.png, which is not a file of the folder" in caplog.text
    with Archive(pairs.folder / "images.zip") as archive:
        assert set(archive.sizes) == set(IMAGES)


def test_links_out_of_the_folder_are_not_followed(tmp_path, photos):
    (tmp_path / "secret.png").write_bytes(b"secret")
    (photos / "out.png").symlink_to(tmp_path / "secret.png")
    (photos / "up").symlink_to(tmp_path)
    (photos / "in.png").symlink_to(photos / "a.png")
    rows = [("out.png", "x"), ("up/secret.png", "y"), ("in.png", "z")]
    pairs, counts = make(write_rows(tmp_path / "t.csv", rows), photos)
    with Archive(pairs.folder / "images.zip") as archive:
        assert set(archive.sizes) == {"in.png"}
    assert (counts["images"], counts["images_missing"]) == (3, 2)


@pytest.mark.parametrize("image", ["../t.csv", "/etc/passwd", "sub/../../x", ".", "\ud800", "a\0"])
def test_paths_out_of_the_folder_are_refused(tmp_path, photos, image):
    table = write_rows(tmp_path / "t.jsonl", [ROWS[0], (image, "x")])
    with pytest.raises(InputError, match=r"line 2 names the image .*not a path inside"):
        make(table, photos)
    assert {path.name for path in tmp_path.iterdir()} == {"photos", table.name}


OBJECT = b'{"image": "a.png", "caption": "x"}'
FAULTY: dict[str, tuple[bytes, str, str]] = {
    "latin.csv": (b"image,caption\na.png,caf\xe9\n", "line 2 is not UTF-8 at byte", "UTF-8"),
    "utf16.csv": ("image,caption\n".encode("utf-16"), r"utf16\.csv is UTF-16", "UTF-8"),
    "names.csv": (b"file;text\na;b\n", "by ';', has no column 'image'; .* are 'file', 'text'", ""),
    "bars.csv": (b"name| n| c\na| 0| x\n", "by '|', has no column 'image'.*'c'", "image_column"),
    "bare.csv": (b"a.png,One\nb.png,2\n", "its columns are 'a.png', 'One'", "write a first line"),
    "twice.csv": (b"image,caption,image\n", "has several columns 'image'", "image_column"),
    "empty.csv": (b"", "empty.csv has no column 'image'; its columns are none", "image_column"),
    "header.csv": (b"image,caption\n", r"header\.csv has no rows", "folder.captions"),
    "quote.csv": (b'image,caption,"x" y\na,b,c\n', "line 1 is malformed", "close every"),
    "short.csv": (b"image,caption\na.png,x\n\na.png\n", "line 4 has 1 fields, the header 2", ""),
    "bar.csv": (b"image|caption\na|x\nb\n", "line 3 has 1 fields, the header", "complete the row"),
    "long.tsv": (b"image\tcaption\na.png\tx\ty\n", "line 2 has 3 fields, the header 2", "quote"),
    "open.csv": (b'image,caption\na.png,"x\nb,y\n', "line 2 is malformed", "close every"),
    "after.csv": (b'image,caption\na.png,"x" y\n', "line 2 is malformed", "close every"),
    "blank.csv": (b'image,caption\n"",x\n', "line 2: image is empty", "fix the row"),
    "text.jsonl": (OBJECT + b"\nnot json\n", "line 2 is not JSON", "one object a line"),
    "deep.jsonl": (b"[" * 100_000, "line 1 is not JSON", "jq -c"),
    "comma.jsonl": (OBJECT + b",\n", "line 1 is not JSON", "without a comma"),
    "list.jsonl": (b'["a.png"]\n', "line 1 is not an object", ""),
    "key.jsonl": (b'{"image": "a.png", "text": "x"}\n', "line 1 has no column 'caption'", ""),
    "number.jsonl": (OBJECT.replace(b'"x"', b"7"), "line 1: caption is 7, not text", "fix the row"),
    "image.jsonl": (OBJECT.replace(b'"a.png"', b"7"), "line 1: image is 7, not text", "fix the"),
    "null.jsonl": (OBJECT.replace(b'"a.png"', b"null"), "line 1: image is empty", "fix the row"),
    "mixed.jsonl": (OBJECT.replace(b'"x"', b'["x", 1]'), "line 1: caption is 1, not text", "fix"),
    "nested.jsonl": (OBJECT.replace(b'"x"', b'[["x"]]'), r"is \['x'\], not text", "fix the row"),
    "none.jsonl": (b"\n\n", r"none\.jsonl has no rows", ""),
    "damaged.parquet": (b"PAR1 no table PAR1", "cannot be read as Parquet", ""),
    "first.token": (b"a.png#0\tx\nb.png\ty\n", "line 2 is not NAME#NUMBER", "fix the line"),
    "text.json": (b"{", r"text\.json is not JSON", "one list of objects"),
    "keys.json": (b'{"a": 1}', "neither a list .* it has a", "a list of objects"),
    "entry.json": (b'[{"image": "a.png", "caption": "x"}, 7]', "entry 1 is not an object", ""),
    "boxes.json": (
        b'{"images": [], "annotations": [{"image_id": 1, "bbox": []}]}',
        r"no usable annotations\.0\.caption: Field required",
        "captions_train2014.json",
    ),
    "none.coco.json": (
        b'{"images": [], "annotations": [{"image_id": 1, "caption": "x"}]}',
        "annotation 0 is of the image 1, which is none",
        "add the image",
    ),
    "packed.csv.gz": (b"x", r"none of \.csv, \.tsv, .* by its ending", "uncompressed"),
}


COCO = {
    "info": {"year": 2014},
    "images": [{"id": 9, "file_name": "sub/b.png", "height": 3}, {"id": 7, "file_name": "a.png"}],
    "licenses": [],
    "annotations": [
        {"image_id": 7, "id": 1, "caption": "One "},
        {"image_id": 9, "id": 2, "caption": "Two"},
        {"image_id": 7, "id": 3, "caption": "Three"},
    ],
}
WIDE = "caption_0,image,caption_1,caption_2\nOne,a.png,,Two\n,sub/b.png,nan,\n"
OBJECTS = [{"image": "a.png", "caption": ["One", "Two"]}, {"image": "sub/b.png", "caption": "x"}]
Rows = dict[str, list[str]]
OUT_THERE: dict[str, tuple[str, str, dict, Rows]] = {
    "Flickr8k's captions.txt": (
        "captions.txt",
        'image,caption\na.png,A child .\na.png,"Dogs , two ."\n',
        {},
        {"a.png": ["A child .", "Dogs , two ."]},
    ),
    "Flickr8k.token.txt": (
        "Flickr8k.token.txt",
        'a.png#0\t"A dog , "\na.png#1\t It\truns\n\nsub/b.png#0\tx, y\n',
        {},
        {"a.png": ['"A dog , "', "It runs"], "sub/b.png": ["x, y"]},
    ),
    "Flickr30k's results.token": ("results.token", "a.png#4\tx\n", {}, {"a.png": ["x"]}),
    "Flickr30k's results.csv": (
        "results.csv",
        "image_name| comment_number| comment\na.png| 0| One, two; three .\n",
        {"image_column": "image_name", "caption_column": "comment"},
        {"a.png": ["One, two; three ."]},
    ),
    "semicolons": (
        "t.csv",
        '"image name";"a caption"\na.png;One, two\n',
        {"image_column": "image name", "caption_column": "a caption"},
        {"a.png": ["One, two"]},
    ),
    "tabs by option": (
        "t.txt",
        "image\tcaption\na.png\tOne, two\n",
        {"separator": "tab"},
        {"a.png": ["One, two"]},
    ),
    "another separator": (
        "t.csv",
        "image^caption\na.png^One, two\n",
        {"separator": "^"},
        {"a.png": ["One, two"]},
    ),
    "several columns by pattern": (
        "t.csv",
        WIDE,
        {"caption_column": "caption_*"},
        {"a.png": ["One", "Two"], "sub/b.png": [""]},
    ),
    "several columns by name": (
        "t.csv",
        WIDE,
        {"caption_column": ["caption_2", "caption_0", "caption_[2]"]},
        {"a.png": ["Two", "One"], "sub/b.png": [""]},
    ),
    "several columns of objects": (
        "t.jsonl",
        '{"image": "a.png", "c1": "One", "c2": ["Two", "x"]}\n{"image": "sub/b.png", "c3": "y"}\n',
        {"caption_column": "c?"},
        {"a.png": ["One", "Two", "x"], "sub/b.png": ["y"]},
    ),
    "COCO": (
        "captions_train2014.json",
        json.dumps(COCO),
        {},
        {"a.png": ["One", "Three"], "sub/b.png": ["Two"]},
    ),
    "a list of objects": (
        "t.json",
        json.dumps(OBJECTS),
        {},
        {"a.png": ["One", "Two"], "sub/b.png": ["x"]},
    ),
}
"""Tables as they are published, each with the params that it needs and what is read."""


@pytest.mark.parametrize("name", OUT_THERE)
def test_tables_are_read_as_they_are_out_there(tmp_path, photos, name):
    file, content, params, wanted = OUT_THERE[name]
    (tmp_path / file).write_text(content)
    pairs, counts = make(tmp_path / file, photos, **params)
    found = pairs.captions.merge(pairs.images, on="image_id").groupby("member")["caption"]
    assert found.agg(list).to_dict() == wanted
    assert counts["images_missing"] == 0


def test_captions_beside_the_images_need_no_table(tmp_path, photos, caplog):
    (photos / "a.txt").write_text("One\n\n  Two \n")
    (photos / "sub/b.txt").write_text("\n")
    (photos / "sub/ü c.txt").write_text('["Three", "Four"]')
    (photos / "d.e.JPG").write_bytes(image_bytes(9))
    (photos / "notes.txt").write_text("of no image")
    own = {"images": str(photos)}
    pairs, counts = make_own(tmp_path, "folder", folder=own)
    assert pairs.images["member"].tolist() == list(IMAGES)
    assert pairs.captions["caption"].tolist() == ["One", "Two", "", "Three", "Four"]
    assert (counts["images_unnamed"], counts["captions_empty"]) == (1, 1)
    assert "0 of 3 images are in test" in caplog.text
    (photos / "d.e.txt").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"d\.e\.txt line 1 is not UTF-8"):
        make_own(tmp_path, "folder", folder=own)
    for path in photos.rglob("*.txt"):
        path.unlink()
    with pytest.raises(InputError, match=r"no image of .*photos has a \.txt beside it"):
        make_own(tmp_path, "folder", folder=own)


def test_a_table_may_hold_the_images(tmp_path):
    """A file, or a folder of files, whose names may give splits."""
    cells = [{"bytes": image_bytes(number), "path": f"x/{number}.PNG"} for number in range(4)]
    table = pa.table({"img": cells, "c0": list("abcd"), "c1": ["e", None, "", "h"], "n": [0] * 4})
    (tmp_path / "t").mkdir()
    pq.write_table(table, tmp_path / "t/one.parquet")
    pq.write_table(table[:1], tmp_path / "t/test-1.parquet")
    columns = {"image_column": "img", "caption_column": "c*"}

    def read(name: str, **changes: object) -> Made:
        own = {"captions": str(tmp_path / name), **columns, **changes}
        return make_own(tmp_path, "folder", folder=own, splits={"val": 0, "test": 0})

    pairs, counts = read("t")
    assert pairs.images["archive"].tolist() == ["one.zip"] * 4 + ["test-1.zip"]
    assert pairs.images["split"].tolist() == ["train"] * 4 + ["test"]
    assert pairs.images["member"].tolist()[:2] == ["00000000.png", "00000001.png"]
    assert pairs.captions["caption"].tolist() == ["a", "e", "b", "c", "d", "h", "a", "e"]
    assert counts["files"] == 2
    with Archive(pairs.folder / "one.zip") as archive:
        assert archive.read("00000003.png") == image_bytes(3)
    assert len(read("t/one.parquet")[0].images) == 4
    for changes, words in (
        ({"split_column": "part"}, "has no column 'part'"),
        ({"split_column": "n"}, "column n of int64, not text"),
        ({"caption_column": "text_*"}, r"has no column 'text_\*'"),
    ):
        with pytest.raises(InputError, match=words):
            read("t/one.parquet", **changes)
    (tmp_path / "t/en").mkdir()
    pq.write_table(table, tmp_path / "t/en/one.parquet")
    with pytest.raises(InputError, match=r"files of several configs: \., en"):
        read("t")
    (tmp_path / "t.csv").write_text("image,caption\na.png,x\n")
    with pytest.raises(InputError, match=r"t\.csv holds no \.parquet file") as error:
        read("t.csv")
    assert "download.folder.images" in error.value.fix


@pytest.mark.parametrize("name", FAULTY)
def test_faulty_tables_are_named_by_line(tmp_path, photos, name):
    content, words, fix = FAULTY[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words) as error:
        make(tmp_path / name, photos)
    assert name in error.value.what
    assert fix in error.value.fix
    assert not (tmp_path / "pairs").exists()


@pytest.mark.parametrize(
    ("column", "cells", "words"),
    [
        ("caption", pa.array([1, 2]), "has a column caption of int64, not text"),
        ("image", pa.array([b"x", b"y"]), "has a column image of binary, not text"),
        ("caption", pa.array([[1], [2]]), "has a column caption of list<.*int64>, not text"),
        ("caption", pa.array([[["x"]], None]), "has a column caption of list<.*list<.*, not text"),
        ("image", pa.array(["a.png", None]), "row 1: image is empty"),
        ("caption", pa.array([b"x", b"\xff"]).view(pa.string()), "row 1 holds text that is not UT"),
    ],
)
def test_faulty_parquet_columns_are_named(tmp_path, photos, column, cells, words):
    columns = {"image": pa.array(["a.png", "a.png"]), "caption": pa.array(["x", "y"])}
    pq.write_table(pa.table(columns | {column: cells}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=words):
        make(tmp_path / "t.parquet", photos)


def test_other_types_of_text_in_parquet_are_text(tmp_path, photos):
    large = pa.array(["x", "y"], pa.large_string())
    columns = {"image": pa.array(["a.png", "sub/b.png"]).dictionary_encode(), "caption": large}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert make(tmp_path / "t.parquet", photos)[0].captions["caption"].tolist() == ["x", "y"]


def test_odd_captions_become_text_that_can_be_stored(tmp_path, photos):
    captions = ["a\0b", "half \ud83d of one", "w " * 20_000, "two\nlines", None, float("nan"), "\t"]
    table = write_rows(tmp_path / "t.jsonl", [("a.png", text) for text in captions])
    pairs, counts = make(table, photos)
    cut = ("w " * (MOST_CHARACTERS // 2)).strip()
    assert pairs.captions["caption"].tolist() == [
        "a b",
        "half ? of one",
        cut,
        "two lines",
        *[""] * 3,
    ]
    assert (counts["captions_cut"], counts["captions_empty"]) == (1, 3)


def test_a_long_quoted_field_and_a_byte_order_mark_are_read(tmp_path, photos):
    text = "ab" * 150_000
    (tmp_path / "t.csv").write_text(
        f'image,caption\r\n"a.png","{text}"\r\na.png,"two\r\nlines"\r\n', encoding="utf-8-sig"
    )
    pairs, _ = make(tmp_path / "t.csv", photos)
    assert pairs.captions["caption"].tolist() == [text[:MOST_CHARACTERS], "two lines"]


@given(st.text())
def test_a_cleaned_caption_is_one_line_of_utf8(text):
    cleaned = clean_caption(text)
    assert cleaned == clean_caption(cleaned) == cleaned.strip() == cleaned.encode().decode()
    controls = {*map(chr, range(32)), *map(chr, range(127, 160))}
    assert not set(cleaned) & controls
    invisible = {*controls, *"\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"}
    assert bool(cleaned) >= bool("".join(one for one in text if one.isprintable()).strip())
    assert bool(cleaned) <= bool("".join(one for one in text if one not in invisible).strip())


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n\ufeff[({")).map(str.strip)
TEXT = TEXT.filter(lambda text: not is_missing(text))
NAME = TEXT.filter(lambda text: not is_blank(text))


@given(st.lists(st.tuples(NAME, TEXT), min_size=1))
def test_csv_jsonl_and_parquet_are_read_alike(tmp_path_factory, rows):
    folder = tmp_path_factory.getbasetemp()
    params = download_params().folder
    for ending in ("csv", "tsv", "jsonl", "parquet"):
        table = write_rows(folder / f"rows.{ending}", rows)
        assert [(row.image, *row.captions) for row in read_rows(table, params)] == rows


def test_a_folder_or_table_that_is_not_there_is_named(tmp_path, photos):
    table = write_rows(tmp_path / "t.csv", ROWS)
    with pytest.raises(InputError, match=r"none is not a folder") as error:
        make(table, tmp_path / "none")
    assert "download.folder.images" in error.value.fix
    with pytest.raises(InputError, match=r"none\.csv does not exist"):
        make(tmp_path / "none.csv", photos)


@pytest.mark.parametrize(
    "spelling", ["dogs\\1.png", "dogs%2F1.png", "dogs/1", "DOGS/1.PNG", "photos/dogs/1.png"]
)
def test_an_image_that_is_spelt_otherwise_is_shown_beside_the_folder_s(tmp_path, spelling):
    (tmp_path / "photos/dogs").mkdir(parents=True)
    (tmp_path / "photos/dogs/1.png").write_bytes(image_bytes(1))
    table = write_rows(tmp_path / "t.csv", [(spelling, "x")])
    with pytest.raises(InputError, match="holds none of the 1 images of") as error:
        make(table, tmp_path / "photos")
    assert f"the first is {spelling}, the folder has dogs/1.png" in error.value.what


@pytest.mark.parametrize("closed", ["t.csv", "t.jsonl", "t.parquet", "tables", "photos"])
def test_what_may_not_be_read_is_named_itself(open_folder, closed, locked):
    photos = write_photos(open_folder / "photos")
    (open_folder / "tables").mkdir()
    table = open_folder / (closed if closed.startswith("t.") else "tables/t.csv")
    write_rows(table, ROWS)
    own = {"images": str(photos / "sub"), "captions": str(table)}
    name = "photos/sub" if closed == "photos" else table.name
    words = f"{name} cannot be read: permission denied"
    with locked(open_folder / closed), pytest.raises(ResourceError, match=words):
        make_own(open_folder, "folder", folder=own)
    assert not (open_folder / "pairs").exists()


def test_a_table_whose_bytes_cannot_be_had_is_named(tmp_path, photos):
    (tmp_path / "t.csv").symlink_to("/proc/self/mem")
    with pytest.raises(ResourceError, match=r"t\.csv cannot be read: input/output error"):
        make(tmp_path / "t.csv", photos)


@pytest.mark.slow
def test_a_stop_while_packing_leaves_nothing(tmp_path, photos):
    write_rows(tmp_path / "t.csv", [("a.png", f"caption {row}") for row in range(300_000)])
    own = {"images": "photos", "captions": "t.csv"}
    write_params(tmp_path, {"download": {"pairs": "folder", "folder": own}})
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.download"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(tmp_path.glob("data/.pairs*/.images.zip*")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "was stopped by SIGTERM; nothing half-written was left" in said
    assert list((tmp_path / "data").iterdir()) == []


def test_the_list_of_sources_has_the_kinds_of_own_data():
    listed = json.loads(invoke("download", "--list", "--json").stdout)
    assert [source["name"] for source in listed][-4:] == ["folder", "webdataset", "hub", "file"]
