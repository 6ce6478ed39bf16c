"""The teacher's features of generated pictures and captions, end to end and piece by piece."""

import functools
import json
import os
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.measure import Bench, Values, is_there, median_seconds
from benchmarks.gpu.worlds import CAPTION_LENGTHS, draw_sentences, pack_pictures, save_clip
from pipeline.core.batching import ahead
from pipeline.download.packed_images import PackedImages
from pipeline.features.cache import FeatureCache, Keys, KeySet, Kind
from pipeline.features.encode import FeatureExtractor
from pipeline.features.teacher import Teacher
from pipeline.params.features import FeaturesParams
from pipeline.params.teacher import TeacherParams

NEEDS = ("PIL", "torchvision")
SIDES = (224, 500)
PICTURES = 4_096
"""Of each size; fewer decode threads are given fewer of them."""
OPEN_CLIP = {"ViT-B/32": "ViT-B-32", "ViT-L/14": "ViT-L-14"}


class Nowhere(FeatureCache):
    """A cache that keeps nothing, where h5py is missing."""

    def __init__(self) -> None:
        """It has no folder."""

    def known(self, kind: Kind) -> KeySet:  # noqa: ARG002
        """Nothing."""
        return KeySet()

    def write(self, kind: Kind, keys: Keys, features: Any) -> None:
        """Forget it."""


