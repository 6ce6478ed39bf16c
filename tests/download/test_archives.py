"""Archives: members in memory, bounds, and what is damage and what is not."""

import io
import os
import resource
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from pipeline.core.errors import InputError, ResourceError
from pipeline.download import archives
from pipeline.download.archives import Archive


def write_tar(path: Path, *members: tuple[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return path


def write_zip(path: Path, *members: tuple[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.mkdir("d")
        for name, content in members:
            archive.writestr(name, content)
    return path


@pytest.fixture(params=["zip", "tar", "tar.gz"])
def packed(request, tmp_path):
    path, two = tmp_path / f"a.{request.param}", ("../two.txt", b"2")
    if request.param == "zip":
        return write_zip(path, ("d/one.txt", b"1" * 1000), two)
    mode = "w:gz" if request.param == "tar.gz" else "w"
    return write_tar(path, ("./d/one.txt", b"1" * 1000), two, mode=mode)


def test_members_are_read_into_memory_only(packed, tmp_path):
    with Archive(packed) as archive:
        assert set(archive.sizes) == {"d/one.txt", "../two.txt"}  # no links, no folders
        assert archive.read("d/one.txt") == b"1" * 1000
        assert archive.read("../two.txt") == b"2"
        with pytest.raises(KeyError):
            archive.read("link")
    assert [path.name for path in tmp_path.iterdir()] == [packed.name]


def test_a_member_that_is_too_large_is_refused(packed, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 999)
    with Archive(packed) as archive, pytest.raises(InputError, match="unpacks to 1,000 bytes"):
        archive.read("d/one.txt")


def test_a_tar_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    sizes = {"small": 10, "zeros": 2_000_000, "after": 10}
    members = ((name, bytes(size)) for name, size in sizes.items())
    path = write_tar(tmp_path / "bomb.tar.gz", *members, mode="w:gz")
    with Archive(path) as archive:
        assert archive.sizes == sizes  # small enough by MAX_MEMBER_BYTES
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 1_000_000)
    found, find = [], tarfile.TarFile.next
    monkeypatch.setattr(tarfile.TarFile, "next", lambda tar: found.append(find(tar)) or found[-1])
    with pytest.raises(InputError, match="with zeros it unpacks to more than") as error:
        Archive(path)
    assert "bomb.tar.gz" in error.value.what
    assert {info.name for info in found} == {"small", "zeros"}  # "after" lies behind the zeros


@pytest.mark.parametrize("fraction", [0, 0.03, 0.06])
def test_truncation_is_named(packed, fraction):
    """Within the first member; the padding at a tar's end may be missing without loss."""
    content = packed.read_bytes()
    packed.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(InputError, match=packed.name), Archive(packed) as archive:
        for member in ("d/one.txt", "../two.txt", "missing"):
            archive.sizes[member] = archive.sizes.get(member, 1000)
            archive.read(member)


def test_of_members_with_one_name_the_last_counts(tmp_path):
    members = ("./a.txt", b"first"), ("b.txt", b"other"), ("a.txt", b"last")
    with Archive(write_tar(tmp_path / "a.tar", *members)) as archive:
        assert archive.read("a.txt") == b"last"
        assert (archive.repeated, list(archive.sizes)) == (1, ["a.txt", "b.txt"])


@pytest.mark.parametrize("change", [lambda c: c[:2048], lambda c: c[:2048] + b"\xff" * 512])
def test_a_tar_must_end_as_tars_do(tmp_path, change):
    """tarfile itself takes both a missing and a damaged header for the end."""
    path = write_tar(tmp_path / "a.tar", *((name, b"12345") for name in "abc"))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match="no member and no end at byte 2,048"):
        Archive(path)


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_damage_in_a_compressed_tar_is_named(tmp_path, mode):
    path = write_tar(tmp_path / "a.tar", ("a", os.urandom(50_000)), mode=mode)
    content = bytearray(path.read_bytes())
    content[20_000:24_096] = bytes(4096)
    path.write_bytes(content)
    with (
        pytest.raises(InputError, match=r"a\.tar.* is damaged or truncated"),
        Archive(path) as archive,
    ):
        archive.read("a")


@pytest.mark.parametrize("closed", ["", "sub"])
def test_an_archive_that_may_not_be_read_is_not_called_damaged(packed, open_folder, locked, closed):
    (open_folder / "sub").mkdir()
    path = Path(shutil.copy(packed, open_folder / "sub"))
    words = rf"{packed.name} cannot be read: permission denied"
    with (
        locked(open_folder / closed if closed else path),
        pytest.raises(ResourceError, match=words),
    ):
        Archive(path)


def test_a_disk_that_fails_is_not_called_damage(tmp_path):
    """/proc/self/mem is a file whose first bytes cannot be read."""
    (tmp_path / "0.tar").symlink_to("/proc/self/mem")
    with pytest.raises(ResourceError, match=r"0\.tar cannot be read: input/output error") as error:
        Archive(tmp_path / "0.tar")
    assert "run the same command again" in error.value.fix


def test_too_many_open_files_are_not_called_damage(packed):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with packed.open("rb") as stream:
        resource.setrlimit(resource.RLIMIT_NOFILE, (stream.fileno() + 1, limits[1]))
        try:
            with pytest.raises(ResourceError, match="too many open files") as error:
                Archive(packed)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "ulimit -n" in error.value.fix


def test_a_zip_that_points_before_its_start_is_damaged(tmp_path):
    """The seek fails then, which is the archive's fault and not the disk's."""
    path = write_zip(tmp_path / "a.zip", ("a", b"12345"))
    content = path.read_bytes()
    path.write_bytes(content[content.index(b"PK\1\2") :])
    with pytest.raises(InputError, match="is damaged"), Archive(path) as archive:
        archive.read("a")
