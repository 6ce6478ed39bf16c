"""Every reader of untrusted bytes, with seeds to break."""

import asyncio
import io
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torchvision.transforms import PILToTensor

from pipeline.core.checksums import write_checksums
from pipeline.core.errors import InputError
from pipeline.download.archives import Archive
from pipeline.download.caption_table import read_rows
from pipeline.download.fetch import fetch
from pipeline.download.image_tables import add_tables
from pipeline.download.karpathy import read_karpathy
from pipeline.download.packed_images import Rejection
from pipeline.download.pairing import write_rows_to
from pipeline.download.parquet import ParquetRows
from pipeline.download.records import (
    read_pairs,
    read_sts,
    read_transfer,
    write_pairs,
    write_sts,
    write_transfer,
)
from pipeline.download.sentences import read_sentences_file
from pipeline.download.senteval import read_cased_benchmark, read_mteb_sts, read_senteval
from pipeline.download.sources import RemoteFile
from pipeline.download.webdataset import read_shard as read_web_shard
from pipeline.features.cache import read_shard
from pipeline.features.images import Decoder
from pipeline.features.imported import _read_vectors
from pipeline.features.store import read_features
from pipeline.search.app.upload import read_upload
from pipeline.search.thumbnails import shrink
from tests.download.conftest import download_params
from tests.download.test_senteval import cased_files, mteb_pairs, small_files
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
        *_vectors(),
        *_records(folder),
        *_features(folder),
        _pictures(),
        Target(
            "fetch notes",
            "download",
            [b'{"file.txt x": "0"}'],
            [b"content"],
            _place_fetched,
            _fetch,
            _JSON,
            accepts=lambda found: found == b"content",
        ),
        _uploads(),
    ]
    return {target.name: target for target in made}


def put(name: str) -> Callable[[Path, bytes], object]:
    """Writes the bytes to a file of the folder."""
    return lambda folder, content: (folder / name).write_bytes(content)


def _archives() -> Iterator[Target]:
    known = {*seeds.FILES.values(), b""}

    def is_known(found: object) -> bool:
        """Every member of a zip is what its checksum says."""
        return isinstance(found, dict) and set(found.values()) <= known

    yield Target(
        "zip",
        "download",
        seeds.zips(),
        [seeds.FILES] * 2,
        put("archive"),
        _read_archive,
        _ZIP,
        accepts=is_known,
    )
    long = seeds.FILES | {seeds.LONG_NAME: b"long name"}
    plain, packed = [seeds.FILES, long, long], [seeds.FILES] * 3
    yield Target("tar", "download", seeds.tars(), plain, put("archive"), _read_archive, _TAR)
    yield Target(
        "packed tar", "download", seeds.packed_tars(), packed, put("archive"), _read_archive, _TAR
    )
    samples = {
        "a": (None, ["a caption"]),
        "b/c": ("b/c.jpg", [""]),
        "d": (None, ["two"]),
    }
    yield Target(
        "webdataset shard",
        "download",
        [*seeds.tars(), *seeds.packed_tars()],
        [samples, *[samples | {seeds.LONG_NAME: (None, [""])}] * 2, *[samples] * 3],
        put("0.tar"),
        _read_web_shard,
        (*_TAR, *_JSON),
    )


def _read_archive(folder: Path) -> dict[str, bytes]:
    with Archive(folder / "archive") as archive:
        return {name: archive.read(name) for name in archive.sizes}


def _read_web_shard(folder: Path) -> dict[str, tuple[str | None, list[str]]]:
    samples = read_web_shard(folder / "0.tar", download_params().splits)
    return {key: (sample.image, sample.captions) for key, sample in samples.items()}


