"""Small valid files of every format that is read, made by those who write it."""

import contextlib
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, features

from pipeline.features.cache import FeatureCache, text_keys
from pipeline.features.identity import TeacherIdentity
from pipeline.features.store import Features, write_features
from pipeline.params.teacher import TeacherParams

LONG_NAME = "n" * 150 + "\u00e9"
FILES = {"a.txt": b"a caption", "b/c.jpg": bytes(range(64)), "d.json": b'{"caption": "two"}'}
IDENTITY = TeacherIdentity(
    "ViT-B-32", "openai", "", "a" * 64, "w" * 64, "Resize", "t" * 64, "open_clip", "float32"
)
TEACHER = TeacherParams(model="ViT-B-32", pretrained="openai")
ROWS = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float16)


def zips() -> list[bytes]:
    """Stored and deflated."""
    return [make_zip(FILES, kind) for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)]


def make_zip(files: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of files."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", kind) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, kind)
    return stream.getvalue()


def make_tar(files: dict[str, bytes], mode: str = "w", kind: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of files."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode, format=kind) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def tars() -> list[bytes]:
    """Plain, and of each dialect."""
    long = FILES | {LONG_NAME: b"long name"}
    kinds = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)
    return [make_tar(FILES, kind=tarfile.USTAR_FORMAT)] + [make_tar(long, kind=k) for k in kinds]


def packed_tars() -> list[bytes]:
    """Compressed in each way."""
    return [make_tar(FILES, f"w:{kind}") for kind in ("gz", "bz2", "xz")]


def karpathy() -> list[bytes]:
    """The json of two images."""
    images = [
        {
            "imgid": number,
            "split": split,
            "filename": f"{number}.jpg",
            "sentences": [{"raw": f"a dog {number}"}, {"raw": "it runs"}],
        }
        for number, split in enumerate(("train", "restval"))
    ]
    return [json.dumps({"images": images}).encode()]


def tables() -> dict[str, list[bytes]]:
    """Captions of two images, by the ending of the file."""
    rows = [("a.jpg", 'a "dog", é'), ("b.jpg", "two\nlines")]
    csv = 'image,caption\na.jpg,"a ""dog"", é"\nb.jpg,"two\nlines"\n'
    lines = "".join(json.dumps({"image": i, "caption": [c]}) + "\n" for i, c in rows)
    coco = {
        "images": [{"id": number, "file_name": i} for number, (i, _) in enumerate(rows)],
        "annotations": [{"image_id": number, "caption": c} for number, (_, c) in enumerate(rows)],
    }
    table = pa.table({"image": [i for i, _ in rows], "caption": [c for _, c in rows]})
    lists = pa.table({"image": ["a"] * 50, "caption": [["x", "y"]] * 50})
    return {
        ".csv": [csv.encode()],
        ".tsv": [csv.replace("e,c", "e\tc").replace(',"', '\t"').encode()],
        ".jsonl": [lines.encode()],
        ".json": [f"[{','.join(lines.splitlines())}]".encode()],
        ".coco.json": [json.dumps(coco).encode()],
        ".parquet": [_parquet(table), _parquet(lists)],
    }


def hub_tables() -> list[bytes]:
    """Images in a struct, as the hub has them, and as plain bytes."""
    structs = [{"bytes": b"image", "path": "a.png"}, {"bytes": None, "path": None}]
    both = (structs, [b"image", b"other"])
    return [_parquet(pa.table({"image": one, "caption": [["a", "b"], None]})) for one in both]


def vectors(rows: list[list[float]]) -> dict[str, bytes]:
    """Vectors by the ending of the file."""
    stream = io.BytesIO()
    np.save(stream, np.array(rows, np.float32))
    cells = pa.array(rows, pa.list_(pa.float32()))
    return {".npy": stream.getvalue(), ".parquet": _parquet(pa.table({"embedding": cells}))}


def _parquet(table: pa.Table) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream, compression="snappy")
    return stream.getvalue()


def images() -> tuple[list[bytes], bytes]:
    """A picture in every format and mode that is decoded, red on its left and blue on its right.

    The last one alone lies on its side, with the note that says so.
    """
    noise = np.random.default_rng(0).integers(0, 40, (20, 30, 4), dtype=np.uint8)
    noise[:, :15, 0] += 200
    noise[:, 15:, 2] += 200
    noise[..., 3] += 200
    rgb, rgba = Image.fromarray(noise[..., :3]), Image.fromarray(noise)
    kinds = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"]
    kinds += [
        kind for kind, name in (("AVIF", "avif"), ("JPEG2000", "jpg_2000")) if features.check(name)
    ]
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
        kinds.append("HEIF")
    made = [_save(rgb, kind) for kind in kinds]
    made += [_save(rgb.convert("CMYK"), "JPEG"), _save(rgb, "JPEG", progressive=True)]
    made += [
        _save(rgba, "PNG"),
        _save(rgb.convert("P"), "PNG"),
        _save(rgba, "ICO", sizes=[(16, 16)]),
    ]
    made += [_save(rgb, "TIFF", compression=kind) for kind in ("tiff_lzw", "jpeg", "tiff_deflate")]
    more = {"save_all": True, "append_images": [rgb.rotate(180)]}
    made += [_save(rgb, kind, **more) for kind in ("GIF", "WEBP", "TIFF", "PNG")]
    exif = Image.Exif()
    exif[0x0112] = 6
    return made, _save(rgb, "JPEG", exif=exif)


def _save(picture: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def make_features(folder: Path) -> tuple[Path, Path]:
    """A feature file over two shards of a cache, and the first of them."""
    cache = FeatureCache(folder / "store", IDENTITY, np.ones((2, 4), np.float32))
    keys = text_keys([str(row) for row in range(8)])
    shards = [
        cache.write("captions", keys[start : start + 4], ROWS[start : start + 4])
        for start in (0, 4)
    ]
    cache.write("images", keys[:2], ROWS[:2])
    ids = np.arange(8)
    captions = cache.rows("captions", keys)
    features = Features(cache.rows("images", keys[:2]), ids[:2], captions, ids, ids % 2)
    write_features(folder / "features.h5", features, IDENTITY, "corpus")
    return folder / "features.h5", shards[0]
