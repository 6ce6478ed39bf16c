"""Small copies of pictures, as JPEG files."""

import io
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from pipeline.features.images import Decoder, Rejection, to_pixels


def shrink(content: bytes, side: int) -> bytes | Rejection:
    """A picture as a JPEG file, upright and without metadata.

    Args:
        content: the picture's file.
        side: pixels of its longer side, at most.

    Returns:
        The file, or why there is none.
    """
    pixels = Decoder(_Shrink(side), side)(content)
    return pixels if isinstance(pixels, Rejection) else _to_jpeg(pixels)


@dataclass(frozen=True)
class _Shrink:
    """Scales a picture down to a side, keeping its shape."""

    side: int

    def __call__(self, picture: Image.Image) -> Tensor:
        picture.thumbnail((self.side, self.side))
        return to_pixels(picture)


def _to_jpeg(pixels: Tensor) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(stream, "JPEG", quality=92, subsampling=0)
    return stream.getvalue()
