"""The corpora of the embedded world, each drawn from its own stream of the seed.

Pictures and caption rows are of all three splits; text-only sentences tell of train scenes only.
"""

import io
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from PIL import Image

from pipeline.download import records
from pipeline.download.archives import pack
from pipeline.download.pairing import write_rows_to
from pipeline.download.scenes.render import render
from pipeline.download.scenes.sentence_pairs import SUBSETS, draw_sentence_pair
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

_ARCHIVE = "images.zip"
_STS_SPLITS = ("train",) * 10 + ("dev",) * 7 + ("test",) * 13
"""The split of each of thirty sentence pairs in a row."""


class Picture(NamedTuple):
    """A scene as picture and captions."""

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


def write_scene_pairs(folder: Path, params: ScenesParams) -> None:
    """Write the pictures (PNG) and both tables of the pairs; equal params give equal bytes.

    Raises:
        ResourceError: the disk is full.
    """
    with pack(folder / _ARCHIVE) as packer, write_rows_to(folder) as rows:
        for index in range(params.images):
            picture = draw_picture(index, params)
            stream = io.BytesIO()
            picture.image.save(stream, "PNG", optimize=True)
            member = f"scenes/{index:06d}.png"
            packer.add(member, stream.getvalue())
            rows.add(picture.split, _ARCHIVE, member, picture.captions)


def make_sentences(params: ScenesParams) -> list[str]:
    """The text-only sentences: statements and captions of train scenes, without pictures."""
    streams = (generator(params.seed, Stream.SENTENCES, i) for i in range(params.sentences))
    return [state(draw_scene("train", rng), rng) for rng in streams]


def make_sts(params: ScenesParams) -> pd.DataFrame:
    """The graded sentence pairs as a table of `records.STS`.

    The subset says how much both sentences tell. Splits are by held-out combinations; dev is the
    val split of the pictures. Scores are in 0..5.
    """
    rows = []
    for index in range(params.sts_pairs):
        rng = generator(params.seed, Stream.STS, index)
        split = _STS_SPLITS[index % len(_STS_SPLITS)]
        subset = pick(list(SUBSETS), rng)
        pair = draw_sentence_pair("val" if split == "dev" else split, SUBSETS[subset], rng)
        rows.append(("SCENES", subset, split, *pair))
    return pd.DataFrame(rows, columns=records.STS.names)
