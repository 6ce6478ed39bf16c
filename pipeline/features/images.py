"""Image bytes -> what the teacher's own resize and crop make of them, or why there is nothing."""

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from pipeline.download.packed_images import Rejection, decode_image

CONVENTION = "upright by EXIF; 16-bit grey PNG by its high byte; RGB; JPEG scaled while >= 2 x side"
"""What is done before the teacher's transform; part of a teacher's identity."""


@dataclass(frozen=True)
class Decoder:
    """Decodes one image; safe in threads, and picklable where `transform` is.

    Attributes:
        transform: from an RGB picture to a tensor (3, height, width) of one fixed shape.
        side: the longest side, in pixels, to which the transform may scale a square picture.
    """

    transform: Callable[[Image.Image], Tensor]
    side: int

    def __call__(self, content: bytes) -> Tensor | Rejection:
        """Pixels (3, height, width), uint8 or float32, or why there are none.

        Raises:
            MemoryError: the machine has no memory left.
        """
        return decode_image(content, self.side, self.transform)
