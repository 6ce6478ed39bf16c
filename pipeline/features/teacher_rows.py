"""Image-caption pairs of one split with the teacher's features, and these features by batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pipeline.core.errors import InputError
from pipeline.features.rows import FeatureRows, Features

if TYPE_CHECKING:
    from pipeline.download.records import Pairs

_SHARE_OF_DEVICE = 0.5
"""Of the device's free memory, that features may take."""

RowIndices = Int64[np.ndarray, " rows"]


class TeacherBatch(NamedTuple):
    """What the teachers say of a batch of pairs."""

    images: Float[Tensor, "batch teacher"]
    captions: Float[Tensor, "batch teacher"]
    text: Float[Tensor, "batch text"] | None = None
    """The text teacher's rows of the captions, where there is one."""


@dataclass(frozen=True)
class SplitPairs:
    """The captions of a split, with the feature row of each and of its image."""

    captions: list[str]
    caption_rows: Int64[np.ndarray, " captions"]
    image_rows: Int64[np.ndarray, " captions"]
    features: Features

    def __len__(self) -> int:
        return len(self.captions)

    def take(self, rows: Int64[np.ndarray, " some"]) -> "SplitPairs":
        """Some of the captions, by their positions in the split."""
        captions = [self.captions[row] for row in rows]
        return SplitPairs(captions, self.caption_rows[rows], self.image_rows[rows], self.features)


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


class _Tables:
    """Tables of features whose rows are gathered by batch, float32 on a device.

    They stay in the memory of a GPU where they take no more than half of what is free there;
    otherwise the rows of a batch are gathered in the host's memory and sent.
    """

    def __init__(self, tables: Sequence[FeatureRows], device: torch.device) -> None:
        self._tables = tables
        self._device = device
        self._resident: list[Tensor] = []
        if device.type == "cuda":
            size = sum(2 * len(table) * table.shape[1] for table in tables)
            if size < _SHARE_OF_DEVICE * torch.cuda.mem_get_info(device)[0]:
                self._resident = [torch.from_numpy(table[:]).to(device) for table in tables]

    def gather(self, number: int, rows: RowIndices) -> Float[Tensor, "batch dim"]:
        if self._resident:
            return self._resident[number][to_device(torch.from_numpy(rows), self._device)].float()
        return to_device(torch.from_numpy(self._tables[number][rows]), self._device).float()


class TeacherRows:
    """The teachers' features of captions and of their images, float32 on a device."""

    def __init__(self, pairs: SplitPairs, device: torch.device) -> None:
        features, captions = pairs.features, pairs.caption_rows
        tables = [(features.images, pairs.image_rows), (features.captions, captions)]
        if features.caption_text is not None:
            tables.append((features.caption_text, captions))
        self._rows = [rows for _, rows in tables]
        self._tables = _Tables([table for table, _ in tables], device)

    def __call__(self, rows: RowIndices) -> TeacherBatch:
        """Features of the images and captions of the pairs in `rows`, (B, D) each."""
        sides = enumerate(self._rows)
        return TeacherBatch(*(self._tables.gather(side, of[rows]) for side, of in sides))


class SentenceRows:
    """The text teacher's features of the text-only sentences, float32 on a device.

    Raises:
        InputError: the features have none.
    """

    def __init__(self, features: Features, device: torch.device) -> None:
        if features.sentence_text is None:
            raise InputError(
                "the features have no text teacher's rows.",
                "name encoders in teacher.text.encoders, and run `dvc repro features`.",
            )
        self._tables = _Tables([features.sentence_text], device)

    def __call__(self, rows: RowIndices) -> Float[Tensor, "batch text"]:
        """Features of the sentences in `rows`, (B, D_text)."""
        return self._tables.gather(0, rows)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Send a tensor to a device; to a GPU without waiting until it has arrived."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
