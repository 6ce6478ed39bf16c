"""A CLIP model whose features are computed once, for users of the library."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float32

from pipeline.core.device import choose_device
from pipeline.core.errors import InputError
from pipeline.download.archives import MAX_MEMBER_BYTES
from pipeline.download.packed_images import PackedImages, Rejection
from pipeline.features.cache import FeatureCache, Keys, Kind
from pipeline.features.encode import FeatureExtractor, collect, find_new
from pipeline.features.hdf5 import DamagedFeaturesError
from pipeline.features.teacher import Teacher
from pipeline.params.features import FeaturesParams, Precision
from pipeline.params.teacher import TeacherParams

Rows = Float32[np.ndarray, "rows dim"]


class CachedTeacher:
    """A frozen CLIP model with a cache: no image or caption is ever encoded twice.

    The cache is addressed by content: model weights and preprocessing, and the bytes of an image or
    the text of a caption. The commands of the pipeline share it (`data/store`). Features are kept
    as float16 and are not normalised.

    Args:
        model: an open_clip architecture (`ViT-B-32`), `hf-hub:ORG/NAME`, `local-dir:PATH` or
            `transformers:NAME`.
        pretrained: the open_clip weights tag (`openai`); None where `model` names its weights.
        cache: the folder of the cache.
        device: None: the first GPU, else the CPU.
        precision: of the forward pass; auto: fp16 on a CUDA GPU, else fp32.
        batch_size: images or captions a forward pass.
        show_progress: whether to draw progress bars.

    Raises:
        ModelError: the model cannot be loaded.
    """

    def __init__(
        self,
        model: str,
        pretrained: str | None,
        cache: str | Path,
        *,
        device: torch.device | None = None,
        precision: Precision = "auto",
        batch_size: int = 32,
        show_progress: bool = False,
    ) -> None:
        params = FeaturesParams(precision=precision, batch_size=batch_size)
        named = TeacherParams(model=model, pretrained=pretrained)
        teacher = Teacher(named, device or choose_device(), precision)
        self._cache = FeatureCache(Path(cache), teacher.identity, teacher.probe())
        self._extractor = FeatureExtractor(
            teacher, self._cache, params, show_progress=show_progress
        )

    def encode_captions(self, texts: Iterable[str]) -> Rows:
        """The features of texts, one row each.

        Raises:
            ModelError: the model gives features that are not finite.
            ResourceError: the cache cannot be read or written.
        """
        captions = pd.Series(list(texts), dtype="str")

        def encode() -> Keys:
            new = find_new(captions, self._cache, self._extractor.params.shard_rows)
            for _ in self._extractor.encode_captions(new):
                pass
            return new.keys

        return self._rows("captions", encode)

    def encode_images(self, paths: Iterable[str | Path]) -> Rows:
        """The features of image files, one row each.

        Raises:
            InputError: naming the first image that cannot be used; the others are in the cache.
            ModelError, ResourceError: as `encode_captions`.
        """
        images = ImageFiles([Path(path) for path in paths])

        def encode() -> Keys:
            results = self._extractor.encode_images(images, self._cache.known("images"))
            keys, rejected, _ = collect(results, len(images))
            if rejected:
                row, why = next(iter(rejected.items()))
                raise InputError(
                    f"{len(rejected)} of {len(images)} images cannot be used, the first is "
                    f"{images.paths[row]}: {why.reason} ({why.detail}).",
                    "leave them out, or replace them.",
                )
            return keys

        return self._rows("images", encode)

    def _rows(self, kind: Kind, encode: Callable[[], Keys]) -> Rows:
        """Encode and read; what turns out to be damaged in the cache is encoded again."""
        with self._cache.in_use():
            while True:
                try:
                    return self._cache.rows(kind, encode())[:].astype(np.float32)
                except DamagedFeaturesError as error:
                    self._cache.drop(error.path)


class ImageFiles(PackedImages):
    """Files that are read as if they were packed."""

    def __init__(self, paths: list[Path]) -> None:
        super().__init__(Path(), [], [str(path) for path in paths])
        self.paths = paths

    def read(self, row: int) -> bytes | Rejection:
        """The bytes of a file, or why there are none."""
        try:
            if self.paths[row].stat().st_size > MAX_MEMBER_BYTES:
                return Rejection("huge", f"more than {MAX_MEMBER_BYTES:,} bytes")
            return self.paths[row].read_bytes()
        except FileNotFoundError:
            return Rejection("missing", "there is no such file")
        except OSError as error:
            return Rejection("unreadable", error.strerror or str(error))
