"""Read -> decode -> encode -> write: the teacher's features of all images and captions."""

import io
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float16, Int64
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.download.archives import Archive
from pipeline.download.records import Pairs
from pipeline.errors import InputError
from pipeline.features.store import Features
from pipeline.features.teacher import Preprocess, Teacher
from pipeline.params.features import FeaturesParams
from pipeline.runtime import leave_signals_to_parent, length_batches, log, progress

Decoded = Tensor | str
"""A preprocessed image, or the reason why it was rejected."""


@dataclass(frozen=True)
class Extraction:
    """Features of everything readable, and an account of the rest."""

    features: Features
    rejected: pd.DataFrame
    """One row an unreadable image: image_id, archive, member, reason."""
    metrics: dict[str, Any]


def extract_features(pairs: Pairs, teacher: Teacher, params: FeaturesParams) -> Extraction:
    """Encode all images and captions of the pairs; captions of rejected images are left out.

    Raises:
        InputError: more images than `max_rejected` are unreadable, or no image is left.
    """
    started = time.perf_counter()
    images, reasons = _encode_images(pairs, teacher, params)
    images_done = time.perf_counter()
    rejected = _rejected_table(pairs.images, reasons)
    _check_share(rejected, len(pairs.images), params.max_rejected)
    kept = pairs.images[[reason is None for reason in reasons]]
    captions = pairs.captions[pairs.captions["image_id"].isin(kept["image_id"])]
    caption_features = _encode_captions(list(captions["caption"]), teacher, params.batch_size)
    captions_done = time.perf_counter()
    features = Features(
        images=images,
        image_ids=kept["image_id"].to_numpy(np.int64),
        captions=caption_features,
        caption_ids=captions["caption_id"].to_numpy(np.int64),
        caption_image=_rows_of(captions["image_id"].to_numpy(), kept["image_id"].to_numpy()),
    )
    metrics = {
        "images": len(images),
        "captions": len(caption_features),
        "rejected": len(rejected),
        "rejected_by_reason": rejected["reason"].value_counts().to_dict(),
        "dim": features.dim,
        "images_per_second": round(len(pairs.images) / (images_done - started), 1),
        "captions_per_second": round(len(caption_features) / (captions_done - images_done), 1),
    }
    return Extraction(features, rejected, metrics)


class _PackedImages(Dataset[Decoded]):
    """Decoded images of the pairs; every worker opens the archives for itself."""

    def __init__(self, folder: Path, rows: pd.DataFrame, preprocess: Preprocess) -> None:
        self._folder = folder
        self._rows = list(zip(rows["archive"], rows["member"], strict=True))
        self._preprocess = preprocess
        self._archives: dict[str, Archive] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Decoded:
        try:
            return decode_image(self._read(*self._rows[row]), self._preprocess)
        except KeyError:
            return "not in the archive"
        except InputError as error:
            return error.what

    def check_archives(self) -> None:
        """Open every archive once, here, where its error can reach the user."""
        for name in sorted({archive for archive, _ in self._rows}):
            with Archive(self._folder / name):
                pass

    def _read(self, archive: str, member: str) -> bytes:
        if archive not in self._archives:
            self._archives[archive] = Archive(self._folder / archive)
        return self._archives[archive].read(member)


