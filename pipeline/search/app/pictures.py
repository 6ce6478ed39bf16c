"""The pictures of results: found by the ids of the corpus alone, and encoded anew."""

from functools import lru_cache
from pathlib import PurePath
from typing import Literal

import numpy as np
from jaxtyping import Int64

from pipeline.core.errors import InputError
from pipeline.core.progress import log
from pipeline.download.packed_images import PackedImages, Rejection
from pipeline.download.records import Pairs
from pipeline.index.layout import Hit
from pipeline.search.app.problems import UnknownError
from pipeline.search.thumbnails import shrink

Size = Literal["small", "large"]

_SIDES: dict[Size, int] = {"small": 384, "large": 1600}
"""Pixels of the longer side, at most."""
_KEPT = 1024
"""Small pictures that are kept encoded, of some 20 kB each."""
_REDO = "run `dvc repro -f download` if it should be there."


class Pictures:
    """The images of a corpus, by id; threads may share it.

    Args:
        pairs: whose images.
    """

    def __init__(self, pairs: Pairs) -> None:
        images, captions = pairs.images, pairs.captions
        self._row = _Positions(images["image_id"].to_numpy())
        self._caption = _Positions(captions["caption_id"].to_numpy())
        self._image_of_caption = captions["image_id"].to_numpy()
        self._packed = PackedImages(pairs.folder, images["archive"].array, images["member"].array)
        self._small = lru_cache(_KEPT)(lambda image: self._encode(image, "small"))

    def image_of(self, hit: Hit) -> int | None:
        """The image_id of what a hit shows; None where that is no picture."""
        if not hit.archive:
            return None
        if hit.kind == "image":
            return hit.id
        row = self._caption.find(hit.id) if hit.kind == "caption" else None
        return None if row is None else int(self._image_of_caption[row])

    def jpeg(self, image: int, size: Size) -> bytes:
        """A picture as a JPEG file, upright, of at most 384 or 1,600 pixels a side.

        Args:
            image: its image_id.
            size: which of the two.

        Raises:
            UnknownError: there is no such image, or it cannot be read.
            ResourceError: the system does not let its archive be read.
        """
        return self._small(image) if size == "small" else self._encode(image, size)

    def _encode(self, image: int, size: Size) -> bytes:
        row = self._row.find(image)
        if row is None:
            raise UnknownError(f"there is no picture {image}.", "search again.")
        content = self._read(image, row)
        small = content if isinstance(content, Rejection) else shrink(content, _SIDES[size])
        if isinstance(small, Rejection):
            raise UnknownError(
                f"picture {image} cannot be shown ({small.reason}): {small.detail}.", _REDO
            )
        return small

    def _read(self, image: int, row: int) -> bytes | Rejection:
        try:
            return self._packed.read(row)
        except InputError as error:
            log.warning("%s", error.what)
            archive = PurePath(self._packed.archives[row]).name
            raise UnknownError(
                f"picture {image} cannot be shown: {archive} cannot be read.", _REDO
            ) from None


class _Positions:
    """Where ids are in a column, in 16 bytes each."""

    def __init__(self, ids: Int64[np.ndarray, " rows"]) -> None:
        self._order = np.argsort(ids, kind="stable")
        self._sorted = ids[self._order]

    def find(self, wanted: int) -> int | None:
        place = int(np.searchsorted(self._sorted, wanted))
        if place == len(self._sorted) or self._sorted[place] != wanted:
            return None
        return int(self._order[place])