def _texts(folder: Path) -> Iterator[Target]:
    archive = folder / "images.zip"
    archive.write_bytes(seeds.make_zip({"0.jpg": b"0", "x/1.jpg": b"1"}))

    def place(work: Path, content: bytes) -> None:
        put("caption_datasets.zip")(work, seeds.make_zip({"dataset_coco.json": content}))

    def read(work: Path) -> list[tuple[object, ...]]:
        write_pairs(
            work / "pairs", *read_karpathy(work / "caption_datasets.zip", "coco", [archive])
        )
        return _rows_of_pairs(work / "pairs")

    rows = [
        (0, "train", "images.zip", "0.jpg", "a dog 0"),
        (0, "train", "images.zip", "0.jpg", "it runs"),
        (1, "train", "images.zip", "x/1.jpg", "a dog 1"),
        (1, "train", "images.zip", "x/1.jpg", "it runs"),
    ]
    yield Target("karpathy json", "download", seeds.karpathy(), [rows], place, read, _JSON)
    text, sentences = b"One.\n\nTwo \xc3\xa9.\n", ["One.", "Two \u00e9."]
    yield Target(
        "wiki text",
        "download",
        [text],
        [sentences],
        put("wiki.txt"),
        lambda work: read_sentences_file(work / "wiki.txt", "write it again."),
        _WORDS,
    )
    tasks = (*_WORDS, b"\t", b"nan", b"inf", b"-1", b"6", b"\r\n")
    for name, expected in _TASK_FILES.items():
        yield Target(
            f"senteval {name}",
            "download",
            [small_files()[name]],
            [[expected]],
            _place_senteval(name),
            _rows_like(expected),
            tasks,
        )
    cased = "stsbenchmark/sts-test.csv"
    sentences = ('Isn\'t "it" \u00c9l?', "It is.", 4.6)
    yield Target(
        "mteb pairs",
        "download",
        [mteb_pairs(4.75)],
        [[("STS12", "all", "test", "A b.", "C", 4.75)]],
        put("sts12-sts-test.jsonl.gz"),
        _read_mteb,
        tasks,
    )
    yield Target(
        "cased STS-B",
        "download",
        [cased_files()[cased]],
        [[("STS-B-cased", "news", split, *sentences) for split in _CASED_SPLITS]],
        lambda work, content: put("cased.tar")(
            work, seeds.make_tar(cased_files() | {cased: content})
        ),
        _read_cased,
        tasks,
    )


_CASED_SPLITS = ("train", "train", "dev", "test")


def _rows_of_pairs(folder: Path) -> list[tuple[object, ...]]:
    pairs = read_pairs(folder)
    joined = pairs.images.merge(pairs.captions, on="image_id").sort_values("caption_id")
    columns = ["image_id", "split", "archive", "member", "caption"]
    return list(joined[columns].itertuples(index=False, name=None))


_PAIR = ("a b", "c d")
_TASK_FILES: dict[str, tuple[object, ...]] = {
    "STS/STS12-en-test/STS.gs.MSRpar.txt": ("STS12", "MSRpar", "test", *_PAIR, 2.5),
    "STS/STS12-en-test/STS.input.MSRpar.txt": ("STS12", "MSRpar", "test", *_PAIR, 2.5),
    "SICK/SICK_trial.txt": ("SICK-R", "SICK", "dev", "A b", "C", 4.5),
    "TREC/train_5500.label": ("TREC", "train", "How ?", None, 1),
    "MRPC/msr_paraphrase_test.txt": ("MRPC", "test", "l\u00e0", "b", 1),
}
"""The row that each of them gives."""


def _place_senteval(name: str) -> Callable[[Path, bytes], object]:
    return lambda work, content: put("senteval.tar")(
        work, seeds.make_tar(small_files() | {name: content})
    )


def _rows_like(row: tuple[object, ...]) -> Callable[[Path], object]:
    """A reader of all tasks that gives the rows of one task and split."""

    def read(work: Path) -> list[tuple[object, ...]]:
        sts, transfer = read_senteval(work / "senteval.tar")
        write_sts(work, sts)
        write_transfer(work, transfer)
        tables = (read_sts(work), read_transfer(work))
        filled = (table.astype(object).where(table.notna(), None) for table in tables)
        rows = itertools.chain(*(table.itertuples(index=False, name=None) for table in filled))
        key = row[: len(row) - 3]
        return [one for one in rows if one[: len(key)] == key]

    return read


