"""Archives and captions made to do harm: nothing leaves the folder, grows, or is run."""

import io
import struct
import tarfile
import zipfile

import pytest
import torch

from pipeline.core.errors import InputError
from pipeline.download import archives
from pipeline.download.archives import Archive, pack
from pipeline.download.pairing import clean_caption, write_rows_to
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

KINDS = {
    "link": (tarfile.SYMTYPE, "/etc/passwd"),
    "hard": (tarfile.LNKTYPE, "../../secret"),
    "device": (tarfile.CHRTYPE, ""),
    "pipe": (tarfile.FIFOTYPE, ""),
    "folder": (tarfile.DIRTYPE, ""),
}


def test_a_shard_writes_nothing_and_follows_nothing(tmp_path):
    path = tmp_path / "data/0.tar"
    path.parent.mkdir()
    (tmp_path / "secret").write_text("secret")
    with tarfile.open(path, "w", encoding="latin-1") as archive:
        for name, (kind, target) in KINDS.items():
            info = tarfile.TarInfo(f"{name}.jpg")
            info.type, info.linkname = kind, target
            archive.addfile(info)
        for name in (
            "../../out.txt",
            "/abs/out.txt",
            "a/../../../x.txt",
            "\x1b[31m.txt",
            "\xff.txt",
        ):
            info = tarfile.TarInfo(name)
            info.size = 4
            archive.addfile(info, io.BytesIO(b"text"))
    before = sorted(tmp_path.rglob("*"))
    samples = read_shard(path, None)
    assert sorted(tmp_path.rglob("*")) == before
    assert [sample.captions for sample in samples.values()] == [["text"]] * 5
    assert not {sample.image for sample in samples.values()} - {None}


@pytest.mark.parametrize("claimed", [10, 1 << 31])
def test_a_member_that_lies_about_its_size(tmp_path, monkeypatch, claimed):
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 1 << 16)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(4 << 20))
    content = stream.getvalue().replace(struct.pack("<I", 4 << 20), struct.pack("<I", claimed))
    (tmp_path / "a.zip").write_bytes(content)
    with Archive(tmp_path / "a.zip") as archive, pytest.raises(InputError, match=r"a\.zip: a "):
        archive.read("a")


CAPTIONS = [
    "a\0b",
    "\x1b[31mred\x1b]0;title\x07",
    "\x9b31m c1",
    "right \u202eot tfel\u202c",
    "<script>alert(1)</script>",
    "w " * 50_000,
    "x" * 50_000,
    "\ud800 half",
    "",
]


@pytest.mark.slow
def test_a_teacher_and_a_student_read_any_caption():
    teacher = Teacher(TeacherParams(model=TINY["teacher"]["model"]), torch.device("cpu"))
    assert len(teacher.tokenize(CAPTIONS).ids) == len(CAPTIONS)
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
