"""Features in the field's own way: what `features_speed.py` measures ours against.

    python benchmarks/plain_features.py SYSTEM MODEL ARCHIVE TEXTS IMAGES CAPTIONS

prints one line of JSON with the seconds that each took, without loading the model. Every system
runs in a process of its own, so that none warms caches or sets allocators for another.
"""

import io
import json
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

BATCH = 64
WORKERS = 2

Timed = tuple[float, float]


class ZippedImages(Dataset[Any]):
    """Images of a zip, opened by every worker for itself."""

    def __init__(self, archive: Path, members: list[str], preprocess: Callable[..., Any]) -> None:
        self._archive, self._members, self._preprocess = archive, members, preprocess
        self._file: zipfile.ZipFile | None = None

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, row: int) -> Any:
        self._file = self._file or zipfile.ZipFile(self._archive)
        content = self._file.read(self._members[row])
        return self._preprocess(Image.open(io.BytesIO(content)).convert("RGB"))


def open_clip_loop(model_name: str, archive: Path, members: list[str], texts: list[str]) -> Timed:
    """open_clip with a DataLoader, float32, every caption at full context, in the given order."""
    import open_clip

    model, preprocess = open_clip.create_model_from_pretrained(model_name)
    tokenize = open_clip.get_tokenizer(model_name)
    model.eval()
    started = time.perf_counter()
    with torch.inference_mode():
        images = ZippedImages(archive, members, preprocess)
        torch.cat(
            [model.encode_image(x) for x in DataLoader(images, BATCH, num_workers=WORKERS)]
        ).half()
        middle = time.perf_counter()
        torch.cat(
            [model.encode_text(tokenize(batch)) for batch in DataLoader(texts, BATCH)]  # type: ignore[arg-type]
        ).half()
    return middle - started, time.perf_counter() - middle


def sentence_transformers_encode(
    model_name: str, archive: Path, members: list[str], texts: list[str]
) -> Timed:
    """The `encode` of sentence-transformers on a transformers CLIP directory."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(model_name.removeprefix("transformers:"), device="cpu")
    started = time.perf_counter()
    with zipfile.ZipFile(archive) as file:
        for start in range(0, len(members), 16 * BATCH):  # as many as memory bears at a time
            pictures = [
                Image.open(io.BytesIO(file.read(member))).convert("RGB")
                for member in members[start : start + 16 * BATCH]
            ]
            model.encode(pictures, batch_size=BATCH, show_progress_bar=False)
    middle = time.perf_counter()
    model.encode(texts, batch_size=BATCH, show_progress_bar=False)
    return middle - started, time.perf_counter() - middle


def ours(
    model_name: str,
    archive: Path,
    members: list[str],
    texts: list[str],
    precision: str = "auto",
) -> Timed:
    """This project's encoder, into an empty cache, with every shard written and synced."""
    import tempfile

    import numpy as np
    import pandas as pd

    from pipeline.core.device import choose_device, keep_freed_memory
    from pipeline.download.packed_images import PackedImages
    from pipeline.features.cache import FeatureCache, KeySet, first_of_each, text_keys
    from pipeline.features.encode import FeatureExtractor, NewCaptions
    from pipeline.features.teacher import Teacher
    from pipeline.params.features import FeaturesParams
    from pipeline.params.teacher import TeacherParams

    keep_freed_memory()
    params = FeaturesParams(
        engine="local",
        precision=precision,  # type: ignore[arg-type]
        batch_size=32,
        workers=WORKERS,
        shard_rows=2048,
        max_rejected=0.0,
    )
    teacher = Teacher(TeacherParams(model=model_name), choose_device(), params.precision)
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(Path(folder), teacher.identity, teacher.probe())
        extractor = FeatureExtractor(teacher, cache, params, show_progress=False)
        started = time.perf_counter()
        packed = PackedImages(archive.parent, [archive.name] * len(members), members)
        list(extractor.encode_images(packed, KeySet()))
        middle = time.perf_counter()
        keys = text_keys(texts)
        new = first_of_each(keys) & ~cache.known("captions").contains(keys)
        captions = NewCaptions(pd.Series(texts), keys, new, params.shard_rows)
        list(extractor.encode_captions(captions))
        assert np.asarray(new).any()
    return middle - started, time.perf_counter() - middle


SYSTEMS: dict[str, Callable[..., Timed]] = {
    "ours": ours,
    "ours_bf16": lambda *given: ours(*given, precision="bf16"),
    "open_clip": open_clip_loop,
    "sentence_transformers": sentence_transformers_encode,
}


def main() -> None:
    """Time one system; the arguments are those of the module's docstring."""
    system, model, archive, texts, images, captions = sys.argv[1:]
    with zipfile.ZipFile(archive) as file:
        members = [name for name in file.namelist() if name.endswith((".jpg", ".png"))]
    lines = Path(texts).read_text(encoding="utf-8").splitlines()[: int(captions)]
    wanted = [name for name in members if not name.startswith("__MACOSX/")][: int(images)]
    seconds = SYSTEMS[system](model, Path(archive), wanted, lines)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