def _read_cased(work: Path) -> list[tuple[object, ...]]:
    write_sts(work, read_cased_benchmark(work / "cased.tar"))
    return list(read_sts(work).itertuples(index=False, name=None))


def _read_mteb(work: Path) -> list[tuple[object, ...]]:
    write_sts(work, read_mteb_sts([work / "sts12-sts-test.jsonl.gz"]))
    return list(read_sts(work).itertuples(index=False, name=None))


def _vectors() -> Iterator[Target]:
    """Vectors of an import."""
    rows = [[1.0, 2.5], [0.5, -4.0]]
    for ending, content in seeds.vectors(rows).items():

        def read(work: Path, name: str = f"v{ending}") -> list[list[float]]:
            return list(_read_vectors(work / name, "embedding", "image").tolist())

        tokens = (b"descr", b"<f4", b"|O", b"shape", b"9" * 30, b"\n", b"(", *_PARQUET)
        yield Target(
            f"imported {ending}", "features", [content], [rows], put(f"v{ending}"), read, tokens
        )


def _tables() -> Iterator[Target]:
    params = download_params(folder={"split_column": None}).folder
    rows = [("a.jpg", ['a "dog", \u00e9']), ("b.jpg", ["two\nlines"])]
    for ending, found in seeds.tables().items():
        expected = [rows, [("a", ["x", "y"])] * 50][: len(found)]

        def read(work: Path, name: str = f"table{ending}") -> list[tuple[str, list[str]]]:
            return [(row.image, row.captions) for row in read_rows(work / name, params)]

        tokens = _PARQUET if ending == ".parquet" else _JSON
        yield Target(
            f"captions {ending}", "download", found, expected, put(f"table{ending}"), read, tokens
        )
    rows = [(0, b"image", "a"), (0, b"image", "b"), (1, b"other", "")]
    yield Target(
        "hub parquet",
        "download",
        seeds.hub_tables(),
        [rows[:2], rows],
        put("0.parquet"),
        _read_hub,
        _PARQUET,
    )


def _records(folder: Path) -> Iterator[Target]:
    """Tables of our own, behind their checksums."""
    sound = folder / "pairs"
    images = {"image_id": [0, 1], "split": ["train"] * 2, "archive": ["a.zip"] * 2}
    captions = {"caption_id": [0, 1], "image_id": [0, 1], "caption": ["a dog", "two caf\u00e9s"]}
    members = {"member": ["0.jpg", "1.jpg"]}
    write_pairs(sound, pd.DataFrame(images | members), pd.DataFrame(captions))
    rows = [
        (0, "train", "a.zip", "0.jpg", "a dog"),
        (1, "train", "a.zip", "1.jpg", "two caf\u00e9s"),
    ]
    for name in ("images.parquet", "captions.parquet"):

        def place(work: Path, content: bytes, name: str = name) -> None:
            shutil.copytree(sound, work / "pairs", dirs_exist_ok=True)
            put(name)(work / "pairs", content)
            write_checksums(work / "pairs", name)

        yield Target(
            f"{name} of pairs sealed again",
            "all stages",
            [(sound / name).read_bytes()],
            [rows],
            place,
            lambda work: _rows_of_pairs(work / "pairs"),
            _PARQUET,
        )


def _read_hub(work: Path) -> list[tuple[object, bytes, object]]:
    target = work / "out"
    shutil.rmtree(target, ignore_errors=True)
    params = download_params()
    with write_rows_to(target, params.splits) as rows:
        add_tables(rows, [ParquetRows(work / "0.parquet", "0.parquet")], params.hub)
    found = _rows_of_pairs(target)
    with Archive(target / "0.zip") as archive:
        return [(image, archive.read(str(member)), text) for image, _, _, member, text in found]


