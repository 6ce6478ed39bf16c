"""The feature file: what is written is read, in both layouts; what does not belong is refused."""

import json
import resource
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.core.errors import (
    InputError,
    MissingArtifactError,
    ModelError,
    ResourceError,
    StaleArtifactError,
)
from pipeline.features import cache as caches
from pipeline.features import store
from pipeline.features.cache import FeatureCache, text_keys
from pipeline.features.hdf5 import HEADER_BYTES, DamagedFeaturesError
from pipeline.features.identity import TeacherIdentity, hash_teacher_source
from pipeline.features.rows import JoinedRows
from pipeline.features.store import Features, read_features, read_identity, write_features
from pipeline.params.teacher import TeacherParams
from tests.conftest import ROOT
from tests.faults.ledger import record, times

IDENTITY = TeacherIdentity(
    model="ViT-B-32",
    pretrained="openai",
    source="",
    architecture="a" * 64,
    weights="w" * 64,
    preprocessing="Resize",
    tokenizer="t" * 64,
    library="open_clip",
    dtype="float32",
)
TEACHER = TeacherParams(model="ViT-B-32", pretrained="openai")


@pytest.fixture
def features() -> Features:
    rng = np.random.default_rng(0)
    return Features(
        images=rng.standard_normal((3, 4)).astype(np.float16),
        image_ids=np.array([7, 8, 9]),
        captions=rng.standard_normal((5, 4)).astype(np.float16),
        caption_ids=np.arange(5),
        caption_image=np.array([0, 0, 1, 2, 2]),
    )


def test_what_is_written_is_read(features, tmp_path):
    path = tmp_path / "features.h5"
    write_features(path, features, IDENTITY, "corpus")
    found = read_features(path, TEACHER, "corpus")
    assert_equal(found, features)
    assert found.dim == 4


@pytest.fixture
def cached(features, tmp_path) -> Features:
    """The same features, joined from three shards of a cache."""
    return join(features, tmp_path / "store")


def join(features: Features, folder: Path) -> Features:
    cache = FeatureCache(folder, IDENTITY, np.ones((2, 4), np.float32))
    names = {"images": ["x", "y", "z"], "captions": list("abcde")}
    for kind, rows in (("images", features.images), ("captions", features.captions)):
        keys = text_keys(names[kind])
        cache.write(kind, keys[2:], rows[2:])
        cache.write(kind, keys[:2], rows[:2])
    return replace(
        features,
        images=cache.rows("images", text_keys(names["images"])),
        captions=cache.rows("captions", text_keys(names["captions"])),
    )


def assert_equal(found: Features, expected: Features) -> None:
    for name in ("images", "image_ids", "captions", "caption_ids", "caption_image"):
        np.testing.assert_array_equal(getattr(found, name)[:], getattr(expected, name)[:])


@pytest.mark.parametrize("layout", ["file", "virtual"])
@pytest.mark.parametrize("in_memory", [0, 1 << 30])
def test_rows_of_the_cache_are_read_as_one(
    features, cached, tmp_path, monkeypatch, layout, in_memory
):
    monkeypatch.setattr(store, "IN_MEMORY", in_memory)
    path = tmp_path / "out/features.h5"
    write_features(path, cached, IDENTITY, "corpus", layout)
    found = read_features(path, TEACHER, "corpus")
    assert_equal(found, features)
    some = np.array([4, 0, 2, 2])
    np.testing.assert_array_equal(found.captions[some], features.captions[some])
    is_mapped = isinstance(found.captions, np.memmap | JoinedRows)
    assert is_mapped == (in_memory == 0)
    with h5py.File(path) as file:  # any HDF5 reader sees one table
        np.testing.assert_array_equal(file["caption/features"][:], features.captions)
        assert file["caption/features"].is_virtual == (layout == "virtual")


def test_where_rows_come_from_changes_no_byte(features, cached, tmp_path):
    write_features(tmp_path / "one.h5", features, IDENTITY, "corpus")
    write_features(tmp_path / "two.h5", cached, IDENTITY, "corpus")
    write_features(tmp_path / "virtual.h5", cached, IDENTITY, "corpus", "virtual")
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()
    digests = {
        read_features(tmp_path / f"{name}.h5", TEACHER, "corpus").digest
        for name in ("one", "two", "virtual")
    }
    assert len(digests) == 1
    assert digests != {""}


