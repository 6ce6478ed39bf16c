"""The teacher's features of a batch, gathered where the losses are computed."""

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pipeline.features.rows import Features
from pipeline.train.objective import TeacherBatch

_SHARE_OF_DEVICE = 0.5
"""Of the device's free memory, that features may take."""

Places = Int64[np.ndarray, " rows"]


class TeacherRows:
    """Feature rows of captions and their images, float32 on the device.

    Features stay in the device's memory where they take no more than half of what is free there;
    otherwise the rows of a batch are gathered in the host's memory and sent after.

    Args:
        features: of all images and captions.
        image_rows: row of the image, by caption of the train split.
        caption_rows: row of the caption itself.
        device: where the losses are computed.
    """

    def __init__(
        self, features: Features, image_rows: Places, caption_rows: Places, device: torch.device
    ) -> None:
        self._rows = (image_rows, caption_rows)
        self._tables = (features.images, features.captions)
        self._device = device
        self._resident: tuple[Tensor, Tensor] | None = None
        if device.type == "cuda" and self._fits():
            first, second = (torch.from_numpy(table[:]).to(device) for table in self._tables)
            self._resident = (first, second)

    def __call__(self, rows: Places) -> TeacherBatch:
        """Features (B, D_teacher) of images and of captions."""
        images, captions = (self._gather(side, rows) for side in (0, 1))
        return images, captions

    def _gather(self, side: int, rows: Places) -> Float[Tensor, "batch teacher"]:
        places = self._rows[side][rows]
        if self._resident is not None:
            return self._resident[side][to_device(torch.from_numpy(places), self._device)].float()
        chosen = torch.from_numpy(self._tables[side][places])
        return to_device(chosen, self._device).float()

    def _fits(self) -> bool:
        size = sum(2 * len(table) * table.shape[1] for table in self._tables)
        free, _ = torch.cuda.mem_get_info(self._device)
        return bool(size < _SHARE_OF_DEVICE * free)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Send a tensor without waiting for it."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
