"""Source `webdataset`: shards read in place, what a sample is, what damage does."""

import io
import json
import tarfile
import tracemalloc
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.checksums import CHECKSUMS
from pipeline.core.errors import DownloadError, InputError, ResourceError
from pipeline.download import records
from pipeline.download.archives import Archive
from pipeline.download.corpora import Fetcher, make_pairs
from pipeline.download.pairing import draw_split, write_rows_to
from pipeline.download.records import Pairs, read_pairs
from pipeline.download.tar_shards import MOST_SHARDS, expand, fetch_shard, find_shards
from pipeline.download.webdataset import write_webdataset_pairs
from pipeline.params.download import SplitsParams, WebdatasetParams
from stages import paths
from tests.conftest import assert_clear_error, invoke, write_params
from tests.download.conftest import download_params, image_bytes

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


def make(tmp_path: Path, names: object, **changes) -> tuple[Pairs, dict[str, int]]:
    block = {"shards": names if isinstance(names, list) else str(names)} | changes
    params = download_params(pairs="webdataset", webdataset=block, splits=SPLITS.model_dump())
    counts = make_pairs(tmp_path / "pairs", params, Fetcher(tmp_path / "downloads", None))
    return read_pairs(tmp_path / "pairs"), counts


def test_shards_are_read_in_place(tmp_path, shards):
    pairs, counts = make(tmp_path, shards / "{00000..00001}.tar")
    keys = ["000000000", "000000001", "000000002", "000010000", "000010001", "000010002"]
    assert pairs.images["member"].tolist() == [f"{key}.jpg" for key in keys]
    assert pairs.images["archive"].tolist() == [str(shards / f"{key[:5]}.tar") for key in keys]
    drawn = [draw_split(image_bytes(int(key)), SPLITS) for key in keys]
    assert pairs.images["split"].tolist() == drawn
    assert pairs.captions["caption"].tolist() == [f"caption {key}" for key in keys]
    assert (
        pairs.images["image_id"].tolist() == pairs.captions["image_id"].tolist() == list(range(6))
    )
    tables = {*(f"{name}.parquet" for name in ("images", "captions", "archives")), CHECKSUMS}
    assert {path.name for path in pairs.folder.iterdir()} == tables
    assert pairs.archives.to_dict("list") == {
        "archive": [str(path) for path in sorted(shards.iterdir())],
        "bytes": [path.stat().st_size for path in sorted(shards.iterdir())],
        "modified": [path.stat().st_mtime_ns for path in sorted(shards.iterdir())],
    }
    assert counts["images"] == counts["captions"] == 6
    left_out = ("shards_skipped", "samples_without_image")
    assert (counts["shards"], *map(counts.get, left_out)) == (2, 0, 0)
    for row in pairs.images.itertuples():
        with Archive(pairs.folder / row.archive) as archive:
            assert archive.read(row.member) == image_bytes(int(row.member[:9]))


