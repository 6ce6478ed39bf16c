import json
import zipfile

import pytest

from pipeline.core.errors import InputError
from pipeline.download.karpathy import read_karpathy
from pipeline.download.sources import BY_NAME
from tests.conftest import SHARED


def image(number: int, split: str, name: str) -> dict:
    sentences = [{"raw": f" Caption {number}  a . "}, {"raw": " \n"}]
    return {"imgid": number, "split": split, "filename": name, "sentences": sentences}


@pytest.fixture
def packed(tmp_path):
    def pack(images) -> tuple:
        splits = tmp_path / "caption_datasets.zip"
        with zipfile.ZipFile(splits, "w") as archive:
            archive.writestr("dataset_toy.json", json.dumps({"images": images, "dataset": "toy"}))
        for name in ("one", "two"):
            with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
                archive.writestr(f"{name}/{name}.jpg", b"jpeg")
                archive.writestr(f"__MACOSX/{name}/{name}.jpg", b"shadow")
        return splits, [tmp_path / "one.zip", tmp_path / "two.zip"]

    return pack


def test_images_captions_and_splits(packed):
    splits, archives = packed(
        [image(4, "restval", "two.jpg"), image(2, "val", "one.jpg"), image(9, "test", "gone.jpg")]
    )
    images, captions = read_karpathy(splits, "toy", archives)
    assert images.to_dict("records") == [
        {"image_id": 4, "split": "train", "archive": "two.zip", "member": "two/two.jpg"},
        {"image_id": 2, "split": "val", "archive": "one.zip", "member": "one/one.jpg"},
        {"image_id": 9, "split": "test", "archive": "one.zip", "member": "gone.jpg"},
    ]
    assert list(captions["caption_id"]) == list(range(6))
    assert list(captions["image_id"]) == [4, 4, 2, 2, 9, 9]
    assert captions["caption"].tolist()[:3] == ["Caption 4 a .", "", "Caption 2 a ."]


def test_plain_json_gives_the_same_and_restval_can_be_left_out(packed, tmp_path):
    listed = [image(4, "restval", "two.jpg"), image(2, "train", "one.jpg")]
    splits, archives = packed(listed)
    plain = tmp_path / "dataset_toy.json"
    plain.write_text(json.dumps({"images": listed}))
    for path in (splits, plain):
        images, captions = read_karpathy(path, "toy", archives)
        assert images["image_id"].tolist() == [4, 2]
        assert (images["split"] == "train").all()
        images, captions = read_karpathy(path, "toy", archives, restval=False)
        assert images["image_id"].tolist() == captions["image_id"].unique().tolist() == [2]
        assert captions["caption_id"].tolist() == [0, 1]
    plain.write_text("[")
    with pytest.raises(InputError, match=r"dataset_toy\.json holds no usable") as error:
        read_karpathy(plain, "toy", archives)
    assert error.value.fix == "fetch dataset_toy.json again."


@pytest.mark.real
@pytest.mark.parametrize("name", ["flickr8k", "flickr30k"])
def test_the_public_splits_have_the_public_counts(name):
    images, captions = read_karpathy(SHARED / "mirror/caption_datasets.zip", name, [])
    public = BY_NAME[name].counts
    assert (len(images), len(captions)) == (public["images"], public["captions"])
    assert (captions["caption"] != "").all()
    for split in ("train", "val", "test"):
        assert (images["split"] == split).sum() == public[f"{split}_images"]


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([], "lists no images"),
        ({}, "lists no images"),
        ([{"imgid": 1}], "image 0 has no usable split: Field required"),
        ([image(1, "holdout", "one.jpg")], "image 0 has no usable split: Input should be 'train'"),
        ([image(1, "val", "one.jpg"), "text"], "image 1"),
        *(
            (
                [image(1, "val", "one.jpg") | {"sentences": [{"raw": raw}]}],
                r"sentences\.0\.raw: ",
            )
            for raw in (7, None, ["a", "b"], "\ud800")
        ),
        ([image(1, "val", "one.jpg"), image(1, "test", "two.jpg")], "image 1 has no usable imgid"),
    ],
)
def test_malformed_json_is_named_by_row(packed, images, words):
    splits, archives = packed(images)
    with pytest.raises(InputError, match=words):
        read_karpathy(splits, "toy", archives)


@pytest.mark.parametrize("key", ["imgid", "split", "filename", "sentences"])
def test_wrong_types_are_named(packed, key):
    for value in (None, {}, "x", 1e999, -1, True, [[]], 1 << 70, "\ud800"):
        if (key, value) != ("filename", "x"):  # which is right
            splits, archives = packed([image(1, "val", "one.jpg") | {key: value}])
            with pytest.raises(InputError, match=f"image 0 has no usable {key}"):
                read_karpathy(splits, "toy", archives)


def test_a_missing_json_is_named(packed):
    splits, archives = packed([image(1, "val", "one.jpg")])
    with pytest.raises(InputError, match=r"no usable dataset_other\.json"):
        read_karpathy(splits, "other", archives)
