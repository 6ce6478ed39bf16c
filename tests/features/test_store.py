from dataclasses import replace

import h5py
import numpy as np
import pytest

from pipeline.errors import InputError, MissingArtifactError, ModelError, StaleArtifactError
from pipeline.features.store import (
    Features,
    TeacherIdentity,
    hash_teacher_source,
    read_features,
    write_features,
)
from pipeline.params.teacher import TeacherParams

IDENTITY = TeacherIdentity("ViT-B-32", "openai", "", "w" * 64, "Resize", "open_clip", "float32")
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
    for name in ("images", "image_ids", "captions", "caption_ids", "caption_image"):
        np.testing.assert_array_equal(getattr(found, name), getattr(features, name))
    assert found.dim == 4


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
