"""Vectors that others computed: each layout gives the rows of its own pairs; what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import InputError, ModelError, StaleArtifactError
from pipeline.download.records import Pairs
from pipeline.features.extract import Extraction, TooManyRejectedError
from pipeline.features.imported import _by_path, write_imported
from pipeline.features.store import read_features, read_identity
from pipeline.features.teacher import Teacher
from pipeline.params.features import FeaturesParams
from pipeline.params.teacher import TeacherParams

COUNT, DIM = 60, 8
TEACHER = TeacherParams(model="imported:laion ViT", pretrained="x")
RNG = np.random.default_rng(0)
IMAGE = RNG.standard_normal((COUNT, DIM)).astype(np.float32)
CAPTION = (IMAGE + RNG.standard_normal((COUNT, DIM)) / 4).astype(np.float32)
PATHS = pd.Series([f"dogs/{row:03}.jpg" for row in range(COUNT)], dtype="str")
TEXTS = pd.Series([f"A dog, number {row}." for row in range(COUNT)], dtype="str")
ORDER = RNG.permutation(COUNT)
"""Of the rows in the files of vectors."""

Written = dict[str, str]


def pairs_of(folder: Path) -> Pairs:
    rows = range(COUNT)
    about = {"split": "train", "archive": "images.zip", "member": PATHS}
    images = pd.DataFrame({"image_id": [10 + row for row in rows], **about})
    captions = {"caption_id": rows, "image_id": images["image_id"], "caption": TEXTS}
    return Pairs(folder, images, pd.DataFrame(captions))


def clip_retrieval(folder: Path) -> Written:
    """As `clip-retrieval inference` over files writes it: two parts of unequal size."""
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir()
    for part, rows in enumerate(np.split(ORDER, [40])):
        np.save(folder / f"img_emb/img_emb_{part}.npy", IMAGE[rows].astype(np.float16))
        np.save(folder / f"text_emb/text_emb_{part}.npy", CAPTION[rows].astype(np.float16))
        paths = [f"/data/photos/{PATHS[row]}" for row in rows]
        about = pd.DataFrame({"image_path": paths, "caption": [f" {TEXTS[row]}\n" for row in rows]})
        about.to_parquet(folder / f"metadata/metadata_{part}.parquet")
    return {"images": str(folder / "img_emb"), "captions": str(folder / "text_emb")}


def parquet(folder: Path, kind: Callable[[pa.DataType], pa.DataType] = pa.list_) -> Written:
    """Vectors beside their names; the images' in a folder of one file, by their keys."""
    (folder / "images").mkdir()
    keys = [f"{row:03}" for row in ORDER]
    for path, name, names, vectors in (
        (folder / "images/0.parquet", "key", keys, IMAGE),
        (folder / "captions.parquet", "caption", TEXTS[ORDER], CAPTION),
    ):
        cells = pa.array(list(vectors[ORDER]), kind(pa.float32()))
        pq.write_table(pa.table({name: pa.array(names), "embedding": cells}), path)
    found = {"images": str(folder / "images"), "captions": str(folder / "captions.parquet")}
    return found | {"image_column": "key"}


def one_table(folder: Path) -> Written:
    """A row a caption, beside its image's vector, and all rows twice."""
    order = np.concatenate([ORDER, ORDER])
    cells = {"image_path": PATHS[order], "caption": TEXTS[order]}
    vectors = {"iv": list(IMAGE[order]), "cv": list(CAPTION[order])}
    pq.write_table(pa.table(cells | vectors), folder / "0.parquet")
    columns = {"image_vector_column": "iv", "caption_vector_column": "cv"}
    return columns | dict.fromkeys(("images", "captions"), str(folder / "0.parquet"))


def arrays(folder: Path, ids: bool = False) -> Written:
    """One .npy a side, and one of the names or ids of its rows."""
    names = {
        "image": np.array([f"x\\dogs\\{row:03}.jpg" for row in ORDER]),
        "caption": TEXTS[ORDER].to_numpy("U"),
    }
    if ids:
        names = {"image": 10 + ORDER, "caption": ORDER}
    found = {}
    for kind, vectors in (("image", IMAGE), ("caption", CAPTION)):
        np.save(folder / f"{kind}.npy", vectors[ORDER])
        np.save(folder / f"{kind}_names.npy", names[kind])
        found |= {f"{kind}s": str(folder / f"{kind}.npy")}
        found |= {f"{kind}_rows": str(folder / f"{kind}_names.npy")}
    return found