def test_what_makes_a_sample(tmp_path, caplog):
    members = {
        "d/x.y/1.json": b'{"caption": "of the json"}',  # the dot of a folder is none of the name
        "d/x.y/1.WebP": b"image",
        "./2.seg.png": b"no image: its ending is seg.png",
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
    pairs, counts = make(tmp_path, write_shard(tmp_path / "a.tar", members))
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
    assert (counts["samples_without_image"], counts["images_further"]) == (2, 1)
    assert "a.tar: 4.txt line 1 is not UTF-8" in caplog.text


def test_compressed_shards_are_read_too(tmp_path):
    shard = write_shard(tmp_path / "a.tar.gz", sample("000000001", "x"), mode="w:gz")
    assert make(tmp_path, shard)[0].captions["caption"].tolist() == ["x"]


def test_a_grown_data_set_moves_no_image(tmp_path, shards):
    old, _ = make(tmp_path, shards / "*.tar")
    write_shard(shards / "00002.tar", *(sample(f"00002{row:04d}") for row in range(9)))
    new, _ = make(tmp_path, shards / "*.tar")
    assert new.images.head(6).equals(old.images)
    assert len(new.images) == 15


def test_other_pictures_under_the_same_names_are_noticed(tmp_path, shards):
    """As when img2dataset was run again: DVC must see other bytes, the features another corpus."""
    old, _ = make(tmp_path, shards / "*.tar")
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
    "in a header": lambda content: content[: content.index(b"000000001.jpg") + 100],
    "between members": lambda content: content[: content.index(b"000000001.jpg")],
    "bad header": damage_header,
    "empty": lambda content: b"",
    "no tar": lambda content: b"<html>" * 500,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_shard_is_an_error_or_left_out_as_a_whole(tmp_path, shards, kind, caplog):
    shard = shards / "00000.tar"
    shard.write_bytes(DAMAGE[kind](shard.read_bytes()))
    with pytest.raises(InputError, match=r"00000\.tar is damaged or truncated") as error:
        make(tmp_path, shards / "*.tar")
    assert "download.webdataset.damaged=skip" in error.value.fix
    assert not (tmp_path / "pairs").exists()
    pairs, counts = make(tmp_path, shards / "*.tar", damaged="skip")
    assert set(pairs.images["archive"]) == {str(shards / "00001.tar")}
    assert pairs.images["image_id"].tolist() == [0, 1, 2]
    assert (counts["shards"], counts["shards_skipped"]) == (2, 1)
    assert f"left out: {shard} is damaged" in caplog.text


@pytest.mark.parametrize("damaged", ["error", "skip"])
def test_a_shard_that_cannot_be_read_is_never_left_out(tmp_path, shards, damaged):
    (shards / "00000.tar").unlink()
    (shards / "00000.tar").symlink_to("/proc/self/mem")  # a read of its start fails
    with pytest.raises(ResourceError, match=r"00000\.tar cannot be read: input/output error"):
        make(tmp_path, shards / "*.tar", damaged=damaged)
    assert not (tmp_path / "pairs").exists()


@pytest.mark.parametrize("damaged", ["error", "skip"])
def test_a_shard_that_is_gone_when_its_turn_comes_is_never_left_out(tmp_path, shards, damaged):
    lost = shards / "00001.tar"
    params = WebdatasetParams(shards=str(shards / "{00000..00001}.tar"), damaged=damaged)
    with (
        pytest.raises(ResourceError, match=r"00001\.tar cannot be read: no such file"),
        write_rows_to(tmp_path / "pairs") as rows,
    ):
        add = rows.add
        rows.add = lambda *row: lost.unlink(missing_ok=True) or add(*row)
        write_webdataset_pairs(rows, params, SPLITS, tmp_path)


def test_shards_of_a_folder_that_may_not_be_entered_are_named(open_folder, locked):
    write_shard(open_folder / "cc/0.tar", sample("000000000"))
    words = r"0\.tar cannot be read: permission denied"
    with locked(open_folder / "cc"), pytest.raises(ResourceError, match=words):
        find_shards(f"{open_folder}/cc/{{0..1}}.tar")


def test_a_damaged_xz_shard_is_left_out(tmp_path, shards):
    damaged = write_shard(tmp_path / "x.tar.xz", sample("000000009", cls=bytes(9999)), mode="w:xz")
    content = damaged.read_bytes()
    damaged.write_bytes(content[:60] + bytes(40) + content[100:])
    names = [str(damaged), str(shards / "00000.tar")]
    assert make(tmp_path, names, damaged="skip")[1]["shards_skipped"] == 1


def test_members_of_one_name_are_refused(tmp_path):
    shard = write_shard(tmp_path / "a.tar", sample("000000001", "x"), sample("000000001", "y"))
    with pytest.raises(InputError, match="3 members whose name another one has too"):
        make(tmp_path, shard)


def test_shards_without_any_image_are_refused(tmp_path):
    shard = write_shard(tmp_path / "a.tar", {"1.txt": b"x"})
    with pytest.raises(InputError, match="1 shards hold no sample with an image"):
        make(tmp_path, shard)


@given(st.integers(0, 120), st.integers(0, 30), st.integers(1, 6))
def test_ranges_are_as_wide_as_their_first_number(first, more, width):
    name = f"s/{{{first:0{width}d}..{first + more:0{width}d}}}.tar"
    expected, number = [], first
    while number <= first + more:
        expected.append("s/" + str(number).rjust(max(width, len(str(first))), "0") + ".tar")
        number += 1
    assert expand(name) == expected


def test_braces_multiply_and_words_are_words():
    assert expand("{a,b}/{8..10}.tar") == [f"{w}/{n}.tar" for w in "ab" for n in ("8", "9", "10")]
    assert expand("{08..10}") == ["08", "09", "10"]
    assert expand("plain{x}.tar") == ["plain{x}.tar"]


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
        (folder / part).mkdir()
        for shard in shards.iterdir():
            (folder / part / shard.name).write_bytes(shard.read_bytes())
    content = (shards / "00000.tar").read_bytes()
    handler.faults += [lambda h: h.send_content(content, cut_after=200_000) or True]
    pairs, _ = make(tmp_path, f"{url}/{{one,two}}/{{00000..00001}}.tar?token=x")
    archives = list(dict.fromkeys(pairs.images["archive"]))
    assert len(archives) == 4  # equal names of two folders are two files
    assert all(Path(path).is_relative_to(tmp_path / "downloads") for path in archives)
    assert [Path(path).name[-10:] for path in archives] == ["-00000.tar", "-00001.tar"] * 2
    assert Path(archives[0]).read_bytes() == content
    assert handler.requests[1][1] is not None  # the rest only
    asked = len(handler.requests)
    again, _ = make(tmp_path, f"{url}/{{one,two}}/{{00000..00001}}.tar?token=x")
    assert (len(handler.requests), again.fingerprint()) == (asked, pairs.fingerprint())


def test_shards_that_differ_in_the_query_alone_are_files_of_their_own(tmp_path, shards, server):
    url, _, handler = server

    def send(request):
        number = urlsplit(request.path).query.removeprefix("shard=")
        request.send_content((shards / f"{number:0>5}.tar").read_bytes())
        return True

    handler.faults += [send] * 2
    pairs, _ = make(tmp_path, f"{url}/get?shard={{0..1}}")
    assert len(set(pairs.images["archive"])) == 2
    for row in pairs.images.itertuples():
        with Archive(Path(row.archive)) as archive:
            assert archive.read(row.member) == image_bytes(int(row.member[:9]))
    make(tmp_path, f"{url}/get?shard={{0..1}}")
    assert len(handler.requests) == 2


@pytest.mark.parametrize("end", ["", "/", "/a/", "/a/..", "/.", "/?shard=0", "/a/..?x#y"])
def test_a_url_that_names_no_file_is_refused_before_anything_is_fetched(tmp_path, server, end):
    url, _, handler = server
    with pytest.raises(InputError, match="names no file") as error:
        make(tmp_path, [f"{url}/00000.tar", f"{url}{end}"])
    assert "download.webdataset.shards" in error.value.fix
    assert handler.requests == []
    with pytest.raises(InputError, match="names no file"):
        fetch_shard(f"{url}{end}", tmp_path)


@pytest.mark.parametrize("address", ["http://[bad/0.tar", "http://h/a\0.tar"])
def test_a_url_that_is_none_is_refused(address):
    with pytest.raises(InputError, match=r"is not a URL|names no file"):
        find_shards(address)


def test_a_url_may_have_a_long_name(tmp_path, shards, server):
    url, folder, _ = server
    name = "n" * 240 + ".tar"
    (folder / name).write_bytes((shards / "00000.tar").read_bytes())
    pairs, _ = make(tmp_path, f"{url}/{name}?token={'t' * 900}")
    assert len(pairs.images) == 3


def test_a_shard_that_cannot_be_fetched_is_named(tmp_path, server):
    with pytest.raises(DownloadError, match="404") as error:
        make(tmp_path, f"{server[0]}/00000.tar")
    assert "download.webdataset.shards" in error.value.fix


def test_the_stage_reads_shards(tmp_path, shards, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = {"images": 100, "captions_per_image": 1, "sentences": 100, "sts_pairs": 300}
    own = {"pairs": "webdataset", "scenes": small}
    write_params(tmp_path, {"download": own})
    assert_clear_error(invoke("download"), "needs webdataset.shards")
    write_params(tmp_path, {"download": own | {"webdataset": {"shards": "cc/{00000..00001}.tar"}}})
    result = invoke("download")
    assert result.exit_code == 0, result.output
    assert json.loads(Path("reports/download.json").read_text())["pairs"]["shards"] == 2


def test_fetched_shards_are_kept_where_the_environment_says(tmp_path, shards, server, monkeypatch):
    """A path in the copy of the project that an experiment runs in would go with it."""
    url, folder, _ = server
    (folder / "0.tar").write_bytes((shards / "00000.tar").read_bytes())
    small = {"images": 100, "captions_per_image": 1, "sentences": 100, "sts_pairs": 300}
    own = {"pairs": "webdataset", "scenes": small, "webdataset": {"shards": f"{url}/0.tar"}}
    (tmp_path / "copy").mkdir()
    write_params(tmp_path / "copy", {"download": own})
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv("KDMCSE_DOWNLOADS", str(tmp_path / "kept"))
    result = invoke("download")
    assert result.exit_code == 0, result.output
    archives = read_pairs(Path("data/pairs")).images["archive"]
    assert all(Path(path).is_relative_to(tmp_path / "kept") for path in archives)
    assert not Path("data/downloads").exists()
    assert paths.KEPT["KDMCSE_DOWNLOADS"] == paths.DOWNLOADS  # what stages.grid sets


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
            write_webdataset_pairs(pair_rows, params, SPLITS, tmp_path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.3 * peaks[1]
    assert len(read_pairs(tmp_path / "pairs").images) == 4_000
