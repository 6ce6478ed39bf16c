"""Image-caption pairs of one split with the teacher's features, and these features by batch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pipeline.core.errors import InputError
from pipeline.features.rows import Features

if TYPE_CHECKING:
    from pipeline.download.records import Pairs

_SHARE_OF_DEVICE = 0.5
"""Of the device's free memory, that features may take."""

RowIndices = Int64[np.ndarray, " rows"]
TeacherBatch = tuple[Float[Tensor, "batch teacher"], Float[Tensor, "batch teacher"]]
"""Features of images and of their captions."""


@dataclass(frozen=True)
class SplitPairs:
    """The captions of a split, with the feature row of each and of its image."""

    captions: list[str]
    caption_rows: Int64[np.ndarray, " captions"]
    image_rows: Int64[np.ndarray, " captions"]
    features: Features

    def __len__(self) -> int:
        return len(self.captions)


def pairs_of_split(pairs: "Pairs", features: Features, split: str) -> SplitPairs:
    """Join the captions of a split with their feature rows, by id.

    Captions without features (their image was rejected) are left out.

    Raises:
        InputError: no caption is left.
    """
    import pandas as pd

    table = pairs.captions_of(split)
    rows = pd.Index(features.caption_ids).get_indexer(pd.Index(table["caption_id"]))
    known = rows >= 0
    if not known.any():
        raise InputError(
            f"no caption of the {split} split has features.", "run `dvc repro -f features`."
        )
    captions = list(table["caption"][known])
    return SplitPairs(captions, rows[known], features.caption_image[rows[known]], features)


class TeacherRows:
    """The teacher's features of captions and of their images, float32 on a device.

    All features stay in the memory of a GPU where they take no more than half of what is free
    there; otherwise the rows of a batch are gathered in the host's memory and sent.
    """

    def __init__(self, pairs: SplitPairs, device: torch.device) -> None:
        self._rows = (pairs.image_rows, pairs.caption_rows)
        self._tables = (pairs.features.images, pairs.features.captions)
        self._device = device
        self._resident: list[Tensor] = []
        if device.type == "cuda":
            size = sum(2 * len(table) * table.shape[1] for table in self._tables)
            if size < _SHARE_OF_DEVICE * torch.cuda.mem_get_info(device)[0]:
                self._resident = [torch.from_numpy(table[:]).to(device) for table in self._tables]

    def __call__(self, rows: RowIndices) -> TeacherBatch:
        """Features (B, D_teacher) of the images and captions of the pairs in `rows`."""
        images, captions = (self._gather(side, rows) for side in (0, 1))
        return images, captions

    def _gather(self, side: int, rows: RowIndices) -> Float[Tensor, "batch teacher"]:
        rows = self._rows[side][rows]
        if self._resident:
            return self._resident[side][to_device(torch.from_numpy(rows), self._device)].float()
        return to_device(torch.from_numpy(self._tables[side][rows]), self._device).float()


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Send a tensor to a device; to a GPU without waiting until it has arrived."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
