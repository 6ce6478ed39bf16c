"""What an encoder is scored on is what the artefacts hold, and each sentence is embedded once."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from pipeline.core.device import choose_device
from pipeline.core.errors import InputError, MissingArtifactError, StaleArtifactError
from pipeline.download.records import (
    read_pairs,
    read_sentences,
    read_sts,
    read_transfer,
    write_pairs,
    write_sentences,
    write_sts,
    write_transfer,
)
from pipeline.evaluate.report import headline, shortened
from pipeline.evaluate.sts import normalise
from pipeline.evaluate.suite import RunPaths, Suite, evaluate, read_suite, teacher_retrieval
from pipeline.features.store import Features, read_identity, write_features
from pipeline.params.evaluate import PARTS
from pipeline.params.teacher import TeacherParams
from pipeline.student.encoder import Student
from tests.conftest import TINY


def paths_in(folder: Path) -> RunPaths:
    data = folder / "data"
    return RunPaths(data / "evaluation", data / "pairs", data / "text", data / "features.h5")


@pytest.fixture
def read(default_params):
    """Read the suite of a run's folder, for the given parts."""
    teacher = TeacherParams(model=TINY["teacher"]["model"], pretrained=None)

    def read_from(folder: Path, *parts: str) -> Suite:
        params = default_params.evaluate.model_copy(update={"tasks": list(parts or PARTS)})
        return read_suite(paths_in(folder), teacher, params)

    return read_from


@pytest.fixture
def copied(tiny_run, tmp_path) -> Path:
    """A run's data that a test may spoil."""
    shutil.copytree(tiny_run / "data", tmp_path / "data")
    return tmp_path


@pytest.mark.parametrize(
    ("part", "needed"),
    [("sts", "sts.parquet"), ("transfer", "transfer.parquet"), ("retrieval", "features.h5")],
)
def test_only_the_asked_part_is_read(copied, read, part, needed):
    data = copied / "data"
    files = [data / "features.h5", *(data / "evaluation").glob("*.parquet")]
    for path in files:
        if path.name != needed:
            path.unlink()
    suite = read(copied, part)
    assert [name for name in PARTS if getattr(suite, name) is not None] == [part]
    assert suite.data.keys() == {"training_text", part}
    assert bool(suite.texts(grounded=False)) == (part != "retrieval")
    with pytest.raises(MissingArtifactError):
        read(copied)


def test_the_training_text_is_the_captions_of_train_and_the_sentences(tiny_run, read):
    data = tiny_run / "data"
    images = pd.read_parquet(data / "pairs/images.parquet")
    captions = pd.read_parquet(data / "pairs/captions.parquet").merge(images, on="image_id")
    sentences = pd.read_parquet(data / "text/sentences.parquet")["sentence"]
    expected = {*captions.loc[captions["split"] == "train", "caption"], *sentences}
    assert read(tiny_run, "sts").seen == {normalise(sentence) for sentence in expected}


@pytest.mark.parametrize("absent", ["pairs", "text", "text/sentences.parquet"])
def test_without_the_training_text_all_else_is_as_with_it(tiny_run, copied, read, absent, caplog):
    whole = read(tiny_run, "sts", "transfer")
    assert whole.seen
    assert "unseen" not in caplog.text
    path = copied / "data" / absent
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    suite = read(copied, "sts", "transfer")
    assert suite.seen is None
    assert suite.data == {key: whole.data[key] for key in ("sts", "transfer")}
    assert "no unseen scores" in caplog.text
    assert str(copied / "data" / absent.split("/")[0]) in caplog.text


