"""The corpora of the embedded world, each drawn from its own stream of the seed.

Pictures and caption rows are of all three splits; text-only sentences tell of train scenes only.
"""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from pipeline.core.files import atomic_file
from pipeline.download import records
from pipeline.download.scenes.graded_pairs import SUBSETS, draw_pair
from pipeline.download.scenes.render import render
from pipeline.download.scenes.statements import state
from pipeline.download.scenes.wording import draw_captions
from pipeline.download.scenes.world import (
    SPLITS_OF_HUNDRED,
    Scene,
    Stream,
    draw_scene,
    generator,
    pick,
)
from pipeline.params.download import ScenesParams

ARCHIVE = "images.zip"

_STS_SPLITS = ("train",) * 10 + ("dev",) * 7 + ("test",) * 13
"""The split of each of thirty sentence pairs in a row."""


class Picture(NamedTuple):
    """A scene, the split it is in, its picture and its captions."""

    scene: Scene
    split: str
    image: Image.Image
    captions: list[str]


def draw_picture(index: int, params: ScenesParams) -> Picture:
    """Picture number `index` of the world; it depends on no other picture."""
    rng = generator(params.seed, Stream.PICTURES, index)
    split = SPLITS_OF_HUNDRED[index % 100]
    scene = draw_scene(split, rng)
    image = render(scene, rng)
    return Picture(scene, split, image, draw_captions(scene, params.captions_per_image, rng))


def write_pairs_corpus(folder: Path, params: ScenesParams) -> None:
    """Write the pictures and both tables of the pairs; equal params give equal bytes.

    Args:
        folder: gets `images.zip` (PNG, 64 x 64), `images.parquet` and `captions.parquet`.
        params: size and seed of the world.

    Raises:
        ResourceError: the disk is full.
    """
    pictures: list[Picture] = []
    with atomic_file(folder / ARCHIVE) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for index in range(params.images):
            picture = draw_picture(index, params)
            archive.writestr(_member(index), _encode(picture.image))
            pictures.append(picture)
    records.write_pairs(folder, _image_rows(pictures), _caption_rows(pictures))


def _member(index: int) -> zipfile.ZipInfo:
    # ZipInfo's own defaults are a fixed date, but the name of the operating system.
    member = zipfile.ZipInfo(f"scenes/{index:06d}.png")
    member.create_system = 3
    return member


def _encode(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _image_rows(pictures: list[Picture]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image_id": range(len(pictures)),
            "split": [picture.split for picture in pictures],
            "archive": ARCHIVE,
            "member": [_member(index).filename for index in range(len(pictures))],
        }
    )


def _caption_rows(pictures: list[Picture]) -> pd.DataFrame:
    rows = [(index, text) for index, picture in enumerate(pictures) for text in picture.captions]
    frame = pd.DataFrame(rows, columns=["image_id", "caption"])
    return frame.assign(caption_id=np.arange(len(frame)))


def make_sentences(params: ScenesParams) -> list[str]:
    """The text-only sentences: statements and captions of train scenes, without pictures."""
    return list(_draw_sentences(params))


def _draw_sentences(params: ScenesParams) -> Iterator[str]:
    for index in range(params.sentences):
        rng = generator(params.seed, Stream.SENTENCES, index)
        yield state(draw_scene("train", rng), rng)


def make_sts(params: ScenesParams) -> pd.DataFrame:
    """The graded sentence pairs.

    Returns:
        Rows with the columns of `records.STS`: task SCENES, subset brief | sized | full (how much
        both sentences tell), split train | dev | test (by held-out combinations, dev is the val
        split of the pictures), score in 0..5.
    """
    rows = [_sts_row(index, params) for index in range(params.sts_pairs)]
    return pd.DataFrame(rows, columns=records.STS.names)


def _sts_row(index: int, params: ScenesParams) -> tuple[str, str, str, str, str, float]:
    rng = generator(params.seed, Stream.STS, index)
    split = _STS_SPLITS[index % len(_STS_SPLITS)]
    subset = pick(list(SUBSETS), rng)
    scene_split = "val" if split == "dev" else split
    pair = draw_pair(scene_split, SUBSETS[subset], rng)
    return "SCENES", subset, split, *pair.sentences, pair.score