@pytest.mark.parametrize("runs", [0, store.VIRTUAL_RUNS])
@pytest.mark.parametrize("folder", ["store", "100%b of %d"])
def test_a_virtual_file_is_read_from_anywhere(features, tmp_path, monkeypatch, runs, folder):
    """DVC moves it into its cache, and data may be a link; only the shards stay where they are."""
    monkeypatch.setattr(store, "VIRTUAL_RUNS", runs)
    (tmp_path / "real/a").mkdir(parents=True)
    (tmp_path / "data").symlink_to(tmp_path / "real/a")
    joined = join(features, tmp_path / "data" / folder)
    write_features(tmp_path / "data/features.h5", joined, IDENTITY, "corpus", "virtual")
    moved = tmp_path / "elsewhere/deep/moved.h5"
    moved.parent.mkdir(parents=True)
    (tmp_path / "data/features.h5").rename(moved)
    (tmp_path / "data").unlink()
    assert_equal(read_features(moved, TEACHER, "corpus"), features)
    with h5py.File(moved) as file:
        assert ("features" in file["caption"]) == (runs > 0)
        if runs:
            np.testing.assert_array_equal(file["caption/features"][:], features.captions)


ROWS = 24


def shuffled(tmp_path: Path, order: np.ndarray, folder: str = "store") -> Features:
    """ROWS captions in shards of 4 and 2 images, joined in the given order of the captions."""
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((ROWS, 5)).astype(np.float16)
    keys = text_keys([f"{row}" for row in range(ROWS)])
    cache = FeatureCache(tmp_path / folder, IDENTITY, np.ones((2, 4), np.float32))
    for start in range(0, ROWS, 4):
        cache.write("captions", keys[start : start + 4], rows[start : start + 4])
    cache.write("images", keys[:2], rows[:2])
    ids = np.arange(len(order))
    images, captions = cache.rows("images", keys[:2]), cache.rows("captions", keys[order])
    return Features(images, np.arange(2), captions, ids, ids % 2)


def in_memory(features: Features) -> Features:
    return replace(features, images=features.images[:], captions=features.captions[:])


