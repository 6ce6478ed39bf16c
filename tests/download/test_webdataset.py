"""Source `webdataset`: shards read in place, what a sample is, what damage does."""

import io
import json
import shutil
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from pipeline.core.checksums import CHECKSUMS
from pipeline.core.errors import DownloadError, InputError, ResourceError
from pipeline.download import records
from pipeline.download.archives import Archive
from pipeline.download.pairing import draw_split, write_rows_to
from pipeline.download.records import read_pairs
from pipeline.download.tar_shards import MOST_SHARDS, expand, fetch_shard, find_shards
from pipeline.download.webdataset import write_webdataset_pairs
from pipeline.params.download import SplitsParams, WebdatasetParams
from tests.download.conftest import Made, image_bytes, make_own

SPLITS = SplitsParams(val=0.2, test=0.2)


def sample(key: str, caption: str = "", **members: bytes) -> dict[str, bytes]:
    """The members that img2dataset writes for one sample."""
    about = {"caption": caption, "key": key, "status": "success", "width": 4, "height": 3}
    written = {"jpg": image_bytes(int(key)), "json": json.dumps(about).encode()}
    written |= {"txt": caption.encode()} | members
    return {f"{key}.{ending}": content for ending, content in written.items()}


def write_shard(path: Path, *samples: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as shard:
        for name, content in (item for members in samples for item in members.items()):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder of two shards of three samples."""
    for shard in range(2):
        keys = [f"{shard:05d}{row:04d}" for row in range(3)]
        samples = [sample(key, f"caption {key}") for key in keys]
        write_shard(tmp_path / f"cc/{shard:05d}.tar", *samples)
    return tmp_path / "cc"


def make(tmp_path: Path, names: object, **changes) -> Made:
    block = {"shards": names if isinstance(names, list) else str(names)} | changes
    return make_own(tmp_path, "webdataset", webdataset=block, splits=SPLITS.model_dump())


def test_shards_are_read_in_place(tmp_path, shards):
    pairs, counts = make(tmp_path, shards / "{00000..00001}.tar")
    keys = ["000000000", "000000001", "000000002", "000010000", "000010001", "000010002"]
    assert pairs.images["member"].tolist() == [f"{key}.jpg" for key in keys]
    assert pairs.images["archive"].tolist() == [str(shards / f"{key[:5]}.tar") for key in keys]
    drawn = [draw_split(image_bytes(int(key)), SPLITS) for key in keys]
    assert pairs.images["split"].tolist() == drawn
    assert pairs.captions["caption"].tolist() == [f"caption {key}" for key in keys]
    ids = pairs.images["image_id"].tolist()
    assert ids == pairs.captions["image_id"].tolist() == list(range(6))
    tables = {*(f"{name}.parquet" for name in ("images", "captions", "archives")), CHECKSUMS}
    assert {path.name for path in pairs.folder.iterdir()} == tables
    assert pairs.archives.to_dict("list") == {
        "archive": [str(path) for path in sorted(shards.iterdir())],
        "bytes": [path.stat().st_size for path in sorted(shards.iterdir())],
        "modified": [path.stat().st_mtime_ns for path in sorted(shards.iterdir())],
    }
    left_out = ("shards", "shards_skipped", "samples_without_image")
    assert [counts[name] for name in ("images", "captions", *left_out)] == [6, 6, 2, 0, 0]
    for row in pairs.images.itertuples():
        with Archive(pairs.folder / row.archive) as archive:
            assert archive.read(row.member) == image_bytes(int(row.member[:9]))


def test_what_makes_a_sample(tmp_path, caplog):
    members = {
        "d/x.y/1.json": b'{"caption": "of the json"}',  # the dot of a folder is none of the name
        "d/x.y/1.WebP": b"image",
        "./2.seg.png": b"an image whose ending has parts: one without counts more",
        "./2.png": b"image",
        "./2.jpg": b"a second image",
        "./2.txt": "text wins ü".encode(),
        "./2.json": b'{"caption": "json"}',
        "3.jpg": b"image",
        "4.jpg": b"image",
        "4.txt": b"\xef\xbb\xbfbad \xff byte",
        "5.jpg": b"image",
        "5.json": b"no json",
        "6.jpg": b"image",
        "6.json": b'{"caption": 7}',
        "7.txt": b"no image",
        "8.jpg": b"image",
        "1.txt": b"same name in another folder",
        "._8.jpg": b"hidden",
        "8.txt": b"members of a sample need not stand together",
    }
    pairs, counts = make(tmp_path, write_shard(tmp_path / "a.tar.gz", members, mode="w:gz"))
    rows = dict(zip(pairs.images["member"], pairs.captions["caption"], strict=True))
    assert rows == {
        "d/x.y/1.WebP": "of the json",
        "2.png": "text wins ü",
        "3.jpg": "",
        "4.jpg": "",
        "5.jpg": "",
        "6.jpg": "",
        "8.jpg": "members of a sample need not stand together",
    }
    assert (counts["captions_empty"], counts["captions_unreadable"]) == (4, 3)
    assert (counts["samples_without_image"], counts["images_further"]) == (2, 2)
    assert "a.tar.gz: 4.txt line 1 is not UTF-8" in caplog.text


NAMES: dict[str, tuple[list[str], dict[str, list[str]]]] = {
    "plain": (["a.jpg", "a.txt"], {"a.jpg": ["a.txt"]}),
    "an ending of parts": (["a.input.jpg", "a.txt"], {"a.input.jpg": ["a.txt"]}),
    "two images": (["a.input.jpg", "a.target.png", "a.txt"], {"a.input.jpg": ["a.txt"]}),
    "a mask first": (["a.mask.png", "a.jpg", "a.txt"], {"a.jpg": ["a.txt"]}),
    "a caption of parts": (["a.jpg", "a.best.txt"], {"a.jpg": ["a.best.txt"]}),
    "a better caption": (["a.old.txt", "a.jpg", "a.txt"], {"a.jpg": ["a.txt"]}),
    "text": (["a.jpg", "a.text"], {"a.jpg": ["a.text"]}),
    "dotted keys": (
        ["w.org_1.jpg", "w.org_1.txt", "w.org_2.jpg", "w.org_2.json", "d.v/w.org_1.jpg"],
        {"w.org_1.jpg": ["w.org_1.txt"], "w.org_2.jpg": ["w.org_2.json"], "d.v/w.org_1.jpg": [""]},
    ),
    "a dotted key beside a plain one": (
        ["a.jpg", "a.txt", "a.1.jpg", "a.1.txt"],
        {"a.jpg": ["a.txt"], "a.1.jpg": ["a.1.txt"]},
    ),
    "a mask with an object": (["a.jpg", "a.txt", "a.m.png", "a.m.json"], {"a.jpg": ["a.txt"]}),
}


@pytest.mark.parametrize("name", NAMES)
def test_what_the_dots_of_names_part(tmp_path, name):
    """Each text holds its own name as caption."""
    members, wanted = NAMES[name]
    contents = {
        one: (json.dumps({"text": one}) if one.endswith("json") else one).encode()
        for one in members
    }
    pairs, _ = make(tmp_path, write_shard(tmp_path / "0.tar", contents))
    found = pairs.captions.merge(pairs.images, on="image_id").groupby("member")["caption"]
    assert found.agg(list).to_dict() == wanted


@pytest.mark.parametrize(
    ("about", "captions"),
    [
        ({"caption": ["a dog", "it runs"]}, ["a dog", "it runs"]),
        ({"text": "a dog", "url": "x"}, ["a dog"]),
        ({"text": ["a dog", "it runs"]}, ["a dog", "it runs"]),
        ({"caption": "a dog", "text": "other"}, ["a dog"]),
    ],
)
def test_a_json_has_captions_under_either_key(tmp_path, about, captions):
    members = {"0.jpg": b"image", "0.json": json.dumps(about).encode()}
    pairs, _ = make(tmp_path, write_shard(tmp_path / "0.tar", members))
    assert pairs.captions["caption"].tolist() == captions


def test_other_pictures_under_the_same_names_are_noticed(tmp_path, shards):
    """As when img2dataset was run again: DVC must see other bytes, the features another corpus."""
    first, _ = make(tmp_path, shards / "00000.tar")
    old, _ = make(tmp_path, shards / "*.tar")
    assert old.images.head(3).equals(first.images)  # a grown data set moves no image
    tables = {path.name: path.read_bytes() for path in old.folder.iterdir()}
    assert make(tmp_path, shards / "*.tar")[0].fingerprint() == old.fingerprint()
    assert {path.name: path.read_bytes() for path in old.folder.iterdir()} == tables
    keys = [f"00000{row:04d}" for row in range(3)]
    samples = [sample(key, f"caption {key}", jpg=image_bytes(int(key) + 7)) for key in keys]
    write_shard(shards / "00000.tar", *samples)
    new, _ = make(tmp_path, shards / "*.tar")
    names = ["image_id", "archive", "member"]
    assert new.images[names].equals(old.images[names])
    assert new.captions.equals(old.captions)
    assert new.fingerprint() != old.fingerprint()
    assert {path.name: path.read_bytes() for path in new.folder.iterdir()} != tables


def damage_header(content: bytes) -> bytes:
    """Overwrite the header of the second sample's image: tarfile alone takes that for the end."""
    start = content.index(b"000000001.jpg")
    return content[:start] + b"\xff" * 512 + content[start + 512 :]


DAMAGE = {
    "in a member": lambda content: content[:700],
    "between members": lambda content: content[: content.index(b"000000001.jpg")],
    "bad header": damage_header,
    "xz": lambda content: b"\xfd7zXZ\0" + content,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_shard_is_an_error_or_left_out_as_a_whole(tmp_path, shards, kind, caplog):
    shard = shards / "00000.tar"
    shard.write_bytes(DAMAGE[kind](shard.read_bytes()))
    with pytest.raises(InputError, match=r"00000\.tar is damaged or truncated") as error:
        make(tmp_path, shards / "*.tar")
    assert "get 00000.tar again, or set download.webdataset.damaged=skip" in error.value.fix
    assert not (tmp_path / "pairs").exists()
    pairs, counts = make(tmp_path, shards / "*.tar", damaged="skip")
    assert set(pairs.images["archive"]) == {str(shards / "00001.tar")}
    assert pairs.images["image_id"].tolist() == [0, 1, 2]
    assert (counts["shards"], counts["shards_skipped"]) == (2, 1)
    assert f"left out: {shard} is damaged" in caplog.text


@pytest.mark.parametrize("damaged", ["error", "skip"])
def test_a_shard_that_cannot_be_read_or_is_gone_is_never_left_out(tmp_path, shards, damaged):
    params = WebdatasetParams(shards=str(shards / "{00000..00001}.tar"), damaged=damaged)
    with (
        pytest.raises(ResourceError, match=r"00001\.tar cannot be read: no such file"),
        write_rows_to(tmp_path / "pairs") as rows,
    ):
        add = rows.add
        rows.add = lambda *row: (shards / "00001.tar").unlink(missing_ok=True) or add(*row)
        write_webdataset_pairs(rows, params, tmp_path)
    (shards / "00001.tar").symlink_to("/proc/self/mem")  # a read of its start fails
    with pytest.raises(ResourceError, match=r"00001\.tar cannot be read: input/output error"):
        make(tmp_path, shards / "*.tar", damaged=damaged)


def test_shards_of_a_folder_that_may_not_be_entered_are_named(open_folder, locked):
    write_shard(open_folder / "cc/0.tar", sample("000000000"))
    words = r"0\.tar cannot be read: permission denied"
    with locked(open_folder / "cc"), pytest.raises(ResourceError, match=words):
        find_shards(f"{open_folder}/cc/{{0..1}}.tar")


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ([sample("000000001"), sample("000000001")], "3 members whose name another one has too"),
        ([{"1.txt": b"x"}], "1 shards hold no sample with an image; .* names is txt"),
        ([{"1.jpg": b"x"}], "1 shards hold no sample with a caption; .* names is jpg"),
    ],
)
def test_shards_without_use_are_refused(tmp_path, samples, words):
    with pytest.raises(InputError, match=words):
        make(tmp_path, write_shard(tmp_path / "a.tar", *samples))


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("s/{8..10}.tar", ["s/8.tar", "s/9.tar", "s/10.tar"]),
        ("{08..10}", ["08", "09", "10"]),
        ("{5..5}", ["5"]),
        ("{000..1}", ["000", "001"]),
        ("{a,b}/{1..2}", ["a/1", "a/2", "b/1", "b/2"]),
        ("plain{x}.tar", ["plain{x}.tar"]),
    ],
)
def test_ranges_are_as_wide_as_their_first_number_and_words_are_words(name, names):
    assert expand(name) == names