def bring(folder: Path, written: Written, max_rejected: float = 0.01) -> Extraction:
    params = FeaturesParams.model_validate({"import": written, "max_rejected": max_rejected})
    return write_imported(folder / "features.h5", pairs_of(folder), TEACHER, params, None)


@pytest.mark.parametrize(
    "layout",
    [
        clip_retrieval,
        parquet,
        one_table,
        lambda folder: parquet(folder, lambda kind: pa.list_(kind, DIM)),
        arrays,
        lambda folder: arrays(folder, ids=True),
    ],
)
def test_each_layout_gives_the_vectors_of_the_pairs_in_their_order(tmp_path, layout):
    written = layout(tmp_path)
    extraction = bring(tmp_path, written)
    features = read_features(tmp_path / "features.h5", TEACHER, pairs_of(tmp_path).fingerprint())
    np.testing.assert_array_equal(features.images, IMAGE.astype(np.float16))
    np.testing.assert_array_equal(features.captions, CAPTION.astype(np.float16))
    assert features.image_ids.tolist() == [10 + row for row in range(COUNT)]
    assert features.caption_image.tolist() == list(range(COUNT))
    assert features.teacher == "imported:laion ViT x"
    assert extraction.metrics["rejected"] == 0
    assert read_identity(tmp_path / "features.h5").model == TEACHER.model


def test_missing_and_unusable_vectors_are_rejected_rows(tmp_path):
    written = arrays(tmp_path, ids=True)
    vectors = IMAGE[ORDER].copy()
    vectors[:3] = np.array([0.0, np.nan, 1e6])[:, None]  # the last is no float16
    np.save(written["images"], vectors[:50])
    np.save(written["image_rows"], 10 + ORDER[:50])
    with pytest.raises(TooManyRejectedError, match=r"13 of 60 images .* more than .* = 0\.01"):
        bring(tmp_path, written)
    rejected = bring(tmp_path, written, max_rejected=0.3).rejected
    reasons = rejected.groupby("reason")["image_id"].agg(set)
    assert reasons["unreadable"] == set(10 + ORDER[:3])
    assert reasons["missing"] == set(10 + ORDER[50:])
    assert set(rejected["detail"]) == {
        "no row of features.import.images names it",
        "its vector is zero, or not finite as float16",
    }


def save(key: str, array: object) -> Callable[[Written], object]:
    return lambda written: np.save(written[key], np.asarray(array))


def repeat(written: Written) -> None:
    np.save(written["image_rows"], np.array([10, *(10 + ORDER[1:])]))


