"""The cache: found by content, verified, shared, freed."""

import errno
import fcntl
import os
import resource
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import InputError, ResourceError
from pipeline.features.cache import (
    FeatureCache,
    KeySet,
    content_key,
    first_of_each,
    list_cached,
    prune,
    read_shard,
    text_keys,
)
from pipeline.features.hdf5 import DamagedFeaturesError
from tests.faults.ledger import record, times
from tests.features.tiny_teachers import IDENTITY

PROBE = np.array([[3.0, 4.0], [1.0, 2.0]], np.float32)


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "store", IDENTITY, PROBE)


def features_of(texts: list[str]) -> np.ndarray:
    """Features that tell the texts apart."""
    return np.array([[len(text), sum(map(ord, text))] for text in texts], np.float16)


def write(cache: FeatureCache, *texts: str) -> Path:
    path = cache.write("captions", text_keys(texts), features_of(list(texts)))
    assert path is not None
    return path


def test_rows_are_found_by_content(cache):
    write(cache, "a", "bb", "ccc")
    write(cache, "dddd", "e")
    wanted = ["e", "bb", "bb", "a"]
    rows = cache.rows("captions", text_keys(wanted))
    np.testing.assert_array_equal(rows[:], features_of(wanted))
    known = cache.known("captions")
    assert known.contains(text_keys(["a", "x", "dddd"])).tolist() == [True, False, True]
    assert not cache.known("images").contains(text_keys(["a"])).any()


def test_the_key_is_of_all_bytes():
    assert not np.array_equal(content_key(b"picture"), content_key(b"picture\0"))
    assert not np.array_equal(*text_keys(["a caption", "a caption "]))
    assert text_keys(["lone \ud800 surrogate", "", "\0"]).shape == (3, 16)


def test_equal_rows_give_an_equal_file_of_the_same_name(tmp_path):
    caches = [FeatureCache(tmp_path / name, IDENTITY, PROBE) for name in ("one", "two")]
    one, two = (write(cache, "a", "bb") for cache in caches)
    assert one.name == two.name
    assert one.read_bytes() == two.read_bytes()
    np.testing.assert_array_equal(read_shard(one), features_of(["a", "bb"]))
    assert caches[0].write("captions", text_keys([]), np.empty((0, 2), np.float16)) is None


def test_rows_that_are_gone_are_named(cache):
    write(cache, "a")
    with pytest.raises(InputError, match=r"1 captions are no longer in .*, the first in row 1"):
        cache.rows("captions", text_keys(["a", "b"]))


def test_any_flipped_bit_of_a_shard_is_noticed(cache):
    path = write(cache, "a", "bb", "ccc")
    whole, keys = path.read_bytes(), text_keys(["a", "bb", "ccc"])
    places = range(0, len(whole), times(29, 1))
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(DamagedFeaturesError, match=path.name) as error:
            read_shard(path)
        assert error.value.path == path
        assert not cache.known("captions").contains(keys).any()
        path.with_name(f"{path.name}.damaged").unlink()
    record("flipped bit", "shard of features", "one clear line", len(places))


def test_a_shard_that_is_damaged_after_its_keys_were_read_is_named(cache):
    whole = [write(cache, *texts) for texts in (("a", "bb"), ("ccc", "dddd"))]
    rows = cache.rows("captions", text_keys(["a", "ccc"]))
    for path in whole:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedFeaturesError, match="damaged") as error:
        rows[:]
    assert error.value.path in whole
    cache.drop(error.value.path)
    cache.drop(error.value.path)  # another process may have dropped it
    assert not error.value.path.exists()
    assert error.value.path.with_name(f"{error.value.path.name}.damaged").is_file()