def _features(folder: Path) -> Iterator[Target]:
    path, shard = seeds.make_features(folder / "features")
    everything = (seeds.ROWS.tobytes(), seeds.ROWS[:2].tobytes(), [0, 1] * 4)
    for name, file, expected, read in (
        ("features.h5", path, everything, _read_features),
        ("shard of features", shard, seeds.ROWS[:4].tobytes(), _read_shard),
    ):
        yield Target(
            name,
            "features",
            [file.read_bytes()],
            [expected],
            put(file.name),
            read,
            (b"\nsha256 ", b"\x89HDF\r\n\x1a\n", b"0" * 64),
            accepts=lambda found, expected=expected: found == expected,
            guarded=True,
        )


def _read_features(work: Path) -> tuple[bytes, bytes, list[int]]:
    found = read_features(work / "features.h5", seeds.TEACHER, "corpus")
    rows = (np.asarray(one).tobytes() for one in (found.captions, found.images))
    return (*rows, found.caption_image.tolist())


def _read_shard(work: Path) -> bytes:
    return read_shard(next(work.glob("*-*.h5"))).tobytes()


def _pictures() -> Target:
    made, lying = seeds.images()
    upright, turned = ["red blue", "red blue"], ["red red", "blue blue"]
    return Target(
        "picture",
        "features",
        [*made, lying],
        [(upright, upright)] * len(made) + [(turned, turned)],
        put("picture"),
        _read_picture,
        _IMAGE,
    )


def _read_picture(work: Path) -> tuple[list[str], list[str]]:
    """The colours of its quarters, as decoded for a teacher, and as shown to people."""
    content = (work / "picture").read_bytes()
    pixels, file = (_used(one) for one in (_DECODE(content), shrink(content, 16)))
    small = np.asarray(Image.open(io.BytesIO(file)))
    return _colours(pixels.permute(1, 2, 0).numpy()), _colours(small)


def _used(found: object) -> Any:
    if isinstance(found, Rejection):
        said = judge(found.detail)
        assert said == CLEAR, said
        raise InputError(found.detail, "use another picture.")
    return found


def _colours(pixels: np.ndarray) -> list[str]:
    """Of the middles of the four quarters, row by row."""
    height, width, _ = pixels.shape
    rows = (pixels[height * row // 4, [width // 4, width * 3 // 4]] for row in (1, 3))
    return [" ".join("red" if one[0] > one[2] else "blue" for one in row) for row in rows]


def _scale(picture: Image.Image) -> torch.Tensor:
    return PILToTensor()(picture.resize((16, 16)))


_DECODE = Decoder(_scale, 16)


def _place_fetched(work: Path, content: bytes) -> None:
    mirror = work / "mirror"
    mirror.mkdir(exist_ok=True)
    put("file.txt")(mirror, b"content")
    put("file.txt")(work, b"content")
    put("checksums.json")(work, content)


def _fetch(work: Path) -> bytes:
    file = RemoteFile("file.txt", "http://127.0.0.1:9/", 0)
    return fetch(file, work, str(work / "mirror")).read_bytes()


def _uploads() -> Target:
    picture = seeds.images()[1]
    head = b'--b\r\nContent-Disposition: form-data; name="picture"; filename="a.jpg"\r\n\r\n'
    return Target(
        "upload",
        "app",
        [head + picture + b"\r\n--b--\r\n"],
        [picture],
        put("body"),
        _upload,
        (b"\r\n", b"--b", b"--", b"filename=", b'"'),
    )


def _upload(work: Path) -> bytes:
    from starlette.requests import Request

    content = (work / "body").read_bytes()

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": content, "more_body": False}

    headers = [(b"content-type", b"multipart/form-data; boundary=b")]
    scope = {"type": "http", "method": "POST", "headers": headers}
    return asyncio.run(read_upload(Request(scope, receive)))
