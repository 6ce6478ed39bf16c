"""The frozen teacher: from image bytes and captions to features."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.core.batching import length_batches
from pipeline.core.checksums import hash_weights
from pipeline.core.device import warn_of_slow
from pipeline.core.errors import ModelError
from pipeline.core.progress import progress
from pipeline.download.packed_images import Rejection
from pipeline.features.identity import (
    LOCAL_PREFIX,
    TRANSFORMERS_PREFIX,
    TeacherIdentity,
    folder_of,
    hash_teacher_source,
)
from pipeline.features.images import Decoder
from pipeline.features.tokens import Rows, Tokens
from pipeline.params.features import Precision
from pipeline.params.teacher import TeacherParams

_DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
_PROBE_CAPTION = "A small dog's red ball, on 2 square metres of grass."
_PROBE_SIZE = (640, 480)


@runtime_checkable
class Backend(Protocol):
    """A loaded model of one library, in inference mode."""

    model: Any
    decode: Decoder
    library: str
    architecture: str
    preprocessing: str
    tokenizer: str

    def scale(
        self, pixels: UInt8[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """The input of the model for these pixels."""
        ...

    def encode_images(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch dim"]:
        """Features, on the model's device."""
        ...

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Token ids, on the CPU."""
        ...

    def encode_tokens(self, tokens: Tokens) -> Float[Tensor, "batch dim"]:
        """Features; they and the tokens are on the model's device."""
        ...


class Teacher:
    """A loaded teacher in inference mode.

    Args:
        params: which model.
        device: where it runs.
        precision: type of the forward pass; auto: float16 on a CUDA GPU, else float32. Weights
            stay in float32; autocast decides which operations use the other type.

    Attributes:
        device: where it runs.
        identity: everything that its features depend on.
        decode: from an image's bytes to the input of `encode_images`, without the model.

    Raises:
        ModelError: it cannot be loaded.
    """

    def __init__(
        self, params: TeacherParams, device: torch.device, precision: Precision = "auto"
    ) -> None:
        source = hash_teacher_source(params.model)
        self.device = device
        self._dtype = _dtype_of(precision, device)
        self._backend = _load(params, device)
        self.decode = self._backend.decode
        self.identity = TeacherIdentity(
            model=params.model,
            pretrained=params.pretrained or "",
            source=source,
            architecture=self._backend.architecture,
            weights=hash_weights(self._backend.model),
            preprocessing=self._backend.preprocessing,
            tokenizer=self._backend.tokenizer,
            library=self._backend.library,
            dtype=str(self._dtype).removeprefix("torch."),
        )
        self._backend.model.to(memory_format=self._layout)
        if precision == "fp32":
            torch.backends.cudnn.allow_tf32 = False  # it keeps only 10 bits of each factor

    @property
    def model(self) -> Any:
        """The library's own model."""
        return self._backend.model

    @torch.inference_mode()
    def encode_images(
        self, pixels: UInt8[Tensor, "batch 3 height width"] | Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch dim"]:
        """Features of decoded images, on the CPU, float32, not normalised."""
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()
        images = pixels.to(self.device, non_blocking=True).contiguous(memory_format=self._layout)
        with self._autocast():
            scaled = self._backend.scale(images) if images.dtype == torch.uint8 else images
            features = self._backend.encode_images(scaled)
        return features.float().cpu()

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Token ids of captions, cut to the model's context."""
        return self._backend.tokenize(captions)

    def lengths(self, tokens: Tokens) -> Int64[np.ndarray, " captions"]:
        """How many tokens of each caption its feature depends on."""
        return tokens.lengths

    @torch.inference_mode()
    def encode_tokens(self, tokens: Tokens, rows: Rows) -> Float[Tensor, "batch dim"]:
        """Features of these rows of `tokens`, on the CPU, float32, not normalised."""
        with self._autocast():
            features = self._backend.encode_tokens(tokens.take(rows).to(self.device))
        return features.float().cpu()

    def encode_captions(self, captions: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Features of captions, on the CPU, float32, not normalised."""
        return self.encode_tokens(self.tokenize(captions), range(len(captions)))

    def encode(
        self, sentences: Sequence[str], *, batch_size: int, show_progress: bool = False
    ) -> Float32[np.ndarray, "sentences dim"]:
        """The text tower as a sentence encoder: `encode_captions`, batched by length.

        Raises:
            ModelError: a feature is not finite.
        """
        tokens = self.tokenize(sentences)
        batches = length_batches(self.lengths(tokens).tolist(), batch_size)
        parts = [
            self.encode_tokens(tokens, rows)
            for rows in progress(batches, what="teacher", unit="batch", show=show_progress)
        ]
        features = torch.cat(parts)[np.argsort(np.concatenate(batches))].numpy()
        if not np.isfinite(features).all():
            raise ModelError(
                "the teacher gave a feature that is not finite.", "check the teacher's weights."
            )
        return cast(NDArray[np.float32], features)

    def probe(self) -> Float32[np.ndarray, "two dim"]:
        """Features of a fixed picture and a fixed caption, each encoded alone.

        They show when a new version of a library gives other numbers.

        Raises:
            ModelError: the teacher cannot encode them.
        """
        pixels = self.decode(_draw_probe())
        if isinstance(pixels, Rejection):
            raise ModelError(
                f"the teacher's own transform fails: {pixels.detail}", "check its preprocessing."
            )
        features = [self.encode_images(pixels[None]), self.encode_captions([_PROBE_CAPTION])]
        return cast(NDArray[np.float32], torch.cat(features).numpy())

    @property
    def _layout(self) -> torch.memory_format:
        # Convolutions are faster with channels last, which Apple's do not support.
        return torch.contiguous_format if self.device.type == "mps" else torch.channels_last

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self._dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self._dtype)


def _dtype_of(precision: Precision, device: torch.device) -> torch.dtype:
    if precision == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    warn_of_slow("features.precision", precision, device)
    return _DTYPES[precision]


def _load(params: TeacherParams, device: torch.device) -> Backend:
    """Load with the library that the name, or else the folder's configuration, belongs to.

    Raises:
        ModelError: the model cannot be loaded.
    """
    if params.is_imported:
        raise ModelError(
            f"teacher.model {params.model} is known by imported vectors only; it cannot encode a "
            "new picture or text.",
            "search by text, or name in teacher.model a model to load, and train with it.",
        )
    folder, is_named = folder_of(params.model), params.model.startswith(TRANSFORMERS_PREFIX)
    if not is_named and (folder is None or (folder / "open_clip_config.json").is_file()):
        from pipeline.features.openclip import OpenClipTeacher

        return OpenClipTeacher(params, device)
    if not is_named and folder is not None and not (folder / "config.json").is_file():
        raise ModelError(
            f"teacher.model: {folder} has neither open_clip_config.json nor config.json.",
            f"name a folder of an open_clip or transformers model after {LOCAL_PREFIX}",
        )
    from pipeline.features.huggingface import HuggingFaceTeacher

    name = params.model.removeprefix(TRANSFORMERS_PREFIX)
    return HuggingFaceTeacher(name if is_named else str(folder), device)


def _draw_probe() -> bytes:
    """A JPEG of gradients, edges and fine stripes."""
    width, height = _PROBE_SIZE
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    channels = [x * 255 // width, (x // 40 + y // 40) % 2 * 200, (x * y // 64) % 256]
    picture = Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=90)
    return stream.getvalue()
