"""Extraction with the demo teacher: every row once, whatever happens during the run."""

import contextlib
import functools
import io
import multiprocessing
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from PIL import Image

from pipeline.core.errors import InputError, InterruptedRunError, ModelError
from pipeline.download.records import Pairs, read_pairs, write_pairs
from pipeline.features.cache import FeatureCache, read_shard
from pipeline.features.encode import FeatureExtractor
from pipeline.features.extract import Extraction, TooManyRejectedError, write_extraction
from pipeline.features.teacher import Teacher
from pipeline.features.text_teacher import TextEncoder, open_text_teacher
from pipeline.params.features import FeaturesParams
from pipeline.params.teacher import TeacherParams, TextTeacherParams
from tests.conftest import TINY, make_bomb

PARAMS = FeaturesParams(
    engine="local",
    precision="auto",
    batch_size=3,
    workers=1,
    shard_rows=4,
    max_rejected=0.9,
)
TEXT = TextTeacherParams(encoders=[TINY["student"]["encoder"]], pooling="mean")
TOLERANCE = {"rtol": 2e-3, "atol": 2e-3}
Calls = Counter[str]


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher(TeacherParams(model=TINY["teacher"]["model"]), torch.device("cpu"))


@pytest.fixture
def calls(teacher, monkeypatch) -> Calls:
    """Counts the images and captions that the teacher encodes."""
    counted: Calls = Counter()
    probe_of(teacher)
    for name, what in (("encode_images", "images"), ("encode_tokens", "captions")):
        whole = getattr(teacher, name)

        def counting(*arguments, whole=whole, what=what):
            counted[what] += len(arguments[-1])
            return whole(*arguments)

        monkeypatch.setattr(teacher, name, counting)
    return counted


@pytest.fixture(scope="module")
def pngs() -> list[bytes]:
    """Twelve different pictures."""
    rng, pictures = np.random.default_rng(0), []
    for _ in range(12):
        stream = io.BytesIO()
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((64, 64)).save(stream, "PNG")
        pictures.append(stream.getvalue())
    return pictures


