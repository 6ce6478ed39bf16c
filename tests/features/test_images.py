"""Decoding gives the pixels of the teacher's transform or a rejection, never an exception."""

import io
import multiprocessing
import pickle
import resource
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from open_clip.transform import image_transform
from PIL import Image, ImageOps, features
from torchvision.transforms import Compose, Lambda, PILToTensor

from pipeline.core.errors import InterruptedRunError
from pipeline.download import packed_images
from pipeline.download.packed_images import Rejection
from pipeline.features.images import Decoder
from pipeline.features.openclip import split_transform
from tests.conftest import ROOT, SHARED, make_bomb, make_png
from tests.faults.ledger import record

SIDE = 32
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
WHOLE = Decoder(PILToTensor(), side=1000)
"""Gives the pixels of the picture itself, never scaled."""


def draw(width: int, height: int, *, seed: int = 0) -> Image.Image:
    """Smooth colours, and a corner that differs in all eight orientations."""
    small = np.random.default_rng(seed).integers(0, 255, (5, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    picture.paste((255, 0, 0), (0, 0, width // 3, height // 8))
    return picture


def save(picture: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def pixels(content: bytes, decode: Decoder = WHOLE) -> np.ndarray:
    decoded = decode(content)
    assert isinstance(decoded, torch.Tensor), decoded
    return decoded.numpy()


def plain(content: bytes) -> np.ndarray:
    """The pixels that Pillow's own convert gives."""
    with warnings.catch_warnings(action="ignore"):
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(SIDE, SIDE), (SIDE, 20)])
@pytest.mark.parametrize("picture", [(61, 47), (20, 90), (SIDE, SIDE), (5, 3)])
def test_uint8_and_scaling_a_batch_are_bit_for_bit_the_plain_transform(mode, size, picture):
    transform = image_transform(
        size, is_train=False, mean=MEAN, std=STD, resize_mode=mode, fill_color=9
    )
    part, rest = split_transform(transform)
    content = save(draw(*picture), "PNG")
    decoded = Decoder(part, SIDE)(content)
    assert decoded.dtype == torch.uint8
    expected = transform(Image.open(io.BytesIO(content)).convert("RGB"))
    assert torch.equal(rest(decoded[None].float().div_(255))[0], expected)


def test_a_transform_of_another_shape_is_run_as_a_whole():
    odd = Compose([Lambda(lambda image: image.resize((7, 7))), PILToTensor(), Lambda(torch.neg)])
    part, rest = split_transform(odd)
    assert part is odd
    assert rest is None


def test_a_decoder_can_be_pickled():
    part, _ = split_transform(image_transform(SIDE, is_train=False, mean=MEAN, std=STD))
    decode, content = Decoder(part, SIDE), save(draw(90, 60), "JPEG")
    again = pickle.loads(pickle.dumps(decode))  # noqa: S301
    assert np.array_equal(pixels(content, again), pixels(content, decode))


def sizes_seen(content: bytes) -> tuple[int, int]:
    """The size of the picture that reaches the teacher's transform."""
    seen = []

    def look(image: Image.Image) -> torch.Tensor:
        seen.append(image.size)
        return PILToTensor()(image)

    pixels(content, Decoder(look, SIDE))
    return seen[0]


@pytest.mark.parametrize(
    ("picture", "seen"),
    [
        ((127, 127), (127, 127)),
        ((128, 128), (64, 64)),
        ((400, 127), (400, 127)),
        ((300, 260), (75, 65)),
        ((2000, 1024), (250, 128)),
    ],
)
def test_a_jpeg_is_scaled_by_its_decoder_to_no_less_than_twice_the_side(picture, seen):
    assert sizes_seen(save(draw(*picture), "JPEG")) == seen
    assert sizes_seen(save(draw(*picture), "PNG")) == picture


def test_a_scaled_jpeg_gives_nearly_the_same_pixels():
    part, _ = split_transform(image_transform(SIDE, is_train=False, mean=MEAN, std=STD))
    content = save(draw(700, 500), "JPEG", quality=95)
    scaled = pixels(content, Decoder(part, SIDE)).astype(float)
    whole = pixels(content, Decoder(part, 1000)).astype(float)
    assert 0 < np.abs(scaled - whole).max() <= 16
    assert np.abs(scaled - whole).mean() < 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_are_turned_upright(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = save(draw(40, 24), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert np.array_equal(pixels(content), np.asarray(upright).transpose(2, 0, 1))
    assert pixels(content).shape == ((3, 40, 24) if orientation > 4 else (3, 24, 40))


@pytest.mark.parametrize("damage", [b"Exif\0\0MM\0*\0\0\0\x08\0\x01", b"Exif\0\0rubbish", b"\xff"])
def test_a_damaged_orientation_is_ignored(damage):
    content = save(draw(40, 24), "JPEG", exif=damage)
    assert np.array_equal(pixels(content), plain(content))


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("1", "PNG"),
        ("L", "JPEG"),
        ("L", "PNG"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("P", "GIF"),
        ("RGBA", "PNG"),
        ("RGBA", "WEBP"),
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
        ("YCbCr", "TIFF"),
        ("LAB", "TIFF"),
        ("RGB", "BMP"),
        ("RGB", "PPM"),
        ("RGB", "ICO"),
        ("RGB", "JPEG2000"),
        ("RGB", "AVIF"),
    ],
)
def test_every_mode_with_a_meaning_is_converted_as_pillow_does(mode, kind):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("Pillow without AVIF")
    picture = draw(32, 32).convert("RGB")
    picture = picture.convert(mode) if mode != "LAB" else Image.merge("LAB", picture.split())
    if mode in {"LA", "RGBA"}:
        picture.putalpha(Image.linear_gradient("L").resize((32, 32)))
    content = save(picture, kind)
    assert np.array_equal(pixels(content), plain(content))


def heic(picture: Image.Image, **options: object) -> bytes:
    pytest.importorskip("pillow_heif").register_heif_opener()
    return save(picture, "HEIF", **options)


@pytest.mark.parametrize("orientation", [1, 6])
def test_heic_is_decoded_upright_where_its_plugin_is_installed(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = heic(draw(40, 24), quality=-1, chroma=444, exif=exif.tobytes())  # nearly lossless
    turned = Image.open(io.BytesIO(save(draw(40, 24), "PNG", exif=exif)))
    wanted = np.asarray(ImageOps.exif_transpose(turned)).transpose(2, 0, 1).astype(int)
    assert np.abs(pixels(content) - wanted).max() < 4
    assert isinstance(WHOLE(content[:-50]), Rejection)


def fail_to_load(**_: object) -> None:
    raise ImportError("libheif.so.1: cannot open shared object file")


@pytest.mark.parametrize("module", [None, SimpleNamespace(register_heif_opener=fail_to_load)])
def test_what_heic_and_avif_need_is_named_where_it_is_not_installed(monkeypatch, module):
    content, other = heic(draw(40, 24)), save(draw(40, 24), "AVIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", module)
    monkeypatch.setattr(packed_images, "_formats", packed_images._formats.__wrapped__)
    detail = "HEIC, which needs pillow-heif: run `pip install -e '.[heic]'`"
    assert WHOLE(content) == Rejection("unreadable", detail)
    assert isinstance(WHOLE(other), torch.Tensor)
    monkeypatch.setattr(packed_images, "_FORMATS", ("JPEG",))
    monkeypatch.setattr(features, "check", lambda _: False)
    detail = "AVIF, which needs a Pillow that is built with it"
    assert WHOLE(other) == Rejection("unreadable", detail)


@pytest.mark.parametrize("transparency", [3, bytes(range(200, 256))])
def test_transparency_of_a_palette_is_ignored_without_a_warning(transparency):
    content = save(draw(32, 32).quantize(60), "PNG", transparency=transparency)
    assert np.array_equal(pixels(content), plain(content))


def test_sixteen_bits_of_a_grey_png_keep_the_picture():
    content = save(Image.fromarray(np.arange(0, 65536, 64, np.uint16).reshape(32, 32)), "PNG")
    expected = (np.arange(0, 65536, 64) // 256).reshape(32, 32)
    assert np.array_equal(pixels(content), np.stack([expected] * 3))
    colours = make_png(2, 1, 16, 2, b"\0" + bytes([1, 200, 2, 200, 3, 200, 255, 0, 254, 255, 7, 7]))
    assert pixels(colours).tolist() == [[[1, 255]], [[2, 254]], [[3, 7]]]


def grey16() -> Image.Image:
    return Image.fromarray(np.full((4, 4), 700, np.uint16))


def test_pixels_without_a_meaning_as_brightness_are_rejected():
    integers = Image.fromarray(np.full((4, 4), 70_000, np.int32))
    floats = Image.fromarray(np.full((4, 4), 0.5, np.float32))
    contents = [save(image, "TIFF") for image in (grey16(), integers, floats)]
    for content in [*contents, b"P5 2 1 65535\n" + bytes(4)]:
        assert WHOLE(content).reason == "mode"


@pytest.mark.parametrize(
    ("content", "reason", "words"),
    [
        (b"", "unreadable", "no known image format"),
        (b"<html><body>404</body></html>", "unreadable", "no known image format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unreadable", "no known"),
        (save(draw(90, 60), "JPEG")[:900], "truncated", "truncated"),
        (save(draw(90, 60), "PNG")[:900], "truncated", "truncated"),
        (save(draw(90, 60), "GIF")[:-400], "truncated", "truncated"),
        (save(draw(90, 60), "WEBP")[:300], "unreadable", "OSError"),
        (make_bomb(10_000), "huge", "10000 x 10000"),
        (make_bomb(), "huge", "400000000 pixels"),
    ],
)
def test_bad_files_are_rejected_with_a_reason(content, reason, words):
    rejection = Decoder(PILToTensor(), SIDE)(content)
    assert isinstance(rejection, Rejection)
    assert rejection.reason == reason
    assert words in rejection.detail
    assert "\n" not in rejection.detail


def test_a_strip_that_would_become_huge_is_rejected():
    part, _ = split_transform(image_transform(SIDE, is_train=False, mean=MEAN, std=STD))
    rejection = Decoder(part, 1000)(save(Image.new("L", (1, 2000)), "PNG"))
    assert rejection == Rejection("huge", "a strip of 1 x 2000 pixels")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_of_many_frames_is_used(kind):
    first, second = draw(32, 32, seed=1), draw(32, 32, seed=2)
    options = {"lossless": True} if kind == "WEBP" else {}
    content = save(first, kind, save_all=True, append_images=[second], **options)
    expected = first if kind != "GIF" else Image.open(io.BytesIO(content)).convert("RGB")
    assert np.array_equal(pixels(content), np.asarray(expected).transpose(2, 0, 1))


def test_a_stop_signal_is_not_a_fault_of_the_image():
    def stopped(_image):
        raise InterruptedRunError("features was stopped by SIGTERM", "run it again")

    with pytest.raises(InterruptedRunError):
        Decoder(stopped, SIDE)(save(draw(9, 9), "PNG"))


SEEDS = [
    save(draw(60, 40), "JPEG"),
    save(draw(60, 40), "PNG"),
    save(draw(60, 40).quantize(9), "PNG", transparency=bytes(9)),
    save(draw(60, 40), "GIF"),
    save(draw(60, 40), "WEBP"),
    save(draw(60, 40), "BMP"),
    save(draw(60, 40), "TIFF"),
    save(draw(60, 40), "ICO"),
]


@given(
    seed=st.sampled_from(SEEDS),
    places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=30),
    end=st.floats(0.05, 1),
)
def test_no_damage_raises_or_warns(seed, places, end):
    damaged = bytearray(seed)
    for place, flip in places:
        damaged[int(place * len(damaged))] ^= flip
    decoded = Decoder(PILToTensor(), SIDE)(bytes(damaged[: int(end * len(damaged))]))
    assert isinstance(decoded, Rejection) or decoded.dtype == torch.uint8


@given(st.binary(max_size=300))
def test_no_bytes_raise(content):
    assert isinstance(Decoder(PILToTensor(), SIDE)(content), Rejection | torch.Tensor)


def test_threads_decode_as_one_does():
    decode = Decoder(PILToTensor(), SIDE)
    contents = [seed[: len(seed) - cut] for cut in (0, 30) for seed in SEEDS] * 20
    with ThreadPoolExecutor(8) as pool:
        many = list(pool.map(decode, contents))
    for content, found in zip(contents[: 2 * len(SEEDS)], many, strict=False):
        alone = decode(content)
        assert torch.equal(found, alone) if isinstance(alone, torch.Tensor) else found == alone


@pytest.mark.real
def test_photos_of_the_usual_size_are_those_of_the_plain_transform():
    from zipfile import ZipFile

    transform = image_transform(224, is_train=False, mean=MEAN, std=STD)
    part, rest = split_transform(transform)
    with ZipFile(SHARED / "mirror/Flickr8k_Dataset.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")][::400]
        for content in map(archive.read, names):
            expected = transform(Image.open(io.BytesIO(content)).convert("RGB"))
            decoded = Decoder(part, 224)(content)
            assert torch.equal(rest(decoded.float().div_(255)), expected)


def decode_with_little_memory(content: bytes, send) -> None:
    """In another process: with 64 MiB more than it has."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + (64 << 20),) * 2)
    try:
        send.send(str(WHOLE(content)))
    except MemoryError:
        send.send("MemoryError")


DECODE_WITH_LITTLE_MEMORY = """
import io, resource
from pathlib import Path
from PIL import Image
from pipeline.download.packed_images import decode_image

stream = io.BytesIO()
Image.new("RGB", (8, 4)).save(stream, "JPEG")
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
own, most = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (taken + {more}, most))
try:
    print(decode_image(stream.getvalue(), 8, lambda picture: picture.size))
except MemoryError:
    print("MemoryError")
"""


@pytest.mark.integration
@pytest.mark.parametrize(("more", "said"), [(4 << 20, "MemoryError"), (1 << 30, "(8, 4)")])
def test_running_out_of_memory_while_decoders_are_loaded_is_not_a_fault_of_the_image(more, said):
    """The libraries of HEIC, which every format waits for, are loaded with the first picture."""
    pytest.importorskip("pillow_heif")
    command = [sys.executable, "-c", DECODE_WITH_LITTLE_MEMORY.format(more=more)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == said, done.stderr


def test_running_out_of_memory_is_not_a_fault_of_the_image():
    """Or it would be left out of the features for good, because memory was short for a moment."""
    content = make_bomb(9_000)  # of 81 million pixels, which is not too many
    receive, send = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=decode_with_little_memory, args=(content, send))
    process.start()
    assert receive.poll(60)
    assert receive.recv() == "MemoryError"
    process.join(60)
    record("out of memory", "decode worker", "one clear line")
