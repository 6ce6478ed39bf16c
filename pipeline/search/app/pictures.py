"""The pictures of results: found only by ids of the corpus, and encoded anew."""

from functools import lru_cache
from pathlib import PurePath
from typing import Literal

import numpy as np
from jaxtyping import Int64

from pipeline.core.errors import InputError
from pipeline.core.progress import log
from pipeline.download.packed_images import PackedImages, Rejection
from pipeline.download.records import Pairs
from pipeline.index.format import Hit
from pipeline.search.app.problems import UnknownError
from pipeline.search.thumbnails import shrink

Size = Literal["small", "large"]

_SIDES: dict[Size, int] = {"small": 384, "large": 1600}
"""Pixels of the longer side, at most."""
_KEPT = 1024
"""Small pictures that are kept encoded, about 20 kB each."""
_REDO = "run `dvc repro -f download` if it should be there."


class Pictures:
    """The images of a corpus, by id; safe in threads.

    Args:
        pairs: whose images.
    """

    def __init__(self, pairs: Pairs) -> None:
        images, captions = pairs.images, pairs.captions
        self._images = RowIndices(images["image_id"].to_numpy())
        self._captions = RowIndices(captions["caption_id"].to_numpy())
        self._image_of_caption = captions["image_id"].to_numpy()
        self._packed = PackedImages(pairs.folder, images["archive"].array, images["member"].array)
        self._small = lru_cache(_KEPT)(lambda image: self._encode(image, "small"))

    def image_of(self, hit: Hit) -> int | None:
        """The image_id of what a hit shows; None where that is not a picture."""
        if hit.kind == "image":
            return hit.id
        row = self._captions.find(hit.id) if hit.kind == "caption" and hit.archive else None
        return None if row is None else int(self._image_of_caption[row])

    def jpeg(self, image: int, size: Size) -> bytes:
        """A picture as a JPEG file, upright, of at most 384 or 1,600 pixels a side.

        Args:
            image: its image_id.
            size: which of the two.

        Raises:
            UnknownError: there is no such image, or it cannot be read.
            ResourceError: the operating system does not let us read its archive.
        """
        return self._small(image) if size == "small" else self._encode(image, size)

    def _encode(self, image: int, size: Size) -> bytes:
        row = self._images.find(image)
        if row is None:
            raise UnknownError(f"there is no picture {image}.", "search again.")
        try:
            found = self._packed.read(row)
        except InputError as error:
            log.warning("%s", error.what)
            archive = PurePath(self._packed.archives[row]).name  # the path itself stays private
            raise UnknownError(
                f"picture {image} cannot be shown: {archive} cannot be read.", _REDO
            ) from None
        small = found if isinstance(found, Rejection) else shrink(found, _SIDES[size])
        if isinstance(small, Rejection):
            raise UnknownError(
                f"picture {image} cannot be shown ({small.reason}): {small.detail}.", _REDO
            )
        return small


class RowIndices:
    """The rows of ids in a column, in 8 bytes a row.

    Args:
        ids: the column.
    """

    def __init__(self, ids: Int64[np.ndarray, " rows"]) -> None:
        self._ids = ids
        self._order = np.argsort(ids, kind="stable")

    def find(self, wanted: int) -> int | None:
        """The first row of an id, if there is one."""
        place = np.searchsorted(self._ids, wanted, sorter=self._order)
        row = self._order[place] if place < len(self._ids) else None
        return None if row is None or self._ids[row] != wanted else int(row)