ORDERS = {
    "in order": np.arange(ROWS),
    "turned": np.arange(ROWS)[::-1].copy(),
    "shuffled": np.random.default_rng(0).permutation(ROWS),
    "with duplicates": np.random.default_rng(2).integers(0, ROWS, 3 * ROWS),
    "one row": np.array([7]),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
@pytest.mark.parametrize("layout", ["file", "virtual"])
def test_every_shard_is_read_once_in_any_order(tmp_path, monkeypatch, order, piece, layout):
    opened, whole = [], caches.read_shard

    def counting(path):
        opened.append(path)
        return whole(path)

    monkeypatch.setattr(caches, "read_shard", counting)
    monkeypatch.setattr(store, "_PIECE", piece * 10)
    features = shuffled(tmp_path, ORDERS[order])
    write_features(tmp_path / "joined.h5", features, IDENTITY, "corpus", layout)
    assert len(opened) == len(set(opened)) == 1 + len(set(ORDERS[order] // 4))
    expected = in_memory(features)
    write_features(tmp_path / "memory.h5", expected, IDENTITY, "corpus")
    if layout == "file":
        assert (tmp_path / "joined.h5").read_bytes() == (tmp_path / "memory.h5").read_bytes()
    found = read_features(tmp_path / "joined.h5", TEACHER, "corpus")
    assert_equal(found, expected)
    assert found.digest == read_features(tmp_path / "memory.h5", TEACHER, "corpus").digest


def digest_of(path: Path, features: Features) -> str:
    write_features(path, features, IDENTITY, "corpus")
    return read_features(path, TEACHER, "corpus").digest


def test_the_digest_is_of_rows_and_their_order(features, tmp_path):
    captions = features.captions[:]
    moved = captions.copy()
    moved.view(np.uint16)[3, 2] ^= 1
    others = [
        features,
        replace(features, captions=moved),
        replace(features, captions=captions[[0, 2, 1, 3, 4]]),
        replace(features, images=features.images[[1, 0, 2]]),
        replace(features, images=captions[:3], captions=captions),
        replace(features, images=np.ascontiguousarray(features.images[:, :2]), captions=captions),
    ]
    digests = [digest_of(tmp_path / "features.h5", one) for one in others]
    assert len(set(digests)) == len(others)
    assert digest_of(tmp_path / "again.h5", replace(features, image_ids=np.arange(3))) == digests[0]


def test_a_file_that_grows_too_large_is_reported(cached, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (1000, 9000, 12_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(ResourceError, match=r"features\.h5 could not be written: file too"):
                write_features(tmp_path / "features.h5", cached, IDENTITY, "corpus")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]


def test_a_shard_that_cannot_be_read_stops_the_write_and_the_reading(cached, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "IN_MEMORY", 0)
    out = tmp_path / "features.h5"
    write_features(out, cached, IDENTITY, "corpus", "virtual")
    found = read_features(out, TEACHER, "corpus")
    shard = cached.captions.runs.paths[0]
    shard.rename(tmp_path / "away")
    shard.symlink_to("/proc/self/mem")
    for layout in ("file", "virtual"):
        with pytest.raises(ResourceError, match=f"{shard.name} could not be read"):
            write_features(tmp_path / "other.h5", cached, IDENTITY, "corpus", layout)
    with pytest.raises(ResourceError, match=f"{shard.name} could not be read"):
        found.captions[:]
    assert shard.is_symlink()
    assert not (tmp_path / "other.h5").exists()


def test_a_feature_file_that_cannot_be_read_is_not_called_damaged(tmp_path):
    (tmp_path / "features.h5").write_bytes(b"")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with (tmp_path / "features.h5").open("rb") as stream:
        resource.setrlimit(resource.RLIMIT_NOFILE, (stream.fileno() + 1, limits[1]))
        try:
            for read in (
                lambda: read_features(tmp_path / "features.h5", TEACHER, "corpus"),
                lambda: read_identity(tmp_path / "features.h5"),
            ):
                with pytest.raises(ResourceError, match="too many open files") as error:
                    read()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "ulimit -n" in error.value.fix


READ_MANY = """
import json, resource, sys
from pathlib import Path
import numpy as np
from pipeline.features import store
from pipeline.params.teacher import TeacherParams

store.IN_MEMORY, results = 0, []
teacher = TeacherParams(model="ViT-B-32", pretrained="openai")
for hard in map(int, sys.argv[2:]):
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    found = store.read_features(Path(sys.argv[1]), teacher, "corpus")
    places, wrong = np.random.default_rng(0).permutation(len(found.captions)), 0
    for part in np.array_split(places, 30):
        for table in (found.captions, found.images):
            wrong += int((table[part] != part[:, None]).sum())
    opened = len(list(Path("/proc/self/fd").iterdir()))
    results.append([wrong, opened, resource.getrlimit(resource.RLIMIT_NOFILE)[0]])
    del found, table
print(json.dumps(results))
"""
SHARDS = 80


def test_more_shards_than_files_may_be_open(tmp_path):
    """In a process of its own, whose limit is lowered; every value of a row is its number."""
    cache = FeatureCache(tmp_path / "store", IDENTITY, np.ones((2, 4), np.float32))
    rows = np.repeat(np.arange(2 * SHARDS), 3).reshape(-1, 3).astype(np.float16)
    keys = text_keys([str(row) for row in range(len(rows))])
    for kind in ("images", "captions"):
        for start in range(0, len(rows), 2):
            cache.write(kind, keys[start : start + 2], rows[start : start + 2])
    ids = np.arange(len(rows))
    features = Features(cache.rows("images", keys), ids, cache.rows("captions", keys), ids, ids)
    out = tmp_path / "features.h5"
    write_features(out, features, IDENTITY, "corpus", "virtual")
    command = [sys.executable, "-c", READ_MANY, str(out), "4096", "120", "64"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    limits = [3 * 2 * SHARDS, 120, 64]
    for (wrong, opened, limit), expected in zip(json.loads(done.stdout), limits, strict=True):
        assert (wrong, limit) == (0, expected)
        assert opened < limit
        assert opened > limit // 3


def test_a_virtual_file_whose_cache_is_gone_is_refused(cached, tmp_path):
    """HDF5 itself would read zeros."""
    write_features(tmp_path / "features.h5", cached, IDENTITY, "corpus", "virtual")
    gone = min((tmp_path / "store").rglob("captions/*.h5"))
    gone.unlink()
    with pytest.raises(InputError, match=f"points to .*{gone.name}, which is gone"):
        read_features(tmp_path / "features.h5", TEACHER, "corpus")


@pytest.mark.parametrize("layout", ["file", "virtual"])
def test_damaged_rows_of_the_cache_are_not_written(cached, tmp_path, layout):
    shard = cached.captions.runs.paths[-1]
    with h5py.File(shard, "r+") as file:
        file["features"][0, 0] += 1
    with pytest.raises(DamagedFeaturesError, match=shard.name):
        write_features(tmp_path / "features.h5", cached, IDENTITY, "corpus", layout)
    assert not (tmp_path / "features.h5").exists()


def test_the_teacher_is_read_without_the_features(features, tmp_path):
    write_features(tmp_path / "features.h5", features, IDENTITY, "corpus")
    assert read_identity(tmp_path / "features.h5") == IDENTITY


def test_equal_content_gives_equal_bytes(features, tmp_path):
    for name in ("one.h5", "two.h5"):
        write_features(tmp_path / name, features, IDENTITY, "corpus")
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()


@pytest.mark.parametrize(
    ("teacher", "corpus", "words"),
    [
        (
            TeacherParams(model="ViT-L-14", pretrained="openai"),
            "corpus",
            "ViT-B-32 instead of ViT-L-14",
        ),
        (
            TeacherParams(model="ViT-B-32", pretrained="laion2b"),
            "corpus",
            "openai instead of laion2b",
        ),
        (TEACHER, "other", "another set of images and captions"),
    ],
)
def test_features_of_another_teacher_or_corpus_are_refused(
    features, tmp_path, teacher, corpus, words
):
    write_features(tmp_path / "features.h5", features, IDENTITY, "corpus")
    with pytest.raises(StaleArtifactError, match=words):
        read_features(tmp_path / "features.h5", teacher, corpus)


def test_a_swapped_weight_file_under_the_same_name_is_noticed(features, tmp_path):
    folder = tmp_path / "teacher"
    folder.mkdir()
    (folder / "weights").write_bytes(b"one")
    teacher = TeacherParams(model=f"local-dir:{folder}")
    source = hash_teacher_source(teacher.model)
    identity = replace(IDENTITY, model=teacher.model, pretrained="", source=source)
    write_features(tmp_path / "features.h5", features, identity, "corpus")
    read_features(tmp_path / "features.h5", teacher, "corpus")
    (folder / "weights").write_bytes(b"two")
    with pytest.raises(StaleArtifactError, match="files in its folder changed"):
        read_features(tmp_path / "features.h5", teacher, "corpus")


def test_a_missing_teacher_folder_is_named(tmp_path):
    with pytest.raises(ModelError, match="no-such-folder does not exist"):
        hash_teacher_source(f"local-dir:{tmp_path}/no-such-folder")


def test_a_missing_file_names_the_stage_that_makes_it(tmp_path):
    with pytest.raises(MissingArtifactError, match="dvc repro features"):
        read_features(tmp_path / "none.h5", TEACHER, "corpus")


FLIPPED = [1 << bit for bit in range(8)]


@pytest.mark.parametrize("in_memory", [0, 1 << 30])
@pytest.mark.parametrize("layout", ["file", "virtual"])
def test_a_flipped_bit_anywhere_is_noticed(
    features, cached, tmp_path, monkeypatch, layout, in_memory
):
    monkeypatch.setattr(store, "IN_MEMORY", in_memory)
    path = tmp_path / "features.h5"
    write_features(path, cached, IDENTITY, "corpus", layout)
    whole = path.read_bytes()
    for place in range(0, len(whole), times(29, 1)):
        content = bytearray(whole)
        content[place] ^= FLIPPED[place % 8]
        path.write_bytes(content)
        with pytest.raises((InputError, StaleArtifactError), match=r"features\.h5") as error:
            assert_equal(read_features(path, TEACHER, "corpus"), features)
        assert "dvc repro -f features" in error.value.fix
    record("flipped bit", "features.h5", "one clear line", len(range(0, len(whole), times(29, 1))))


@pytest.mark.parametrize("in_memory", [0, 1 << 30])
def test_a_flipped_bit_in_a_shard_is_noticed_or_changes_nothing(
    features, cached, tmp_path, monkeypatch, in_memory
):
    """HDF5's own bytes are for other readers."""
    monkeypatch.setattr(store, "IN_MEMORY", in_memory)
    path = tmp_path / "features.h5"
    write_features(path, cached, IDENTITY, "corpus", "virtual")
    shard = cached.captions.runs.paths[0]
    whole, noticed, places = shard.read_bytes(), 0, 0
    for place in range(0, len(whole), times(29, 1)):
        content = bytearray(whole)
        content[place] ^= FLIPPED[place % 8]
        shard.write_bytes(content)
        places += 1
        try:
            assert_equal(read_features(path, TEACHER, "corpus"), features)
        except DamagedFeaturesError as damaged:
            noticed += damaged.path == shard
    assert noticed > HEADER_BYTES // times(29, 1)
    record("flipped bit", "shard of features", "one clear line", noticed)
    record("flipped bit", "shard of features", "right result", places - noticed)


def test_a_file_that_is_cut_off_is_refused(features, tmp_path):
    path = tmp_path / "features.h5"
    write_features(path, features, IDENTITY, "corpus")
    whole = path.read_bytes()
    for length in (0, 1, 700, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="no readable feature file"):
            read_features(path, TEACHER, "corpus")
    path.write_bytes(whole + b"0")
    with pytest.raises(InputError, match="no readable feature file: it has"):
        read_features(path, TEACHER, "corpus")


def test_a_file_of_an_older_version_says_so(tmp_path):
    path = tmp_path / "features.h5"
    with h5py.File(path, "w") as file:
        file["image/features"] = np.zeros((2, 2), np.float16)
    for read in (lambda: read_features(path, TEACHER, "corpus"), lambda: read_identity(path)):
        with pytest.raises(StaleArtifactError, match="older version of the project") as error:
            read()
        assert "dvc repro -f features" in error.value.fix


NUMBERS = st.sampled_from([-1, 0, 1, 3, 255, 1 << 31, 1 << 62, 1 << 63, 1 << 70, "1", None, 1.5])
PLACES = st.fixed_dictionaries({"offset": NUMBERS, "shape": st.lists(NUMBERS, max_size=3)})


@given(data=st.data(), virtual=st.booleans())
@settings(
    max_examples=times(60, 3000),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_forged_header_is_refused(features, cached, tmp_path, data, virtual):
    path = tmp_path / "features.h5"
    layout = "virtual" if virtual else "file"
    write_features(path, cached, IDENTITY, "corpus", layout)
    whole = path.read_bytes()
    shards = [*cached.images.runs.paths, *cached.captions.runs.paths]
    header = json.loads(whole.partition(b"\n")[0][9:])
    length = header["length"]
    key = data.draw(st.sampled_from([*header, *header["tables"]]))
    kind = PLACES if key in header["tables"] else NUMBERS
    (header["tables"] if key in header["tables"] else header)[key] = data.draw(kind)
    text = json.dumps(header).encode()
    packed = b"%08x %b" % (zlib.crc32(text), text)
    path.write_bytes(packed.ljust(length - 1) + b"\n" + whole[length:])
    said = ""
    try:
        assert_equal(read_features(path, TEACHER, "corpus"), features)
    except InputError as error:
        said = error.what
    assert len(said) < 600
    assert not said or any(name in said for name in ("features.h5", *(p.name for p in shards)))


def test_values_that_are_not_finite_are_named_by_row(features, tmp_path):
    path = tmp_path / "features.h5"
    captions = features.captions.copy()
    captions[3, 0] = np.nan
    write_features(path, replace(features, captions=captions), IDENTITY, "corpus")
    with pytest.raises(InputError, match="/caption/features row 3 is not finite"):
        read_features(path, TEACHER, "corpus")


def test_a_failed_write_leaves_the_old_file(features, tmp_path):
    path = tmp_path / "features.h5"
    write_features(path, features, IDENTITY, "corpus")
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_features(path, replace(features, images=object()), IDENTITY, "corpus")
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["features.h5"]