def make_pairs(folder: Path, contents: list[bytes], captions: list[str] | None = None) -> Pairs:
    """One image a content, ids from 10 on; two captions an image, or the given ones in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for number, content in enumerate(contents):
            archive.writestr(f"{number}.png", content)
    rows = range(len(contents))
    images = pd.DataFrame(
        {
            "image_id": [10 + row for row in rows],
            "split": "train",
            "archive": "images.zip",
            "member": [f"{row}.png" for row in rows],
        }
    )
    texts = captions or [f"caption {'long ' * k}of {row}" for row in rows for k in (1, 0)]
    each = len(texts) // len(contents)
    table = pd.DataFrame(
        {
            "caption_id": range(len(texts)),
            "image_id": [10 + row // each for row in range(len(texts))],
            "caption": texts,
        }
    )
    write_pairs(folder, images, table)
    return read_pairs(folder)


@functools.cache
def probe_of(teacher: Teacher) -> np.ndarray:
    return teacher.probe()


def extract(
    pairs: Pairs,
    teacher: Teacher,
    work: Path,
    out: str = "features.h5",
    engine: type[FeatureExtractor] = FeatureExtractor,
    sentences: Sequence[str] = (),
    **changes: object,
) -> Extraction:
    """Also with a text teacher, where there are sentences."""
    params = PARAMS.model_copy(update=changes)
    cache = FeatureCache(work / "store", teacher.identity, probe_of(teacher))
    extractor = engine(teacher, cache, params, show_progress=False)
    opened = open_text_teacher(TEXT, work / "store", sentences, torch.device("cpu"))
    with opened if sentences else contextlib.nullcontext() as text:
        return write_extraction(work / out, pairs, extractor, cache, params, text)


def rows_of(work: Path, name: str = "features.h5") -> Iterator[np.ndarray]:
    with h5py.File(work / name) as file:
        return iter([file["image/features"][:], file["caption/features"][:]])


def test_features_are_those_of_plain_open_clip(tmp_path, teacher, pngs):
    pairs = make_pairs(tmp_path / "pairs", pngs[:5])
    features = extract(pairs, teacher, tmp_path).features
    name = TINY["teacher"]["model"]
    model, preprocess = open_clip.create_model_from_pretrained(name)
    tokenize = open_clip.get_tokenizer(name)
    model.eval()
    with torch.inference_mode():
        images = torch.stack([preprocess(Image.open(io.BytesIO(png))) for png in pngs[:5]])
        expected = [
            model.encode_image(images).numpy(),
            model.encode_text(tokenize(list(pairs.captions["caption"]))).numpy(),
        ]
    for found, wanted in zip(rows_of(tmp_path), expected, strict=True):
        np.testing.assert_allclose(found, wanted, **TOLERANCE)
    assert list(features.image_ids) == [10, 11, 12, 13, 14]
    assert list(features.caption_image) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_bad_rows_are_skipped_counted_and_named(tmp_path, teacher, pngs, caplog):
    contents = [pngs[0], pngs[1][:400], b"<html>", pngs[2], b"", make_bomb(), pngs[3]]
    texts = ["a", "b", "c", "d", "e", "f", " \n", "h", "i", "j", "k", "l", "m", "n"]
    pairs = make_pairs(tmp_path / "pairs", contents, texts)
    pairs.images.loc[6, "member"] = "elsewhere.png"
    extraction = extract(pairs, teacher, tmp_path)
    assert list(extraction.features.image_ids) == [10, 13]
    assert list(extraction.features.caption_ids) == [0, 1, 7]
    assert list(extraction.features.caption_image) == [0, 0, 1]
    table = extraction.rejected
    assert list(table["kind"]) == ["image"] * 5 + ["caption"]
    assert list(table["member"][:5]) == ["1.png", "2.png", "4.png", "5.png", "elsewhere.png"]
    assert list(table["caption_id"][5:]) == [6]
    assert dict(zip(table["image_id"], table["reason"], strict=True)) == {
        11: "truncated",
        12: "unreadable",
        14: "unreadable",
        15: "huge",
        16: "missing",
        13: "empty",
    }
    assert extraction.metrics["rejected"] == sum(extraction.metrics["rejected_by_reason"].values())
    assert "1.png" in caplog.text


@pytest.mark.parametrize(
    ("contents", "captions", "limit", "words"),
    [
        ([0, b"rot"], None, 0.4, r"1 of 2 images were rejected, more than .* = 0.4 .*1\.png"),
        ([b"rot", b"rot"], None, 1.0, "all 2 images were rejected, the first, image 0.png"),
        ([0, 1], ["a", "", "", "b"], 0.4, "2 of 4 captions were rejected.*caption 1 of image 10"),
        ([0, 1], ["", " "], 1.0, "all 2 captions were rejected"),
    ],
)
def test_too_many_rejected_rows_fail(tmp_path, teacher, pngs, contents, captions, limit, words):
    bytes_of = [pngs[item] if isinstance(item, int) else item for item in contents]
    pairs = make_pairs(tmp_path / "pairs", bytes_of, captions)
    with pytest.raises(TooManyRejectedError, match=words) as error:
        extract(pairs, teacher, tmp_path, max_rejected=limit)
    assert not (tmp_path / "features.h5").exists()
    assert f"{len(error.value.rejected)} of " in words or "all 2" in words


@pytest.mark.parametrize(("second", "across"), [("test", 2), ("train", 0)])
def test_equal_pictures_are_counted_and_named_where_splits_differ(
    tmp_path, teacher, pngs, caplog, second, across
):
    """Two of three pictures stand a second time under other names."""
    pairs = make_pairs(tmp_path / "pairs", [*pngs[:3], *pngs[1:3], b"rot"])
    images = pairs.images.assign(split=["train"] * 3 + [second] * 3)
    metrics = extract(replace(pairs, images=images), teacher, tmp_path).metrics
    assert (metrics["images"], metrics["images_repeated"]) == (5, 2)
    assert metrics["images_in_several_splits"] == across
    assert ("2 pictures are in several splits, byte for byte" in caplog.text) == bool(across)


def test_a_missing_archive_is_named(tmp_path, teacher, pngs):
    pairs = make_pairs(tmp_path / "pairs", pngs[:2])
    (tmp_path / "pairs/images.zip").unlink()
    with pytest.raises(InputError, match=r"images\.zip does not exist"):
        extract(pairs, teacher, tmp_path)


def test_what_is_cached_is_not_encoded_again(tmp_path, teacher, pngs, calls):
    pairs = make_pairs(tmp_path / "pairs", pngs[:6])
    first = extract(pairs, teacher, tmp_path)
    assert calls == {"images": 6, "captions": 12}
    again = extract(pairs, teacher, tmp_path, "again.h5")
    assert calls == {"images": 6, "captions": 12}
    assert (again.times["images_encoded"], again.times["captions_encoded"]) == (0, 0)
    assert (first.times["images_encoded"], first.times["captions_encoded"]) == (6, 12)
    assert again.metrics == first.metrics
    assert (tmp_path / "again.h5").read_bytes() == (tmp_path / "features.h5").read_bytes()


def test_duplicates_are_encoded_once(tmp_path, teacher, pngs, calls):
    contents = [pngs[0], pngs[1], pngs[0], pngs[2], pngs[0], pngs[3], pngs[1]]
    texts = [f"caption {row % 3}" for row in range(14)]
    extract(make_pairs(tmp_path / "pairs", contents, texts), teacher, tmp_path)
    assert calls == {"images": 4, "captions": 3}
    images, captions = rows_of(tmp_path)
    for row, first in ((2, 0), (4, 0), (6, 1)):
        np.testing.assert_array_equal(images[row], images[first])
    np.testing.assert_array_equal(captions[3:6], captions[:3])


def test_a_grown_data_set_costs_its_growth(tmp_path, teacher, pngs, calls):
    extract(make_pairs(tmp_path / "small", pngs[:10]), teacher, tmp_path)
    calls.clear()
    extract(make_pairs(tmp_path / "grown", pngs[:11]), teacher, tmp_path, "grown.h5")
    assert calls == {"images": 1, "captions": 2}
    for small, grown in zip(rows_of(tmp_path), rows_of(tmp_path, "grown.h5"), strict=True):
        np.testing.assert_array_equal(grown[: len(small)], small)


def test_data_sets_share_their_images_and_captions(tmp_path, teacher, pngs, calls):
    extract(make_pairs(tmp_path / "one", pngs[:6], list("abcdef")), teacher, tmp_path)
    calls.clear()
    other = make_pairs(tmp_path / "two", [*pngs[4:6][::-1], pngs[7]], list("xeb"))
    extract(other, teacher, tmp_path, "two.h5")
    assert calls == {"images": 1, "captions": 1}


def test_a_stopped_run_resumes_with_equal_bytes(tmp_path, teacher, pngs, monkeypatch):
    contents = [*pngs[:7], pngs[2], b"rot", *pngs[7:]]
    pairs = make_pairs(tmp_path / "pairs", contents)
    sentences = ["a text", "caption of 3", "", *(f"sentence {n}" for n in range(9))]
    extract(pairs, teacher, tmp_path / "whole", sentences=sentences)
    left = [0]

    def stop_at(encoder, name):
        whole = getattr(encoder, name)

        def counting(*arguments):
            left[0] -= 1
            if left[0] == 0:
                raise InterruptedRunError("features was stopped", "run it again")
            return whole(*arguments)

        monkeypatch.setattr(encoder, name, counting)

    stop_at(teacher, "encode_images")
    stop_at(teacher, "encode_tokens")
    stop_at(TextEncoder, "encode_tokens")
    for left[0] in (4, 12, 33):  # among images, captions and sentences
        stopped = tmp_path / f"stopped at {left[0]}"
        with pytest.raises(InterruptedRunError):
            extract(pairs, teacher, stopped, sentences=sentences)
        assert not (stopped / "features.h5").exists()
        extract(pairs, teacher, stopped, sentences=sentences)
        whole, found = (place / "features.h5" for place in (tmp_path / "whole", stopped))
        assert found.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("kind", ["images", "captions"])
@pytest.mark.parametrize("number", [0, 1])
def test_only_a_damaged_shard_is_made_again(tmp_path, teacher, pngs, calls, kind, number):
    pairs = make_pairs(tmp_path / "pairs", pngs[:10])
    extract(pairs, teacher, tmp_path)
    before = (tmp_path / "features.h5").read_bytes()
    shard = sorted((tmp_path / "store").rglob(f"{kind}/*.h5"))[number]
    content, rows = shard.read_bytes(), len(read_shard(shard))
    shard.write_bytes(content.replace(b"\nsha256 ", b"\nsha257 "))
    calls.clear()
    extract(pairs, teacher, tmp_path)
    assert calls == {kind: rows}
    assert shard.read_bytes() == content
    assert shard.with_name(f"{shard.name}.damaged").is_file()
    assert (tmp_path / "features.h5").read_bytes() == before


def test_batches_workers_and_order_change_rounding_only(tmp_path, teacher, pngs):
    """Stated tolerance: 2e-3 of values of about 1, two steps of float16."""
    one = make_pairs(tmp_path / "one", pngs)
    extract(one, teacher, tmp_path / "one")
    extract(one, teacher, tmp_path / "two", batch_size=5, workers=0, shard_rows=100)
    turned = make_pairs(tmp_path / "turned", pngs[::-1], list(one.captions["caption"])[::-1])
    extract(turned, teacher, tmp_path / "three", workers=3)
    expected = list(rows_of(tmp_path / "one"))
    for found, wanted in zip(rows_of(tmp_path / "two"), expected, strict=True):
        np.testing.assert_allclose(found, wanted, **TOLERANCE)
    for found, wanted in zip(rows_of(tmp_path / "three"), expected, strict=True):
        np.testing.assert_allclose(found[::-1], wanted, **TOLERANCE)


def test_features_that_are_not_finite_are_refused(tmp_path, teacher, pngs, monkeypatch):
    whole = teacher.encode_images
    monkeypatch.setattr(teacher, "encode_images", lambda pixels: whole(pixels) * 1e6)
    with pytest.raises(ModelError, match="not finite in float16"):
        extract(make_pairs(tmp_path / "pairs", pngs[:2]), teacher, tmp_path)
    assert not list((tmp_path / "store").rglob("images/*.h5"))


def extract_together(pairs: Path, work: Path, name: str, both) -> None:
    """In another process, which starts to extract when both are ready."""
    teacher = Teacher(TeacherParams(model=TINY["teacher"]["model"]), torch.device("cpu"))
    torch.set_num_threads(1)
    both.wait(240)
    extract(read_pairs(pairs), teacher, work, name)


@pytest.mark.slow
def test_two_processes_do_not_spoil_each_other(tmp_path, teacher, pngs):
    """New interpreters: a process forked beside the threads of torch can hang."""
    extract(make_pairs(tmp_path / "pairs", pngs), teacher, tmp_path / "alone")
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Barrier(2)
    both = [
        spawn.Process(
            target=extract_together, args=(tmp_path / "pairs", tmp_path / "both", name, ready)
        )
        for name in ("one.h5", "two.h5")
    ]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    alone = (tmp_path / "alone/features.h5").read_bytes()
    for name in ("one.h5", "two.h5"):
        assert (tmp_path / "both" / name).read_bytes() == alone


def rearranged(change) -> type[FeatureExtractor]:
    """An engine whose list of results is changed, as a cluster changes its order."""

    class Rearranged(FeatureExtractor):
        def encode_images(self, images, known):
            return iter(change(list(super().encode_images(images, known))))

        def encode_captions(self, captions):
            return iter(change(list(super().encode_captions(captions))))

    return Rearranged


@pytest.fixture
def some_bad(pngs, tmp_path) -> Pairs:
    """Rows 0, 2 and 9 are not images."""
    contents = [b"none" if row in {0, 2, 9} else png for row, png in enumerate(pngs)]
    return make_pairs(tmp_path / "pairs", contents, [f"of {row}" for row in range(24)])


def test_the_order_in_which_an_engine_gives_results_does_not_matter(some_bad, teacher, tmp_path):
    whole = extract(some_bad, teacher, tmp_path / "whole")
    engine = rearranged(lambda results: results[::-1])
    turned = extract(some_bad, teacher, tmp_path / "turned", engine=engine)
    assert list(whole.rejected["image_id"]) == [10, 12, 19]
    pd.testing.assert_frame_equal(whole.rejected, turned.rejected)
    written = [(tmp_path / name / "features.h5").read_bytes() for name in ("whole", "turned")]
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda results: results[:-1], "gave row 8 0 times"),
        (lambda results: [*results[:-1], results[0]], "gave row 0 2 times"),
    ],
)
def test_an_engine_that_leaves_rows_out_or_repeats_them_is_a_bug(
    some_bad, teacher, tmp_path, change, words
):
    with pytest.raises(RuntimeError, match=words):
        extract(some_bad, teacher, tmp_path, engine=rearranged(change))