@pytest.mark.parametrize("cut", [0, 10, 700, 2100])
def test_a_truncated_shard_is_put_aside_when_keys_are_read(cache, cut, caplog, tmp_path):
    path = write(cache, "a", "bb")
    content = path.read_bytes()[:cut]
    path.write_bytes(content)
    assert not cache.known("captions").contains(text_keys(["a"])).any()
    assert not path.exists()
    assert path.with_name(f"{path.name}.damaged").read_bytes() == content
    assert "damaged shard" in caplog.text
    caplog.clear()
    [listed] = list_cached(tmp_path / "store")
    assert (listed.captions, listed.shards, listed.bytes, listed.damaged) == (0, 0, 0, 1)
    assert "1 damaged shards, which --prune frees" in caplog.text
    prune(tmp_path / "store")
    assert not cache.folder.exists()


def test_a_shard_that_is_open_elsewhere_is_read(cache):
    """HDF5's own lock would refuse it."""
    path = write(cache, "a", "bb")
    with path.open("r+b") as viewer:
        fcntl.flock(viewer, fcntl.LOCK_EX)  # as HDF5 does
        assert cache.known("captions").contains(text_keys(["a"])).all()
        rows = cache.rows("captions", text_keys(["bb"]))
        np.testing.assert_array_equal(rows[:], features_of(["bb"]))
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["features"][:], features_of(["a", "bb"]))
        np.testing.assert_array_equal(file["keys"][:], text_keys(["a", "bb"]))


UNREADABLE = "/proc/self/mem"
"""A file that can be opened, but gives an input/output error when it is read."""


def test_a_shard_that_cannot_be_read_is_not_damaged(cache, tmp_path):
    path = write(cache, "a", "bb")
    keys = text_keys(["a"])
    path.rename(tmp_path / "away")
    path.symlink_to(UNREADABLE)
    for use in (
        lambda: cache.known("captions"),
        lambda: cache.rows("captions", keys),
        lambda: read_shard(path),
    ):
        with pytest.raises(ResourceError, match=f"{path.name} cannot be read: input"):
            use()
    path.unlink()
    (tmp_path / "away").rename(path)
    assert cache.known("captions").contains(keys).all()


def test_too_many_open_files_are_no_damage(cache):
    path = write(cache, "a", "bb")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with path.open("rb") as stream:
        resource.setrlimit(resource.RLIMIT_NOFILE, (stream.fileno() + 1, limits[1]))
        try:
            with pytest.raises(ResourceError, match="too many open files") as error:
                cache.known("captions")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "ulimit -n" in error.value.fix
    assert cache.known("captions").contains(text_keys(["a"])).all()


def test_a_probe_that_cannot_be_read_is_not_overwritten(cache, tmp_path):
    description = cache.folder / "teacher.json"
    description.unlink()
    description.symlink_to(UNREADABLE)
    with pytest.raises(ResourceError, match=r"teacher.json cannot be read"):
        FeatureCache(tmp_path / "store", IDENTITY, PROBE)
    assert description.is_symlink()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF])
def test_a_file_system_without_locks(cache, tmp_path, monkeypatch, caplog, code):
    """This machine has none, so the call itself is replaced."""

    def refuse(_handle, _mode):
        raise OSError(code, os.strerror(code))

    write(cache, "a")
    monkeypatch.setattr(fcntl, "flock", refuse)
    with cache.in_use():
        assert cache.known("captions").contains(text_keys(["a"])).all()
    assert "cannot be locked" in caplog.text
    with pytest.raises(ResourceError, match="file system without locks"):
        prune(tmp_path / "store")
    assert cache.known("captions").contains(text_keys(["a"])).all()


def test_a_lock_that_fails_is_reported(cache, monkeypatch):
    def refuse(_handle, _mode):
        raise OSError(errno.EIO, "x")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ResourceError, match="cannot be read: input"), cache.in_use():
        pass


def test_the_shard_of_another_teacher_is_not_taken(cache, tmp_path):
    other = FeatureCache(tmp_path / "other", replace(IDENTITY, weights="x"), PROBE)
    path = write(other, "a")
    (cache.folder / "captions").mkdir(parents=True)
    path.rename(cache.folder / "captions" / path.name)
    assert not cache.known("captions").contains(text_keys(["a"])).any()