def decode_image(content: bytes, preprocess: Preprocess) -> Decoded:
    """Decode and preprocess one image, or say why it cannot be used."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", message=".*[Tt]ransparency")
        try:
            with Image.open(io.BytesIO(content)) as image:
                return preprocess(image.convert("RGB"))
        except UnidentifiedImageError:
            return "no known image format"
        except Exception as error:  # noqa: BLE001  # decoders raise whatever hostile bytes make them
            return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _encode_images(
    pairs: Pairs, teacher: Teacher, params: FeaturesParams
) -> tuple[Float16[np.ndarray, "kept dim"], list[str | None]]:
    features: list[Float16[np.ndarray, "batch dim"]] = []
    reasons: list[str | None] = []
    for images, batch_reasons in _decoded_batches(pairs, teacher, params):
        reasons += batch_reasons
        if images is not None:
            features.append(_to_float16(teacher.encode_images(images), "an image"))
    return np.concatenate(features) if features else np.empty((0, 0), np.float16), reasons


def _decoded_batches(
    pairs: Pairs, teacher: Teacher, params: FeaturesParams
) -> Iterator[tuple[Tensor | None, list[str | None]]]:
    images = _PackedImages(pairs.folder, pairs.images, teacher.preprocess)
    images.check_archives()
    loader: DataLoader[Any] = DataLoader(
        images,
        batch_size=params.batch_size,
        num_workers=params.workers,
        collate_fn=_collate,
        worker_init_fn=_prepare_worker,
    )
    return progress(loader, what="images", unit="batch", total=len(loader))


def _prepare_worker(worker: int) -> None:
    """Let the parent speak for its workers, also when it is stopped.

    Errors of decoding travel to the parent as results; what a worker could still print is the
    traceback of a thread whose connection to a stopped parent broke.
    """
    leave_signals_to_parent(worker)
    sys.excepthook = lambda *_: None


def _collate(decoded: list[Decoded]) -> tuple[Tensor | None, list[str | None]]:
    """Stack what was decoded; None stands for the reason of a good image."""
    images = [item for item in decoded if isinstance(item, Tensor)]
    reasons = [item if isinstance(item, str) else None for item in decoded]
    return (torch.stack(images) if images else None), reasons


def _encode_captions(
    captions: list[str], teacher: Teacher, batch_size: int
) -> Float16[np.ndarray, "captions dim"]:
    """Encode in length order, so that a batch holds captions of like length."""
    batches = length_batches([len(caption) for caption in captions], batch_size)
    result: np.ndarray[Any, np.dtype[np.float16]] | None = None
    for rows in progress(batches, what="captions", unit="batch"):
        batch = _to_float16(teacher.encode_captions([captions[row] for row in rows]), "a caption")
        if result is None:
            result = np.empty((len(captions), batch.shape[1]), np.float16)
        result[rows] = batch
    if result is None:
        raise InputError("no caption is left to encode.", "check the pairs: `dvc repro download`.")
    return result


def _to_float16(features: Tensor, what: str) -> Float16[np.ndarray, "batch dim"]:
    values = features.to(torch.float16)
    if not torch.isfinite(values).all():
        raise InputError(
            f"the teacher gave features of {what} that are not finite in float16.",
            "check the teacher's weights; another precision or model may be needed.",
        )
    return values.numpy()


def _rows_of(
    ids: Int64[np.ndarray, " captions"], table: Int64[np.ndarray, " images"]
) -> Int64[np.ndarray, " captions"]:
    rows: NDArray[np.int64] = pd.Index(table).get_indexer(pd.Index(ids)).astype(np.int64)
    return rows


def _rejected_table(images: pd.DataFrame, reasons: list[str | None]) -> pd.DataFrame:
    table = images[["image_id", "archive", "member"]].assign(
        reason=pd.Series(reasons, index=images.index, dtype="str")
    )
    rejected = table[table["reason"].notna()].reset_index(drop=True)
    for row in rejected.head(5).itertuples():
        log.warning("rejected image %s in %s: %s", row.member, row.archive, row.reason)
    return rejected


def _check_share(rejected: pd.DataFrame, images: int, limit: float) -> None:
    if len(rejected) == images:
        raise InputError(
            f"all {images} images were rejected, the first, {rejected['member'][0]}, because: "
            f"{rejected['reason'][0]}.",
            "check the image archive.",
        )
    if len(rejected) > limit * images:
        raise InputError(
            f"{len(rejected)} of {images} images were rejected, more than "
            f"features.max_rejected = {limit:g} allows; the first, {rejected['member'][0]}, "
            f"because: {rejected['reason'][0]}.",
            "mend the archive, or raise features.max_rejected.",
        )