@pytest.mark.parametrize("name", ["{3..1}", "{0..99999999999999999999}", "{0..9999}{0..9999}"])
def test_ranges_that_are_none_are_refused(name):
    with pytest.raises(InputError, match=r"range|stands for") as error:
        expand(name)
    assert "download.webdataset.shards" in error.value.fix
    assert MOST_SHARDS < 9999**2


def test_lists_globs_and_relative_paths(tmp_path, shards, monkeypatch):
    monkeypatch.chdir(tmp_path)
    both = [str(shards / f"0000{number}.tar") for number in (0, 1)]
    assert find_shards("cc/*.tar") == find_shards("**/*.tar") == both
    assert find_shards(["cc/00001.tar", "cc/*.tar"]) == both[::-1]
    (tmp_path / "a[1].tar").write_bytes(b"")
    assert find_shards("a[1].tar") == [str(tmp_path / "a[1].tar")]
    with pytest.raises(InputError, match=r"none\*\.tar matches no file"):
        find_shards("none*.tar")
    with pytest.raises(InputError, match=r"2 of 4 shards are not there, the first: cc/00002\.tar"):
        find_shards("cc/{00000..00003}.tar")


def test_shards_with_a_url_are_fetched_once_and_go_on(tmp_path, shards, server):
    url, folder, handler = server
    write_shard(shards / "00000.tar", sample("000000000", "long", cls=bytes(300_000)))
    for part in ("one", "two"):
        shutil.copytree(shards, folder / part)
    content = (shards / "00000.tar").read_bytes()
    handler.faults += [lambda h: h.send_content(content, cut_after=200_000) or True]
    names = [f"{url}/{{one,two}}/{{00000..00001}}.tar", f"{url}/one/00000.tar?shard={{0..1}}"]
    pairs, _ = make(tmp_path, names)
    archives = list(dict.fromkeys(pairs.images["archive"]))
    assert len(archives) == 6  # equal names of two folders, and other queries, are other files
    assert all(Path(path).is_relative_to(tmp_path / "downloads") for path in archives)
    assert [Path(path).name for path in archives[:4]] == ["00000.tar", "00001.tar"] * 2
    assert [Path(path).name[-10:] for path in archives[4:]] == ["-00000.tar"] * 2
    assert Path(archives[0]).read_bytes() == content
    assert handler.requests[1][1] is not None  # the rest only
    asked = len(handler.requests)
    again, _ = make(tmp_path, names)
    assert (len(handler.requests), again.fingerprint()) == (asked, pairs.fingerprint())


