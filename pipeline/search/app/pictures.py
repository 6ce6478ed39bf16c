"""The pictures of results: found only by ids of the corpus, and encoded anew."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import PurePath
from typing import Literal

import numpy as np
import pandas as pd

from pipeline.core.errors import InputError
from pipeline.core.progress import log
from pipeline.download.packed_images import PackedImages, Rejection
from pipeline.download.records import Pairs
from pipeline.index.format import Hit
from pipeline.search.app.problems import RequestError
from pipeline.search.thumbnails import shrink

Size = Literal["small", "large"]

_SIDES: dict[Size, int] = {"small": 384, "large": 1600}
"""Pixels of the longer side, at most."""
_KEPT = 1024
"""Small pictures that are kept encoded, about 20 kB each."""


class Pictures:
    """The images of a corpus, by id; safe in threads."""

    def __init__(self, pairs: Pairs) -> None:
        images, captions = pairs.images, pairs.captions
        self._find_image = _finder(images["image_id"])
        self._find_caption = _finder(captions["caption_id"])
        self._image_of_caption = captions["image_id"].to_numpy()
        self._packed = PackedImages(pairs.folder, images["archive"].array, images["member"].array)
        self._small = lru_cache(_KEPT)(lambda image: self._encode(image, "small"))

    def image_of(self, hit: Hit) -> int | None:
        """The image_id of what a hit shows; None where that is not a picture."""
        if hit.kind == "image":
            return hit.id
        row = self._find_caption(hit.id) if hit.kind == "caption" and hit.archive else None
        return None if row is None else int(self._image_of_caption[row])

    def jpeg(self, image: int, size: Size) -> bytes:
        """The picture with an image_id as a JPEG file, upright, of one of two sizes.

        Raises:
            RequestError: there is no such image, or it cannot be read (404).
            ResourceError: the operating system does not let us read its archive.
        """
        return self._small(image) if size == "small" else self._encode(image, size)

    def _encode(self, image: int, size: Size) -> bytes:
        row = self._find_image(image)
        if row is None:
            raise RequestError(404, f"there is no picture {image}.", "search again.")
        try:
            found = self._packed.read(row)
            small = found if isinstance(found, Rejection) else shrink(found, _SIDES[size])
        except InputError as error:
            log.warning("%s", error.what)
            archive = PurePath(self._packed.archives[row]).name  # the path itself stays private
            why = f": {archive} cannot be read."
        else:
            if not isinstance(small, Rejection):
                return small
            why = f" ({small.reason}): {small.detail}."
        fix = "run `dvc repro -f download` if it should be there."
        raise RequestError(404, f"picture {image} cannot be shown{why}", fix)


def _finder(ids: "pd.Series[int]") -> Callable[[int], int | None]:
    """Finds the row of an id in a column, in 8 bytes a row."""
    values = ids.to_numpy()
    order = np.argsort(values, kind="stable")

    def find(wanted: int) -> int | None:
        place = np.searchsorted(values, wanted, sorter=order)
        row = int(order[place]) if place < len(values) else None
        return None if row is None or values[row] != wanted else row

    return find
