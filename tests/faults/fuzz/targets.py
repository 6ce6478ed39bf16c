"""Every reader of untrusted bytes, with seeds to break."""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline.app.upload import read_upload
from pipeline.download.archives import Archive
from pipeline.download.caption_table import read_rows
from pipeline.download.fetch import fetch
from pipeline.download.hub import Repository, _add_tables
from pipeline.download.karpathy import read_karpathy
from pipeline.download.pairing import PairRows
from pipeline.download.records import PairsWriter, write_pairs, write_sts, write_transfer
from pipeline.download.senteval import read_cased_benchmark, read_senteval
from pipeline.download.sources import RemoteFile
from pipeline.download.webdataset import read_shard as read_web_shard
from pipeline.download.wiki import read_sentences_file
from pipeline.errors import InputError
from pipeline.features.cache import read_shard
from pipeline.features.images import Decoder, Rejection, to_pixels
from pipeline.features.store import read_features
from pipeline.thumbnails import shrink
from tests.download.conftest import download_params
from tests.download.test_senteval import cased_files, small_files
from tests.faults.fuzz import seeds
from tests.faults.fuzz.runner import CLEAR, Target, judge

_WORDS = (b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\xe2\x80\xae", b"\x1b[31m", b"\n", b"9" * 400)
_JSON = (
    b"null",
    b"[]",
    b"{}",
    b"1e999",
    b"-1",
    b"NaN",
    b'"\\ud800"',
    b"true",
    b"[" * 3000,
    *_WORDS,
)
_ZIP = (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"../", b"/etc/")
_TAR = (
    b"ustar\x0000",
    b"ustar  \0",
    b"././@LongLink",
    b"path=",
    b"size=99999999999",
    b"GNU.sparse.",
)
_PARQUET = (b"PAR1", b"\x15\x00", b"\x19\x1c", b"\xff" * 8)
_IMAGE = (
    b"IHDR",
    b"IDAT",
    b"acTL",
    b"\xff\xc0",
    b"\xff\xda",
    b"ftyp",
    b"RIFF",
    b"Exif\0\0",
    b"II*\0",
)


def make_targets(folder: Path) -> dict[str, Target]:
    """All targets by name.

    Args:
        folder: for what their readers need beside the bytes.
    """
    made = [
        *_archives(),
        *_texts(folder),
        *_tables(),
        *_features(folder),
        Target("picture", "features", seeds.images(), _read_picture, _IMAGE),
        Target(
            "fetch notes",
            "download",
            [b'{"file.txt": {"sha256": "0", "address": "x"}}'],
            _fetch,
            _JSON,
        ),
        Target("upload", "app", _forms(), _upload, (b"\r\n", b"--b", b"--", b"filename=", b'"')),
    ]
    return {target.name: target for target in made}


def _archives() -> Iterator[Target]:
    yield Target("zip", "download", seeds.zips(), _read_zip, _ZIP, verified=True)
    yield Target("tar", "download", seeds.tars(), _read_archive, _TAR)
    yield Target("packed tar", "download", seeds.packed_tars(), _read_archive, _TAR)
    shards = [*seeds.tars(), *seeds.packed_tars()]
    yield Target("webdataset shard", "download", shards, _read_web_shard, (*_TAR, *_JSON))


def _read_archive(folder: Path, content: bytes) -> None:
    for _ in _members(folder, content):
        pass


def _read_zip(folder: Path, content: bytes) -> None:
    known = {*seeds.FILES.values(), b""}
    for member in _members(folder, content):
        assert member in known, "a member of a zip is not what its checksum says"


def _members(folder: Path, content: bytes) -> Iterator[bytes]:
    path = folder / "archive"
    path.write_bytes(content)
    with Archive(path) as archive:
        for name in archive.sizes:
            yield archive.read(name)


def _read_web_shard(folder: Path, content: bytes) -> None:
    (folder / "0.tar").write_bytes(content)
    read_web_shard(folder / "0.tar")


def _texts(folder: Path) -> Iterator[Target]:
    archive = folder / "images.zip"
    archive.write_bytes(seeds.make_zip({"0.jpg": b"0", "x/1.jpg": b"1"}))

    def read_json(work: Path, content: bytes) -> None:
        path = work / "caption_datasets.zip"
        path.write_bytes(seeds.make_zip({"dataset_coco.json": content}))
        images, captions = read_karpathy(path, "coco", [archive])
        write_pairs(work / "pairs", images, captions)

    yield Target("karpathy json", "download", seeds.karpathy(), read_json, _JSON)
    yield Target("wiki text", "download", [b"One.\n\nTwo \xc3\xa9.\n"], _read_wiki, _WORDS)
    tasks = (*_WORDS, b"\t", b"nan", b"inf", b"-1", b"6", b"\r\n")
    for name in _TASK_FILES:
        kept = small_files()[name]
        yield Target(f"senteval {name}", "download", [kept], _senteval(name), tasks)
    cased = cased_files()["stsbenchmark/sts-test.csv"]
    yield Target("cased STS-B", "download", [cased], _read_cased, tasks)


_TASK_FILES = (
    "STS/STS12-en-test/STS.gs.MSRpar.txt",
    "STS/STS12-en-test/STS.input.MSRpar.txt",
    "SICK/SICK_trial.txt",
    "TREC/train_5500.label",
    "MRPC/msr_paraphrase_test.txt",
)


def _senteval(name: str) -> Callable[[Path, bytes], None]:
    def read(work: Path, content: bytes) -> None:
        (work / "senteval.tar").write_bytes(seeds.make_tar(small_files() | {name: content}))
        sts, transfer = read_senteval(work / "senteval.tar")
        write_sts(work, sts)
        write_transfer(work, transfer)

    return read


def _read_cased(work: Path, content: bytes) -> None:
    files = cased_files() | {"stsbenchmark/sts-test.csv": content}
    (work / "cased.tar").write_bytes(seeds.make_tar(files))
    write_sts(work, read_cased_benchmark(work / "cased.tar"))


def _read_wiki(work: Path, content: bytes) -> None:
    (work / "wiki.txt").write_bytes(content)
    read_sentences_file(work / "wiki.txt")


def _tables() -> Iterator[Target]:
    params = download_params(folder={"split_column": None}).folder
    for ending, found in seeds.tables().items():
        tokens = _PARQUET if ending == ".parquet" else _JSON

        def read(work: Path, content: bytes, name: str = f"table{ending}") -> None:
            (work / name).write_bytes(content)
            for _ in read_rows(work / name, params):
                pass

        yield Target(f"captions {ending}", "download", found, read, tokens)
    yield Target("hub parquet", "download", seeds.hub_tables(), _read_hub, _PARQUET)


@dataclass(frozen=True)
class _AtHand(Repository):
    """A data set whose one file is here."""

    path: Path = Path()

    def fetch(self, file: str) -> Path:
        return self.path


def _read_hub(work: Path, content: bytes) -> None:
    path, target = work / "0.parquet", work / "out"
    path.write_bytes(content)
    shutil.rmtree(target, ignore_errors=True)
    params = download_params()
    at_hand = _AtHand("o/n", "c", ("0.parquet",), path)
    with PairsWriter(target) as writer, PairRows(writer) as rows:
        _add_tables(target, rows, at_hand, at_hand.files, params.hub, params.splits)


def _features(folder: Path) -> Iterator[Target]:
    for layout in ("file", "virtual"):
        path, known = seeds.make_features(folder / layout, layout)

        def read(work: Path, content: bytes) -> None:
            (work / "features.h5").write_bytes(content)
            found = read_features(work / "features.h5", seeds.TEACHER, "corpus")
            _require_equal(found.captions, seeds.ROWS)
            _require_equal(found.images, seeds.ROWS[:2])
            _require_equal(found.caption_image, np.arange(8) % 2)

        yield Target(
            f"features.h5 {layout}",
            "features",
            [path.read_bytes()],
            read,
            (b'"offset": -1',),
            verified=True,
        )
    shard = known.captions.runs.paths[0].read_bytes()
    yield Target(
        "shard of features", "features", [shard], _read_shard, (b'"rows": 9', b" "), verified=True
    )


def _read_shard(work: Path, content: bytes) -> None:
    (work / "shard.h5").write_bytes(content)
    _require_equal(read_shard(work / "shard.h5"), seeds.ROWS[:4])


def _require_equal(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.tobytes() == expected.tobytes(), "other rows than were written"


def _read_picture(_work: Path, content: bytes) -> None:
    for found in (_DECODE(content), shrink(content, 16)):
        if isinstance(found, Rejection):
            said = judge(found.detail)
            assert said == CLEAR, said
            raise InputError(found.detail, "use another picture.")
    assert isinstance(found, bytes)


def _scale(picture: Image.Image) -> torch.Tensor:
    return to_pixels(picture.resize((16, 16)))


_DECODE = Decoder(_scale, 16)


def _fetch(work: Path, content: bytes) -> None:
    mirror = work / "mirror"
    mirror.mkdir(exist_ok=True)
    (mirror / "file.txt").write_bytes(b"content")
    (work / "file.txt").write_bytes(b"content")
    (work / "checksums.json").write_bytes(content)
    found = fetch(RemoteFile("file.txt", "http://127.0.0.1:9/", 0), work, str(mirror))
    assert found.path.read_bytes() == b"content"


def _forms() -> list[bytes]:
    picture = seeds.images()[0]
    head = b'--b\r\nContent-Disposition: form-data; name="picture"; filename="a.jpg"\r\n\r\n'
    return [head + picture + b"\r\n--b--\r\n"]


def _upload(_work: Path, content: bytes) -> None:
    from starlette.requests import Request

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": content, "more_body": False}

    headers = [(b"content-type", b"multipart/form-data; boundary=b")]
    scope = {"type": "http", "method": "POST", "headers": headers}
    asyncio.run(read_upload(Request(scope, receive)))
