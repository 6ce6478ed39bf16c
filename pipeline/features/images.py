"""Image bytes -> what the teacher's own resize and crop make of them, or why there is nothing.

Pictures are made upright (EXIF), RGB and eight bits before the teacher's transform sees them.
Nothing that a file contains raises here, but want of memory does, which is no fault of a file;
decoders run in threads and other processes.
"""

import io
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

Reason = Literal["missing", "unreadable", "truncated", "mode", "huge", "empty"]
"""Why a row has no features: not in the archive; no image, or a broken one; one that ends early;
of a pixel type without a meaning as RGB; of more pixels than are safe to decode; no text."""

CONVENTION = "upright by EXIF; 16-bit grey PNG by its high byte; RGB; JPEG scaled while >= 2 x side"
"""What is done before the teacher's transform; part of a teacher's identity."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO")
"""All others are unreadable; EPS among them, which Pillow hands to another program."""

_GAP = 2
"""A JPEG is scaled by its decoder as long as it stays this many times larger than it will be."""

_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each value of the EXIF orientation tag (CIPA DC-008, 4.6.4); 1 is upright."""


@dataclass(frozen=True)
class Rejection:
    """Why a row has no features."""

    reason: Reason
    detail: str
    """One line for the user."""


class _UnfitError(Exception):
    """A file was understood, and cannot be used."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.rejection = Rejection(reason, detail)


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
        _silence()
        try:
            return self.transform(self._read(content))
        except Exception as error:  # noqa: BLE001  # decoders raise whatever hostile bytes make them
            return _reject(error)

    def _read(self, content: bytes) -> Image.Image:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            _require_safe(image.width * image.height, f"{image.width} x {image.height} pixels")
            _require_meaning(image)
            image.draft(None, (_GAP * self.side, _GAP * self.side))
            image.load()
            picture = _make_upright(_to_rgb(image), image)
        self._require_shape(picture)
        return picture

    def _require_shape(self, picture: Image.Image) -> None:
        """Refuse strips that would be of many gigapixels once their short side is scaled up."""
        short, long = sorted(picture.size)
        text = f"a strip of {picture.width} x {picture.height} pixels"
        _require_safe(self.side * self.side * long // short, text)


def to_pixels(image: Image.Image) -> UInt8[Tensor, "3 height width"]:
    """The pixels of an RGB picture, channels first."""
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())


def _silence() -> None:
    """Ignore what Pillow would warn about: it is counted as a rejection, or of no consequence.

    Once for the whole process: `catch_warnings` is not safe in threads.
    """
    if _QUIET not in warnings.filters:
        warnings.filterwarnings("ignore", module=_QUIET[3].pattern)


def _require_safe(pixels: int, text: str) -> None:
    if pixels > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise _UnfitError("huge", text)


def _require_meaning(image: Image.Image) -> None:
    """Refuse numbers that are no brightness between black and white."""
    if image.mode in {"I", "F"} or (image.mode.startswith("I;") and image.format != "PNG"):
        raise _UnfitError("mode", f"pixels of type {image.mode} in a {image.format} file")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _make_upright(picture: Image.Image, source: Image.Image) -> Image.Image:
    try:
        turn = _UPRIGHT.get(source.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001  # a damaged tag is as good as none
        turn = None
    return picture if turn is None else picture.transpose(turn)


def _require_memory() -> None:
    """Tell a file that asks for absurd amounts from a machine that has none left.

    Raises:
        MemoryError: there is less than the largest safe picture needs.
    """
    bytearray(4 * (Image.MAX_IMAGE_PIXELS or 0))


def _reject(error: Exception) -> Rejection:
    if isinstance(error, _UnfitError):
        return error.rejection
    if isinstance(error, UnidentifiedImageError):
        return Rejection("unreadable", "no known image format")
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, MemoryError):
        _require_memory()
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return Rejection("huge", text)
    ends_early = isinstance(error, EOFError) or "truncated" in text.lower()
    return Rejection("truncated" if ends_early else "unreadable", text)