def run(bench: Bench) -> None:
    """Both towers of both sizes, in the library that the pipeline's default takes and another."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in ("ViT-L/14", "ViT-B/32"):
            for library, needs in (("open_clip", [*NEEDS, "open_clip"]), ("transformers", NEEDS)):
                take_model(bench, folder, f"{model} of {library}", needs)
        bench.take("JPEG decoded by torchvision's GPU decoder", lambda: gpu_decoder(bench, folder),
                   needs=NEEDS, cuda=True, seconds=5)  # fmt: skip


def take_model(bench: Bench, folder: Path, name: str, needs: Sequence[str]) -> None:
    """All measurements of one teacher."""
    teacher: list[Teacher] = []

    def load() -> Values:
        started = time.monotonic()
        teacher.append(load_teacher(bench, folder, name))
        return {"loading_s": round(time.monotonic() - started, 2)}

    bench.take(name, load, needs=needs, seconds=10)
    if not teacher:
        return
    forward = bench.take(f"{name}: forward alone", lambda: forward_alone(bench, teacher[0]))
    rate = float(forward.get("images_per_second", 0))
    for side in SIDES:
        for workers in worker_counts():
            bench.take(
                f"{name}: {side} pixels, {workers} workers",
                lambda side=side, workers=workers: end_to_end(
                    bench, teacher[0], folder, side, workers, rate
                ),
                seconds=3,
            )
    bench.take(f"{name}: captions", lambda: captions(bench, teacher[0]), seconds=2)


def worker_counts() -> list[int]:
    """All cores first, then fewer."""
    cores = os.cpu_count() or 1
    return sorted({0, max(1, cores // 2), cores}, reverse=True)


def load_teacher(bench: Bench, folder: Path, name: str) -> Teacher:
    """A teacher with random weights."""
    model, _, library = name.partition(" of ")
    place = folder / name.replace("/", "-").replace(" ", "-")
    if library == "transformers":
        source = save_clip(place, model, tiny=bench.tiny)
    else:
        source = save_open_clip(place, OPEN_CLIP[model], tiny=bench.tiny)
    return Teacher(TeacherParams(model=source), bench.device)


def save_open_clip(folder: Path, name: str, *, tiny: bool) -> str:
    """An open_clip model with random weights, as a folder."""
    import open_clip
    from safetensors.torch import save_file

    config = open_clip.get_model_config(name)
    if tiny:
        config["vision_cfg"] |= {"layers": 1, "width": 32, "head_width": 16}
        config["text_cfg"] |= {"layers": 1, "width": 32, "heads": 2}
    torch.manual_seed(0)
    model = open_clip.CLIP(**config)
    folder.mkdir()
    content = {"model_cfg": config, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(content), encoding="utf-8")
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def forward_alone(bench: Bench, teacher: Teacher) -> Values:
    """Images a second of `Teacher.encode_images`, on pixels at hand; their copies count."""
    batch = bench.of(2, 256)
    pixels = torch.randint(0, 256, (batch, 3, 224, 224), dtype=torch.uint8)
    seconds = median_seconds(lambda: teacher.encode_images(pixels), bench.of(1, 10))
    return {"images_per_second": round(batch / seconds, 1), "batch_size": batch}


def end_to_end(  # what is varied
    bench: Bench, teacher: Teacher, folder: Path, side: int, workers: int, forward: float
) -> Values:
    """Images a second from the archive to the cache."""
    path = folder / f"{side}.zip"
    members = archive_of(path, side, bench.of(6, PICTURES))[: 256 * (workers + 1)]
    count = len(members)
    params = FeaturesParams(
        engine="local",
        precision="auto",
        batch_size=bench.of(4, 256),
        workers=workers,
        shard_rows=2048,
        max_rejected=0.0,
    )
    with tempfile.TemporaryDirectory() as store:
        is_written = is_there("h5py")
        cache = (
            FeatureCache(Path(store), teacher.identity, np.zeros((2, 1), np.float32))
            if is_written
            else Nowhere()
        )
        extractor = FeatureExtractor(teacher, cache, params, show_progress=False)
        packed = PackedImages(folder, [path.name] * count, members)
        started = time.perf_counter()
        results = list(extractor.encode_images(packed, KeySet()))
        rate = count / (time.perf_counter() - started)
    if sum(result.encoded for result in results) != count:
        raise AssertionError("not all pictures were encoded")
    busy = {"busy_share": round(rate / forward, 3)} if forward else {}
    return {"images_per_second": round(rate, 1), **busy, "written": is_written}


@functools.cache
def archive_of(path: Path, side: int, count: int) -> list[str]:
    """Pictures of one size, packed once."""
    return pack_pictures(path, side, count)


def captions(bench: Bench, teacher: Teacher) -> Values:
    """Captions a second, tokenising among it."""
    texts = draw_sentences(bench.of(20, 20_000), CAPTION_LENGTHS, tiny=bench.tiny)
    batch = bench.of(8, 1024)
    seconds = median_seconds(lambda: teacher.encode(texts, batch_size=batch), bench.of(1, 2))
    return {"captions_per_second": round(len(texts) / seconds, 1), "batch_size": batch}


def gpu_decoder(bench: Bench, folder: Path) -> Values:
    """JPEGs a second on the GPU, against Pillow in threads of all cores; nothing is resized."""
    from torchvision.io import ImageReadMode, decode_jpeg

    result: Values = {}
    for side in SIDES:
        members = archive_of(folder / f"{side}.zip", side, bench.of(6, PICTURES))[:512]
        with zipfile.ZipFile(folder / f"{side}.zip") as file:
            contents = [file.read(member) for member in members]
        encoded = [torch.frombuffer(bytearray(one), dtype=torch.uint8) for one in contents]

        def on_gpu(encoded: list[Tensor] = encoded) -> None:
            for start in range(0, len(encoded), 64):
                decode_jpeg(encoded[start : start + 64], ImageReadMode.RGB, device="cuda")

        def on_cpu(contents: list[bytes] = contents) -> None:
            list(ahead(_decode, contents, threads=os.cpu_count() or 1, depth=256))

        for name, work in (("gpu", on_gpu), ("pillow", on_cpu)):
            rate = len(members) / median_seconds(work, 2)
            result[f"{name}_{side}_per_second"] = round(rate, 1)
    return result


def _decode(content: bytes) -> Any:
    import io

    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))