def test_names_and_library_share_a_folder_while_the_probe_agrees(cache, tmp_path, caplog):
    renamed = replace(IDENTITY, model="local-dir:copy", library="open_clip 4")
    again = FeatureCache(tmp_path / "store", renamed, PROBE * (1 + 1e-6))
    assert again.folder == cache.folder
    moved = FeatureCache(tmp_path / "store", renamed, PROBE * 1.01)
    assert moved.folder != cache.folder
    assert "other features than those in the cache" in caplog.text
    assert FeatureCache(tmp_path / "store", renamed, PROBE * 1.01).folder == moved.folder


def test_every_probe_of_one_library_has_its_own_folder(cache, tmp_path):
    scales = (1, 1.1, 1.2, 1.3)
    folders = [FeatureCache(tmp_path / "store", IDENTITY, PROBE * by).folder for by in scales]
    assert len(set(folders)) == len(scales)
    again = [FeatureCache(tmp_path / "store", IDENTITY, PROBE * by).folder for by in scales]
    assert again == folders


@pytest.mark.parametrize(
    "field", ["architecture", "weights", "preprocessing", "tokenizer", "dtype"]
)
def test_whatever_changes_features_has_its_own_folder(cache, tmp_path, field):
    other = FeatureCache(tmp_path / "store", replace(IDENTITY, **{field: "other"}), PROBE)
    assert other.folder != cache.folder


def test_a_damaged_description_of_the_teacher_is_written_again(cache, tmp_path):
    write(cache, "a")
    (cache.folder / "teacher.json").write_text("{")
    again = FeatureCache(tmp_path / "store", IDENTITY, PROBE)
    assert again.known("captions").contains(text_keys(["a"])).all()
    assert list_cached(tmp_path / "store")[0].model == "ViT-B-32"


def test_the_cache_is_listed_and_freed(cache, tmp_path):
    path = write(cache, "a", "bb")
    other = FeatureCache(tmp_path / "store", replace(IDENTITY, dtype="bfloat16"), PROBE)
    write(other, "a")
    listed = {one.name: one for one in list_cached(tmp_path / "store")}
    found = listed[cache.folder.name]
    assert (found.model, found.images, found.captions, found.shards) == ("ViT-B-32", 0, 2, 1)
    assert found.bytes == path.stat().st_size
    assert prune(tmp_path / "store", cache.folder.name[:8]) == [found]
    assert [one.name for one in list_cached(tmp_path / "store")] == [other.folder.name]
    with pytest.raises(InputError, match="no teacher whose name starts with zzz"):
        prune(tmp_path / "store", "zzz")
    prune(tmp_path / "store")
    assert list_cached(tmp_path / "store") == prune(tmp_path / "nothing") == []


def test_a_cache_in_use_is_not_freed(cache, tmp_path):
    write(cache, "a")
    with cache.in_use(), pytest.raises(ResourceError, match="in use by another process"):
        prune(tmp_path / "store")
    assert cache.known("captions").contains(text_keys(["a"])).all()
    handle = os.open(cache.folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it was given back
    os.close(handle)


@given(
    st.lists(st.lists(st.integers(0, 50), max_size=8), max_size=12), st.lists(st.integers(0, 60))
)
def test_a_key_set_is_a_set(groups, asked):
    found, expected = KeySet(), set()
    for group in groups:
        if group:
            found.add(text_keys([str(number) for number in group]))
        expected |= set(group)
    if asked:
        answer = found.contains(text_keys([str(number) for number in asked]))
        assert answer.tolist() == [number in expected for number in asked]


@given(st.lists(st.text(max_size=2), min_size=1))
def test_the_first_of_each_key(texts):
    expected = [text not in texts[:row] for row, text in enumerate(texts)]
    assert first_of_each(text_keys(texts)).tolist() == expected