def as_table(name: str, cells: pa.Array) -> Callable[[Written], object]:
    """The captions, and what names them, in one Parquet file."""

    def change(written: Written) -> None:
        path = written["captions"].replace(".npy", ".parquet")
        names = {"caption": TEXTS, "caption_id": range(COUNT)}
        pq.write_table(pa.table(names | {name: cells}), path)
        written.update(captions=path, caption_rows=None, caption_column="caption")
        if name == "number":
            written["caption_column"] = name
            pq.write_table(pa.table({name: cells, "embedding": list(CAPTION)}), path)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (save("images", IMAGE[0]), r"image\.npy holds an array of float32 with the shape \(8,\)"),
        (save("images", IMAGE.astype(np.int8)), "an array of int8"),
        (save("images", [{"a": 1}]), r"image\.npy cannot be read as \.npy: .*Python objects"),
        (lambda w: Path(w["images"]).write_bytes(b"\x93NUMPY"), "cannot be read as .npy"),
        (save("images", IMAGE[:, :4]), "image vectors have 4 dimensions, the caption vectors 8"),
        (save("images", IMAGE[:9]), r"image\.npy has 9 vectors, .*names\.npy 60 rows"),
        (save("images", IMAGE[RNG.permutation(COUNT)]), "not closer to their own images"),
        (save("caption_rows", range(1, COUNT + 1)), r"row 59 has the caption_id 60, which is not"),
        (repeat, r"names\.npy row 0 and .*names\.npy row \d+ name the same image, but"),
        (lambda w: w.pop("image_rows"), "does not say what its rows are"),
        (lambda w: w.update(images=w["images"][:-4] + ".h5"), r"image\.h5 does not exist"),
        (lambda w: w.update(images=__file__), "neither a .npy or .parquet file nor a folder"),
        (as_table("vectors", CAPTION.tolist()), "has no column 'embedding'"),
        (as_table("embedding", range(COUNT)), "column embedding of int64, not vectors"),
        (
            as_table("embedding", [[1.0]] * 3 + [[1.0, 2.0]] * 57),
            "row 0 has a vector of other than",
        ),
        (as_table("number", range(COUNT)), "has whole numbers in number"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, change, words):
    written = arrays(tmp_path, ids=True)
    change(written)
    with pytest.raises(InputError, match=words):
        bring(tmp_path, written)
    assert not (tmp_path / "features.h5").exists()


def test_parts_go_together_by_number(tmp_path):
    written = clip_retrieval(tmp_path)
    (tmp_path / "metadata/metadata_1.parquet").rename(tmp_path / "metadata/metadata_2.parquet")
    with pytest.raises(InputError, match=r"none is for img_emb_1\.npy"):
        bring(tmp_path, written)


NAMES = st.from_regex(r"[a-z0-9]{1,3}(/[a-z0-9.]{1,3}){0,2}", fullmatch=True)


@given(
    st.lists(NAMES, min_size=1, max_size=8, unique=True),
    st.from_regex(r"(/?[a-z]{1,3}/)?", fullmatch=True),
    st.data(),
)
def test_folders_before_a_name_do_not_matter(names, before, data):
    """Where a file's own path is longer than any other's end, it is found by it."""
    members = pd.Series([f"{name}.jpg" for name in names], dtype="str")
    order = data.draw(st.permutations(range(len(names))))
    found = _by_path(pd.Series([before + members[row] for row in order], dtype="str"), members)
    ends = [sum(f"/{before}{one}".endswith(f"/{other}") for other in members) for one in members]
    for place, row in enumerate(order):
        if ends[row] == 1:
            assert found[place] == row


@pytest.mark.parametrize(
    ("name", "member", "is_found"),
    [
        ("00042", "00042.input.jpg", True),  # a webdataset key
        ("a/00042", "a/00042.jpg", True),
        ("/data/Images/9.jpg", "Flicker8k_Dataset/9.jpg", True),
        ("9.jpg", "9.png", False),
        ("1.jpg", "9.png", False),
        ("", "9.png", False),
    ],
)
def test_an_image_is_found_by_its_key_or_its_last_part(name, member, is_found):
    members = pd.Series([member, "cats/1.jpg", "dogs/1.jpg"], dtype="str")
    assert _by_path(pd.Series([name], dtype="str"), members).tolist() == [0 if is_found else -1]


def test_such_a_teacher_encodes_nothing(tmp_path):
    with pytest.raises(ModelError, match="known by imported vectors only") as error:
        Teacher(TEACHER, torch.device("cpu"))
    assert "search by text" in error.value.fix
    bring(tmp_path, arrays(tmp_path))
    other = TeacherParams(model="ViT-L-14", pretrained="x")
    with pytest.raises(StaleArtifactError, match="imported:laion ViT instead of ViT-L-14"):
        read_features(tmp_path / "features.h5", other, pairs_of(tmp_path).fingerprint())


def test_the_file_has_equal_bytes_each_time(tmp_path):
    written = clip_retrieval(tmp_path)
    metrics = [json.dumps(bring(tmp_path, written).metrics) for _ in range(2)]
    first = (tmp_path / "features.h5").read_bytes()
    bring(tmp_path, written)
    assert (tmp_path / "features.h5").read_bytes() == first
    assert metrics[0] == metrics[1]
