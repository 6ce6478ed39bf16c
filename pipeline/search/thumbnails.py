"""Small copies of pictures, as JPEG files."""

import io

import numpy as np
from PIL import Image

from pipeline.download.packed_images import Rejection, decode_image


def shrink(content: bytes, side: int) -> bytes | Rejection:
    """A picture as a JPEG file, upright, without metadata, of at most `side` pixels a side."""

    def save(picture: Image.Image) -> bytes:
        picture.thumbnail((side, side))
        stream = io.BytesIO()
        plain = Image.fromarray(np.asarray(picture))  # Pillow writes a picture's comment, too
        plain.save(stream, "JPEG", quality=92, subsampling=0)
        return stream.getvalue()

    return decode_image(content, side, save)