def test_pairs_and_training_text_that_cannot_be_used_are_refused(copied, read):
    pairs = read_pairs(copied / "data/pairs")
    write_pairs(pairs.folder, pairs.images.assign(split="train"), pairs.captions)
    with pytest.raises(InputError, match="no test split"):
        read(copied, "retrieval")
    shutil.rmtree(copied / "data/pairs")
    with pytest.raises(MissingArtifactError, match="pairs"):
        read(copied, "sts", "retrieval")
    write_pairs(pairs.folder, pairs.images, pairs.captions)
    (copied / "data/text/sentences.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"sentences\.parquet"):
        read(copied, "sts")


def changed_part(before: Suite, after: Suite) -> list[str]:
    return [part for part in before.data if before.data[part] != after.data[part]]


def test_one_changed_cell_changes_the_fingerprint_of_its_part(tiny_run, copied, read):
    before, data = read(tiny_run), copied / "data"
    assert read(copied).data == before.data
    sts, transfer = read_sts(data / "evaluation"), read_transfer(data / "evaluation")
    row = sts.index[sts["split"] == "test"][0]
    for column, value in {"subset": "!", "sentence1": "!", "sentence2": "!", "score": 1.25}.items():
        changed = sts.copy()
        changed.loc[row, column] = value
        write_sts(data / "evaluation", changed)
        assert changed_part(before, read(copied)) == ["sts"], column
    write_sts(data / "evaluation", sts)
    for column, value in {"sentence1": "another", "label": 1 - transfer.loc[3, "label"]}.items():
        changed = transfer.copy()
        changed.loc[3, column] = value
        write_transfer(data / "evaluation", changed)
        assert changed_part(before, read(copied)) == ["transfer"], column
    write_transfer(data / "evaluation", transfer)
    sentences = read_sentences(data / "text")
    write_sentences(data / "text", ["no training text has this", *sentences[1:]])
    assert changed_part(before, read(copied)) == ["training_text"]


TABLES = ("image__features", "image__ids", "caption__features", "caption__ids", "caption__image")


def edit_features(folder: Path, **datasets: np.ndarray) -> None:
    """Write a feature file again with other tables, and the pairs at hand as its corpus."""
    path = folder / "data/features.h5"
    with h5py.File(path) as file:
        known = {name: file[name.replace("__", "/")][:] for name in TABLES}
    tables = known | datasets
    features = Features(*(tables[name] for name in TABLES))
    write_features(
        path, features, read_identity(path), read_pairs(folder / "data/pairs").fingerprint()
    )


def test_one_changed_caption_changes_the_fingerprint_of_retrieval(tiny_run, copied, read):
    pairs = read_pairs(copied / "data/pairs")
    row = pairs.captions_of("test").index[0]
    pairs.captions.loc[row, "caption"] = "another caption"
    write_pairs(pairs.folder, pairs.images, pairs.captions)
    with pytest.raises(StaleArtifactError, match="another set of images and captions"):
        read(copied)
    edit_features(copied)
    assert changed_part(read(tiny_run), read(copied)) == ["retrieval"]


def test_captions_that_change_images_change_the_fingerprint_of_retrieval(tiny_run, copied, read):
    with h5py.File(copied / "data/features.h5") as file:
        image = file["caption/image"][:]
    tested = read_pairs(copied / "data/pairs").captions_of("test")["caption_id"]
    with h5py.File(copied / "data/features.h5") as file:
        rows = np.flatnonzero(np.isin(file["caption/ids"][:], tested))
    image[rows] = np.roll(image[rows], 1)
    edit_features(copied, caption__image=image)
    assert changed_part(read(tiny_run), read(copied)) == ["retrieval"]


def test_each_held_out_caption_points_at_its_own_image(tiny_run, read):
    held_out = read(tiny_run).retrieval
    tested = read_pairs(tiny_run / "data/pairs").captions_of("test")
    assert held_out.captions == tested["caption"].tolist()
    assert len(held_out.image_features) == tested["image_id"].nunique() < 300
    with h5py.File(tiny_run / "data/features.h5") as file:
        image_rows = {int(one): row for row, one in enumerate(file["image/ids"][:])}
        caption_rows = {int(one): row for row, one in enumerate(file["caption/ids"][:])}
        images, texts = file["image/features"][:], file["caption/features"][:]
    for row, (caption_id, image_id) in enumerate(
        zip(tested["caption_id"], tested["image_id"], strict=True)
    ):
        own = image_rows[image_id]
        found = held_out.image_features[held_out.caption_image[row]]
        np.testing.assert_array_equal(found, images[own])
        np.testing.assert_array_equal(
            held_out.caption_features[row], texts[caption_rows[caption_id]]
        )


def drop_image(folder: Path, image_id: int) -> None:
    """Rewrite the feature file as if the teacher could not read one image."""
    with h5py.File(folder / "data/features.h5") as file:
        ids, image = file["image/ids"][:], file["caption/image"][:]
        kept, kept_captions = ids != image_id, ids[image] != image_id
        datasets = {
            "image__ids": ids[kept],
            "image__features": file["image/features"][:][kept],
            "caption__ids": file["caption/ids"][:][kept_captions],
            "caption__features": file["caption/features"][:][kept_captions],
            "caption__image": np.searchsorted(np.flatnonzero(kept), image[kept_captions]),
        }
    edit_features(folder, **datasets)


def test_an_image_that_the_teacher_could_not_read_is_absent_with_its_captions(
    tiny_run, copied, read
):
    whole = read(tiny_run).retrieval
    tested = read_pairs(copied / "data/pairs").captions_of("test")
    absent = int(tested["image_id"].iloc[2])
    drop_image(copied, absent)
    held_out = read(copied).retrieval
    remaining = tested[tested["image_id"] != absent]
    assert held_out.captions == remaining["caption"].tolist()
    assert len(held_out.image_features) == len(whole.image_features) - 1
    grouped = pd.Series(held_out.caption_image).groupby(remaining["image_id"].to_numpy())
    assert grouped.nunique().eq(1).all()
    assert set(held_out.caption_image) == set(range(len(held_out.image_features)))


class CountingEncoder:
    """The student's encoder, and a count of what it was asked."""

    def __init__(self, student: Student) -> None:
        self.inner = student.encoder
        self.asked: Counter[str] = Counter()

    def encode(self, sentences, *, batch_size, show_progress):
        self.asked.update(sentences)
        return self.inner.encode(sentences, batch_size=batch_size, show_progress=show_progress)


@pytest.fixture
def student(tiny_run) -> Student:
    return Student.load(tiny_run / "data/models/0", choose_device())


def sentences_of(suite: Suite) -> set[str]:
    """Every sentence of the tasks, gathered from their own tables."""
    tables = [*(task.pairs for task in suite.sts), suite.transfer]
    columns = [table[column] for table in tables for column in ("sentence1", "sentence2")]
    return {*pd.concat(columns).dropna(), *suite.retrieval.captions}


def test_each_distinct_sentence_is_encoded_once_and_each_part_scores_as_alone(
    tiny_run, read, student
):
    suite, encoder = read(tiny_run), CountingEncoder(student)
    scores = evaluate(encoder, suite, student)
    assert encoder.asked == Counter(sentences_of(suite))
    assert list(dict.fromkeys(score.part for score in scores)) == list(PARTS)
    captions = sentences_of(suite) - set(pd.concat(suite.texts(grounded=False)).dropna())
    encoder = CountingEncoder(student)
    ungrounded = evaluate(encoder, replace(suite, transfer=None), None)
    assert not captions & encoder.asked.keys()
    assert {score.part for score in ungrounded} == {"sts"}
    retrieval = evaluate(student.encoder, read(tiny_run, "retrieval"), student)
    for alone in (ungrounded, retrieval):
        together = [score.value for score in scores if score.part == alone[0].part]
        assert [score.value for score in alone] == pytest.approx(together, abs=0.01)


def test_the_teacher_retrieves_by_its_own_features(tiny_run, read):
    suite = read(tiny_run)
    found = {(s.task, s.measure): s.value for s in teacher_retrieval(suite)}
    pairs = suite.retrieval
    texts, images = (
        rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
        for rows in (pairs.caption_features, pairs.image_features)
    )
    nearest = (texts @ images.T).argmax(axis=1)
    captions = np.array(pairs.captions)
    right = [set(pairs.caption_image[captions == caption]) for caption in captions]
    expected = 100 * np.mean([found in own for found, own in zip(nearest, right, strict=True)])
    assert found["text_to_image", "recall@1"] == pytest.approx(expected)
    assert teacher_retrieval(read(tiny_run, "sts")) == []


def test_equal_pictures_and_captions_of_the_test_split_are_counted(tiny_run, copied, read):
    before = read(tiny_run).retrieval
    texts = pd.Series(before.captions).value_counts()
    assert before.pairing.repeated() == {"images": 0, "captions": int((texts > 1).sum())}
    with h5py.File(copied / "data/features.h5") as file:
        images, ids = file["image/features"][:], file["image/ids"][:]
    tested = read_pairs(copied / "data/pairs").captions_of("test")["image_id"].unique()
    first, second = np.flatnonzero(np.isin(ids, tested))[:2]
    images[second] = images[first]
    edit_features(copied, image__features=images)
    assert read(copied).retrieval.pairing.repeated()["images"] == 1


MIEB = ("mieb-flickr30k", "mieb-coco")


@pytest.fixture
def read_by(default_params):
    """Read the retrieval of a run's folder by a convention."""

    def read_from(folder: Path, convention: str) -> Suite:
        update = {"tasks": ["retrieval"], "retrieval": convention}
        teacher = TeacherParams(model=TINY["teacher"]["model"], pretrained=None)
        return read_suite(
            paths_in(folder), teacher, default_params.evaluate.model_copy(update=update)
        )

    return read_from


def test_mieb_tells_pictures_apart_and_flickr30k_captions_too(copied, read_by, student):
    """Two pictures become equal, and two captions of different pictures."""
    pairs = read_pairs(copied / "data/pairs")
    tested = pairs.captions_of("test").drop_duplicates("image_id").index[:2]
    pairs.captions.loc[tested, "caption"] = "one text"
    write_pairs(pairs.folder, pairs.images, pairs.captions)
    edit_features(copied)
    suites = {name: read_by(copied, name) for name in ("karpathy", *MIEB)}
    rows = [suites["karpathy"].retrieval.captions.index("one text")]
    right = {
        n: int(s.retrieval.pairing.of_captions(np.array(rows)).sum()) for n, s in suites.items()
    }
    assert right == {"karpathy": 2, "mieb-flickr30k": 1, "mieb-coco": 2}
    equal = np.ones_like(suites["karpathy"].retrieval.image_features)
    same = replace(suites["karpathy"].retrieval, image_features=equal)
    repeated = {n: replace(same, convention=n).pairing.repeated()["images"] for n in suites}
    assert repeated == {"karpathy": 1, "mieb-flickr30k": 0, "mieb-coco": 0}
    assert len({suite.data["retrieval"] for suite in suites.values()}) == 3
    for name, suite in suites.items():
        for scores in (evaluate(student.encoder, suite, student), teacher_retrieval(suite)):
            measures = {score.measure for score in scores}
            assert ("ndcg@10" in measures) == (name != "karpathy")
            counts = {score.task: score.count for score in scores}
            texts = {"mieb-coco": set}.get(name, list)(suite.retrieval.captions)
            assert counts["text_to_image"] == len(texts)
            assert "ndcg@10" in headline(scores)["retrieval"]["text_to_image"] or name == "karpathy"


def test_first_dimensions_are_scored_as_vectors_cut_short(tiny_run, read, student):
    suite = read(tiny_run, "sts")
    scores = evaluate(student.encoder, suite, dimensions=(16,))

    class Cut:
        def encode(self, sentences, **settings):
            return student.encoder.encode(sentences, **settings)[:, :16].copy()

    expected = [score.value for score in evaluate(Cut(), suite)]
    short = [score for score in scores if score.dimensions == 16]
    assert [score.value for score in short] == pytest.approx(expected, abs=0.01)
    assert len(scores) == 2 * len(short)
    assert headline(scores) == headline([score for score in scores if score.dimensions is None])
    assert list(shortened(scores)) == ["16"]
    assert shortened(scores)["16"]["avg"] == pytest.approx(
        headline(short_as_whole(short))["sts"]["avg"]
    )


def short_as_whole(scores: list) -> list:
    return [replace(score, dimensions=None) for score in scores]
