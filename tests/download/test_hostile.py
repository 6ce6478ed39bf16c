"""Archives and captions made to do harm: nothing leaves the folder, grows, or is run."""

import io
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest
import torch

from pipeline.core.errors import InputError
from pipeline.download import archives
from pipeline.download.archives import Archive, pack
from pipeline.download.captions import clean_caption
from pipeline.download.pairing import write_rows_to
from pipeline.download.records import read_pairs
from pipeline.download.webdataset import read_shard
from pipeline.features.teacher import Teacher
from pipeline.index.format import Hit
from pipeline.params.teacher import TeacherParams
from pipeline.search.gallery import save_gallery
from pipeline.search.searcher import Answer
from pipeline.student.encoder import SentenceEncoder
from tests.conftest import ROOT, TINY
from tests.download.conftest import image_bytes

CPU = torch.device("cpu")
KINDS = {
    "link": (tarfile.SYMTYPE, "/etc/passwd"),
    "hard": (tarfile.LNKTYPE, "../../secret"),
    "device": (tarfile.CHRTYPE, ""),
    "pipe": (tarfile.FIFOTYPE, ""),
    "folder": (tarfile.DIRTYPE, ""),
}


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "data/0.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as archive:
        for name, (kind, target) in KINDS.items():
            info = tarfile.TarInfo(f"{name}.jpg")
            info.type, info.linkname = kind, target
            archive.addfile(info)
        for name in ("../../out.txt", "/abs/out.txt", "a/../../../out.jpg", "\u202e\x1b[31m.txt"):
            info = tarfile.TarInfo(name)
            info.size = 4
            archive.addfile(info, io.BytesIO(b"text"))
    return path


def test_a_shard_writes_nothing_and_follows_nothing(shard, tmp_path):
    (tmp_path / "secret").write_text("secret")
    before = sorted(tmp_path.rglob("*"))
    samples = read_shard(shard, None)
    assert sorted(tmp_path.rglob("*")) == before
    assert not set(KINDS) & set(samples)
    assert {sample.captions[0] for sample in samples.values()} == {"text", ""}


def test_names_in_other_encodings_are_members(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        info = tarfile.TarInfo("\xe9\xff.txt")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"x"))
    with Archive(path) as archive:
        (name,) = archive.sizes
        assert archive.read(name) == b"x"
    assert len(read_shard(path, None)) == 1


def overlapping(members: int, content: bytes) -> bytes:
    """A zip whose directory names one and the same bytes many times."""
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = packed.compress(content) + packed.flush()
    about = (8, 0, 0, zlib.crc32(content), len(body), len(content), 1)
    local = struct.pack("<4s2H5H", b"PK\3\4", 20, 0, 8, 0, 0, 0, 0)[:10]
    local += struct.pack("<2H3I2H", 0, 0, *about[3:6], 1, 0) + b"a"
    directory = b"".join(
        struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 8, 0, 0, *about[3:6], 6, 0, 0, 0, 0, 0, 0)
        + f"{number:06d}".encode()
        for number in range(members)
    )
    start = len(local) + len(body)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, members, members, len(directory), start, 0)
    return local + body + directory + end


def test_a_zip_whose_members_share_their_bytes_is_read_one_at_a_time(tmp_path):
    (tmp_path / "a.zip").write_bytes(overlapping(1000, bytes(1 << 20)))
    with Archive(tmp_path / "a.zip") as archive:
        assert len(archive.sizes) == 1000
        with pytest.raises(InputError, match="damaged or truncated"):
            archive.read("000001")  # the name before the bytes is another


def test_a_zip_within_a_zip_is_only_bytes(tmp_path):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(50 << 20))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("inner.zip", inner.getvalue())
    with Archive(tmp_path / "a.zip") as archive:
        assert archive.sizes == {"inner.zip": len(inner.getvalue())}
        assert archive.read("inner.zip") == inner.getvalue()


@pytest.mark.parametrize("claimed", [10, 1 << 31])
def test_a_member_that_lies_about_its_size(tmp_path, monkeypatch, claimed):
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 1 << 20)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(64 << 20))
    content = stream.getvalue().replace(struct.pack("<I", 64 << 20), struct.pack("<I", claimed))
    (tmp_path / "a.zip").write_bytes(content)
    with Archive(tmp_path / "a.zip") as archive, pytest.raises(InputError, match=r"a\.zip: a "):
        archive.read("a")


CAPTIONS = [
    "a\0b",
    "\x1b[31mred\x1b]0;title\x07",
    "\x9b31m c1",
    "right \u202eot tfel\u202c",
    "<script>alert(1)</script>",
    "w " * 500_000,
    "x" * 500_000,
    "\ud800 half",
    "",
]


def test_a_teacher_and_a_student_read_any_caption():
    teacher = Teacher(TeacherParams(model=TINY["teacher"]["model"]), CPU)
    tokens = teacher.tokenize(CAPTIONS)
    assert len(tokens.ids) == len(CAPTIONS)
    student = SentenceEncoder.load(ROOT / "data/demo/student", pooling="mean")
    ids = student.tokenize_all([clean_caption(caption) for caption in CAPTIONS]).ids
    assert len(ids) == len(CAPTIONS)
    assert max(map(len, ids)) <= student.max_length


def test_a_gallery_shows_captions_as_text(tmp_path):
    script = CAPTIONS[4]
    with pack(tmp_path / "a.zip") as packer, write_rows_to(tmp_path) as rows:
        packer.add(script, image_bytes(1))
        rows.add("test", "a.zip", script, [script])
    hits = [Hit(1, 0.5, "caption", 0, script, 1, "a.zip", name) for name in (script, "gone")]
    corpus = read_pairs(tmp_path).fingerprint()
    save_gallery(tmp_path / "page.html", [Answer(script, hits)], tmp_path, corpus)
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 5  # title, heading, two captions, one description
    assert "gone: missing" in page
