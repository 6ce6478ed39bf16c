"""Images that stay packed: their bytes by row, decoded to upright RGB, or why there are none.

Nothing that a file contains raises here. Running out of memory does: that is not the file's fault.
Decoders run in threads and in other processes; none of them needs torch. HEIC is decoded by
pillow-heif, where it is installed.
"""

import functools
import io
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Literal, TypeVar

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError, features

from pipeline.core.device import ran_out_of_memory
from pipeline.core.errors import InputError
from pipeline.download.archives import Archive

T = TypeVar("T")

Reason = Literal["missing", "unreadable", "truncated", "mode", "huge", "empty"]
"""Why a row has no features: not in the archive; not an image, or a broken one; one that ends
early; of a pixel type without a meaning as RGB; of more pixels than are safe to decode; no text."""

_OPEN_ARCHIVES = 4
IMAGE_ENDINGS = frozenset(
    {"avif", "bmp", "gif", "heic", "heif", "jpeg", "jpg", "png", "tif", "tiff", "webp"}
)
"""What makes a file an image, where only its name tells."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO")
"""All others are unreadable, among them EPS, which Pillow passes to another program."""
_AVIF = {b"avif", b"avis"}
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
"""What formats call themselves, bytes 8 to 12 of a file (ISO 14496-12, 4.3)."""

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


class PackedImages:
    """Images in archives, by row; one thread reads at a time, in the order of the rows.

    Args:
        folder: holds the archives that are named without a folder.
        archives: the name of each row's archive, as a list or an array.
        members: the name of each row's image in its archive.
    """

    def __init__(self, folder: Path, archives: Any, members: Any) -> None:
        self.folder = folder
        self.archives = archives
        self.members = members
        self._open: dict[str, Archive] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self.members)

    def read(self, row: int) -> bytes | Rejection:
        """The bytes of an image, or why there are none."""
        with self._lock:
            archive = self._archive(self.archives[row])
            try:
                return archive.read(self.members[row])
            except KeyError:
                return Rejection("missing", f"not in {archive.path.name}")
            except InputError as error:
                return Rejection("unreadable", error.what)

    def _archive(self, name: str) -> Archive:
        if name not in self._open:
            while len(self._open) >= _OPEN_ARCHIVES:
                self._open.pop(next(iter(self._open))).__exit__()
            self._open[name] = Archive(self.folder / name)
        return self._open[name]


class _UnfitError(Exception):
    """A file was understood, but cannot be used: reason and detail."""


def decode_image(content: bytes, side: int, transform: Callable[[Image.Image], T]) -> T | Rejection:
    """What a transform makes of the picture in a file, or why there is nothing.

    Args:
        content: the file.
        side: the longest side, in pixels, to which the transform may scale a square picture.
        transform: gets the picture upright (EXIF), RGB and eight bits; safe in threads.

    Raises:
        MemoryError: the machine has no memory left.
    """
    # Pillow's warnings are counted as rejections, or do not matter. They are silenced once for the
    # whole process: `catch_warnings` is not safe in threads.
    if _QUIET not in warnings.filters:
        warnings.filterwarnings("ignore", module=_QUIET[3].pattern)
    formats = _formats()  # outside of the block: the file is not to blame for a fault of it
    try:
        return transform(_read(content, side, formats))
    except Exception as error:  # noqa: BLE001  # decoders raise whatever hostile bytes make them
        return _reject(error, content)


@functools.cache
def _formats() -> tuple[str, ...]:
    """What is decoded, with HEIC where its decoder is installed and can be loaded."""
    try:
        from pillow_heif import register_heif_opener

        register_heif_opener(decode_threads=1)  # loads its libraries, too
    except ImportError as error:
        if ran_out_of_memory(error):
            raise MemoryError(str(error)) from error
        return _FORMATS
    return (*_FORMATS, "HEIF")


def _why_unknown(content: bytes) -> str:
    brand = content[8:12] if content[4:8] == b"ftyp" else b""
    if brand in _HEIC and "HEIF" not in _formats():
        return "HEIC, which needs pillow-heif: run `pip install -e '.[heic]'`"
    if brand in _AVIF and not features.check("avif"):
        return "AVIF, which needs a Pillow that is built with it"
    return "no known image format"


def _read(content: bytes, side: int, formats: tuple[str, ...]) -> Image.Image:
    with Image.open(io.BytesIO(content), formats=formats) as image:
        _require_safe(image.width * image.height, f"{image.width} x {image.height} pixels")
        # Numbers that are not a brightness between black and white.
        if image.mode in {"I", "F"} or (image.mode.startswith("I;") and image.format != "PNG"):
            raise _UnfitError("mode", f"pixels of type {image.mode} in a {image.format} file")
        if image.format != "HEIF":  # a thumbnail, made in whatever way
            image.draft(None, (_GAP * side, _GAP * side))
        image.load()
        picture = _make_upright(_to_rgb(image), image)
    # Strips that would have many gigapixels once their short side is scaled up.
    short, long = sorted(picture.size)
    text = f"a strip of {picture.width} x {picture.height} pixels"
    _require_safe(side * side * long // short, text)
    return picture


def _require_safe(pixels: int, text: str) -> None:
    if pixels > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise _UnfitError("huge", text)


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


def _reject(error: Exception, content: bytes) -> Rejection:
    if isinstance(error, _UnfitError):
        return Rejection(*error.args)
    if isinstance(error, UnidentifiedImageError):
        return Rejection("unreadable", _why_unknown(content))
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, MemoryError):
        # Raises once more where the machine, not the file, is to blame: as much memory as the
        # largest safe picture needs.
        bytearray(4 * (Image.MAX_IMAGE_PIXELS or 0))
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return Rejection("huge", text)
    ends_early = isinstance(error, EOFError) or "truncated" in text.lower()
    return Rejection("truncated" if ends_early else "unreadable", text)
