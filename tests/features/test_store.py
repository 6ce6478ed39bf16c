"""The feature file: what is written is read, in both layouts; what does not belong is refused."""

from dataclasses import replace

import h5py
import numpy as np
import pytest

from pipeline.errors import InputError, MissingArtifactError, ModelError, StaleArtifactError
from pipeline.features import store
from pipeline.features.cache import DamagedShardError, FeatureCache, text_keys
from pipeline.features.identity import TeacherIdentity, hash_teacher_source
from pipeline.features.rows import JoinedRows
from pipeline.features.store import Features, read_features, read_identity, write_features
from pipeline.params.teacher import TeacherParams

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
    cache = FeatureCache(tmp_path / "store", IDENTITY, np.ones((2, 4), np.float32))
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


def test_a_virtual_file_whose_cache_is_gone_is_refused(cached, tmp_path):
    """HDF5 itself would read zeros."""
    write_features(tmp_path / "features.h5", cached, IDENTITY, "corpus", "virtual")
    gone = min((tmp_path / "store").rglob("captions/*.h5"))
    gone.unlink()
    with pytest.raises(InputError, match=f"points to .*{gone.name}, which is gone"):
        read_features(tmp_path / "features.h5", TEACHER, "corpus")


@pytest.mark.parametrize("layout", ["file", "virtual"])
def test_damaged_rows_of_the_cache_are_not_written(cached, tmp_path, layout):
    shard = cached.captions.runs[-1].path
    with h5py.File(shard, "r+") as file:
        file["features"][0, 0] += 1
    with pytest.raises(DamagedShardError, match=shard.name):
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


def test_damage_is_noticed(features, tmp_path):
    path = tmp_path / "features.h5"
    write_features(path, features, IDENTITY, "corpus")
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(InputError, match="no readable feature file"):
        read_features(path, TEACHER, "corpus")


def test_values_that_are_not_finite_are_named_by_row(features, tmp_path):
    path = tmp_path / "features.h5"
    write_features(path, features, IDENTITY, "corpus")
    with h5py.File(path, "a") as file:
        file["caption/features"][3, 0] = np.nan
    with pytest.raises(InputError, match="/caption/features row 3"):
        read_features(path, TEACHER, "corpus")


def test_a_failed_write_leaves_the_old_file(features, tmp_path):
    path = tmp_path / "features.h5"
    write_features(path, features, IDENTITY, "corpus")
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_features(path, replace(features, images=object()), IDENTITY, "corpus")
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["features.h5"]
