"""CONTRACT of the teacher features: one HDF5 file a data set.

    /image/features    (images, dim) float16, as the teacher gives them, not normalised
    /image/ids         (images,) int64, image_id
    /caption/features  (captions, dim) float16
    /caption/ids       (captions,) int64, caption_id
    /caption/image     (captions,) int64, row of the caption's image in /image
    attributes         schema, the teacher's identity, corpus fingerprint, normalised

The file is written whole under a temporary name, synced and renamed; equal content gives equal
bytes. It is not compressed: reading random rows of a compressed file is hundreds of times slower.
"""

import re
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float16, Int64

from pipeline.errors import InputError, MissingArtifactError, ModelError, StaleArtifactError
from pipeline.params.teacher import TeacherParams
from pipeline.runtime import atomic_file, hash_file, hash_strings

SCHEMA = 1
LOCAL_PREFIX = "local-dir:"

_REDO = "run `dvc repro -f features`."


@dataclass(frozen=True)
class TeacherIdentity:
    """What the features depend on besides the rows."""

    model: str
    """Name in params.yaml."""
    pretrained: str
    """Weights tag in params.yaml, or an empty string."""
    source: str
    """sha256 over the files of a `local-dir:` teacher, else an empty string."""
    weights: str
    """sha256 over the loaded weights."""
    preprocessing: str
    """Image transform, as text."""
    library: str
    """open_clip's version."""
    dtype: str
    """Type the forward pass ran in."""


@dataclass(frozen=True)
class Features:
    """Features with the ids of their rows; see the module's docstring."""

    images: Float16[np.ndarray, "images dim"]
    image_ids: Int64[np.ndarray, " images"]
    captions: Float16[np.ndarray, "captions dim"]
    caption_ids: Int64[np.ndarray, " captions"]
    caption_image: Int64[np.ndarray, " captions"]
    teacher: str = ""
    """sha256 over the weights that made them; empty where that is not recorded."""

    @property
    def dim(self) -> int:
        """Width of the teacher's space."""
        return int(self.images.shape[1])


def write_features(path: Path, features: Features, teacher: TeacherIdentity, corpus: str) -> None:
    """Write features with the identity of their teacher and the corpus fingerprint."""
    datasets = {
        "image/features": features.images,
        "image/ids": features.image_ids,
        "caption/features": features.captions,
        "caption/ids": features.caption_ids,
        "caption/image": features.caption_image,
    }
    with atomic_file(path) as temporary, h5py.File(temporary, "w") as file:
        for name, values in datasets.items():
            file.create_dataset(name, data=values)
        file.attrs.update(schema=SCHEMA, corpus=corpus, normalised=False, **asdict(teacher))


def read_features(path: Path, teacher: TeacherParams, corpus: str) -> Features:
    """Read features into memory after holding them against what is wanted.

    Args:
        path: the HDF5 file.
        teacher: the teacher that must have made them.
        corpus: fingerprint of the pairs that they must belong to.

    Raises:
        MissingArtifactError: there is no such file.
        InputError: it is not a feature file, is damaged, or holds values that are not finite.
        StaleArtifactError: another teacher or corpus made it.
    """
    if not path.is_file():
        raise MissingArtifactError(path, made_by="features")
    try:
        with h5py.File(path, "r") as file:
            _check_identity(path, dict(file.attrs), teacher, corpus)
            features = replace(_read_datasets(file), teacher=str(file.attrs["weights"]))
    except (OSError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is no readable feature file: {reason}.", _REDO) from None
    _check_values(path, features)
    return features


def read_identity(path: Path) -> TeacherIdentity:
    """The teacher that made a feature file, without reading its features.

    Raises:
        MissingArtifactError: there is no such file.
        InputError: it is not a feature file.
    """
    if not path.is_file():
        raise MissingArtifactError(path, made_by="features")
    try:
        with h5py.File(path, "r") as file:
            return TeacherIdentity(
                **{field.name: str(file.attrs[field.name]) for field in fields(TeacherIdentity)}
            )
    except (OSError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is no readable feature file: {reason}.", _REDO) from None


def hash_teacher_source(model: str) -> str:
    """A hash over the files of a `local-dir:` teacher; empty for other names.

    Raises:
        ModelError: the folder does not exist.
    """
    if not model.startswith(LOCAL_PREFIX):
        return ""
    folder = Path(model.removeprefix(LOCAL_PREFIX))
    if not folder.is_dir():
        raise ModelError(
            f"teacher.model: the folder {folder} does not exist.",
            "name a folder with open_clip_config.json and its weights.",
        )
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return hash_strings(part for path in files for part in (path.name, hash_file(path)))


def _read_datasets(file: h5py.File) -> Features:
    return Features(
        images=file["image/features"][:],
        image_ids=file["image/ids"][:],
        captions=file["caption/features"][:],
        caption_ids=file["caption/ids"][:],
        caption_image=file["caption/image"][:],
    )


def _check_identity(path: Path, found: dict[str, Any], teacher: TeacherParams, corpus: str) -> None:
    wanted = {
        "schema": SCHEMA,
        "model": teacher.model,
        "pretrained": teacher.pretrained or "",
        "source": hash_teacher_source(teacher.model),
        "corpus": corpus,
    }
    for key, value in wanted.items():
        if found.get(key) != value:
            raise StaleArtifactError(
                f"{path} was made by another {_MEANING[key]}: "
                f"{_short(found.get(key))} instead of {_short(value)}.",
                _REDO,
            )


_MEANING = {
    "schema": "version of the project",
    "model": "teacher",
    "pretrained": "teacher (teacher.pretrained)",
    "source": "teacher: the files in its folder changed since, hash",
    "corpus": "set of images and captions, hash",
}


def _short(value: object) -> str:
    """Hashes by their first digits, everything else whole."""
    text = str(value)
    return text[:12] if re.fullmatch("[0-9a-f]{64}", text) else text or "none"


def _check_values(path: Path, features: Features) -> None:
    rows = len(features.captions)
    aligned = len(features.caption_ids) == len(features.caption_image) == rows
    if not aligned or len(features.image_ids) != len(features.images) or rows == 0:
        raise InputError(f"{path} has no rows, or tables of unequal length.", _REDO)
    for name, values in (("image", features.images), ("caption", features.captions)):
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            row = int(np.argmin(finite))
            raise InputError(f"{path}: /{name}/features row {row} is not finite.", _REDO)