@pytest.mark.parametrize("end", ["", "/", "/a/", "/a/..", "/.", "/?shard=0", "/a/..?x#y"])
def test_a_url_that_names_no_file_is_refused_before_anything_is_fetched(tmp_path, end):
    url = "http://127.0.0.1:9"
    with pytest.raises(InputError, match="names no file") as error:
        make(tmp_path, [f"{url}/00000.tar", f"{url}{end}"])
    assert "download.webdataset.shards" in error.value.fix
    with pytest.raises(InputError, match="names no file"):
        fetch_shard(f"{url}{end}", tmp_path)
    with pytest.raises(InputError, match="is not a URL"):
        find_shards("http://[bad/0.tar")


def test_a_url_may_have_a_long_name_and_one_that_gives_nothing_is_named(tmp_path, shards, server):
    url, folder, _ = server
    name = "n" * 240 + ".tar"
    (folder / name).write_bytes((shards / "00000.tar").read_bytes())
    assert len(make(tmp_path, f"{url}/{name}?token={'t' * 900}")[0].images) == 3
    with pytest.raises(DownloadError, match="404") as error:
        make(tmp_path, f"{url}/00000.tar")
    assert "download.webdataset.shards" in error.value.fix


@pytest.mark.slow
def test_memory_does_not_grow_with_the_shards(tmp_path, monkeypatch):
    """Eight times the shards, and the peak is that of few."""
    monkeypatch.setattr(records, "ROW_GROUP", 256)
    rows = [sample(f"{row:09d}", "some words " * 20) for row in range(100)]
    paths = [str(write_shard(tmp_path / f"{n}.tar", *rows)) for n in range(40)]
    peaks = []
    for count in (5, 5, 40):
        params = WebdatasetParams(shards=paths[:count], damaged="error")
        tracemalloc.start()
        with write_rows_to(tmp_path / "pairs") as pair_rows:
            write_webdataset_pairs(pair_rows, params, tmp_path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.3 * peaks[1]
    assert len(read_pairs(tmp_path / "pairs").images) == 4_000
