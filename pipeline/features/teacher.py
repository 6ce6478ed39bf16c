"""The frozen CLIP teacher: the only user of open_clip."""

import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import open_clip
import torch
from jaxtyping import Float, Float32, Int
from numpy.typing import NDArray
from open_clip.transformer import TextTransformer
from PIL import Image
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.features.store import LOCAL_PREFIX, TeacherIdentity, hash_teacher_source
from pipeline.params.teacher import TeacherParams
from pipeline.runtime import hash_weights, length_batches, progress

Preprocess = Callable[[Image.Image], Tensor]


class Teacher:
    """A loaded teacher in inference mode.

    Args:
        params: which model.
        device: where it runs; on a GPU the forward pass runs under float16 autocast.
    """

    def __init__(self, params: TeacherParams, device: torch.device) -> None:
        source = hash_teacher_source(params.model)
        self.device = device
        model, self.preprocess, self._tokenizer = _load(params, device)
        self.model = cast(Any, model)
        self.identity = TeacherIdentity(
            model=params.model,
            pretrained=params.pretrained or "",
            source=source,
            weights=hash_weights(model),
            preprocessing=_describe(self.preprocess),
            library=f"open_clip {open_clip.__version__}",
            dtype="float16" if self._autocasts else "float32",
        )

    @property
    def _autocasts(self) -> bool:
        return self.device.type == "cuda"

    @torch.inference_mode()
    def encode_images(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch dim"]:
        """Features of preprocessed images, on the CPU, float32, not normalised."""
        with self._autocast():
            features = self.model.encode_image(images.to(self.device, non_blocking=True))
        return cast(Tensor, features).float().cpu()

    @torch.inference_mode()
    def encode_captions(self, captions: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Features of captions, on the CPU, float32, not normalised."""
        tokens = self._tokenizer(list(captions)).to(self.device)
        with self._autocast(), _cut_context(self.model, tokens) as cut:
            features = self.model.encode_text(cut)
        return cast(Tensor, features).float().cpu()

    def encode(
        self, sentences: Sequence[str], *, batch_size: int, show_progress: bool = False
    ) -> Float32[np.ndarray, "sentences dim"]:
        """The text tower as a sentence encoder: `encode_captions` in length order.

        Raises:
            ModelError: a feature is not finite.
        """
        batches = length_batches([len(sentence) for sentence in sentences], batch_size)
        parts = [
            self.encode_captions([sentences[row] for row in rows])
            for rows in progress(batches, what="teacher", unit="batch", show=show_progress)
        ]
        features = torch.cat(parts)[np.argsort(np.concatenate(batches))].numpy()
        if not np.isfinite(features).all():
            raise ModelError(
                "the teacher gave a feature that is not finite.", "check the teacher's weights."
            )
        return cast(NDArray[np.float32], features)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.float16, enabled=self._autocasts)


@contextlib.contextmanager
def _cut_context(
    model: nn.Module, tokens: Int[Tensor, "batch context"]
) -> Iterator[Int[Tensor, "batch cut"]]:
    """Cut the context to the longest caption of the batch where that is exact.

    Under causal attention no token before the end-of-text token, whose state is the feature,
    sees anything after it, so the padding behind the longest caption changes nothing.
    """
    text = getattr(model, "text", None)
    if not _is_causal(text):
        yield tokens
        return
    text = cast(Any, text)
    longest = int(_end_of_text(text, tokens).max()) + 1
    whole = text.attn_mask
    text.attn_mask = whole[:longest, :longest]
    try:
        yield tokens[:, :longest]
    finally:
        text.attn_mask = whole


def _is_causal(text: nn.Module | None) -> bool:
    return (
        isinstance(text, TextTransformer)
        and text.attn_mask is not None
        and text.cls_emb is None
        and not text.use_pad_mask
        and text.pool_type in {"argmax", "eos"}
    )


def _end_of_text(text: Any, tokens: Int[Tensor, "batch context"]) -> Int[Tensor, " batch"]:
    if text.pool_type == "eos":
        tokens = (tokens == text.eos_id).int()
    return tokens.argmax(dim=-1)


def _load(params: TeacherParams, device: torch.device) -> tuple[nn.Module, Preprocess, Any]:
    """Load model, image transform and tokenizer, and set inference mode.

    open_clip returns some models in training mode, where BatchNorm would use the statistics of
    the batch and overwrite its own; hence the `eval`.
    """
    _check_name(params)
    logging.getLogger().setLevel(logging.WARNING)
    try:
        model, preprocess = open_clip.create_model_from_pretrained(
            params.model,
            params.pretrained,
            device=device,
            force_quick_gelu=needs_quick_gelu(params.model, params.pretrained),
        )
        tokenizer = open_clip.get_tokenizer(params.model)
    except Exception as error:  # open_clip raises bare RuntimeError, KeyError, OSError, ...
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"teacher {params.model} ({params.pretrained}) cannot be loaded: {reason}",
            "check teacher.model and teacher.pretrained; `open_clip.list_pretrained()` names "
            "all that can be downloaded.",
        ) from error
    return model.eval().requires_grad_(requires_grad=False), preprocess, tokenizer


def needs_quick_gelu(model: str, pretrained: str | None) -> bool:
    """Whether the weights were trained with QuickGELU, as OpenAI's were.

    open_clip only warns where the architecture's own activation is another, and the features are
    then silently wrong.
    """
    tag = open_clip.get_pretrained_cfg(model, pretrained) if pretrained else None
    return bool((tag or {}).get("quick_gelu", False))


def _check_name(params: TeacherParams) -> None:
    """Catch the two usual slips before anything is downloaded."""
    if params.model.startswith(LOCAL_PREFIX):
        config = Path(params.model.removeprefix(LOCAL_PREFIX)) / "open_clip_config.json"
        if not config.is_file():
            raise ModelError(f"teacher.model: {config} is missing.", "name an open_clip folder.")
    elif ":" not in params.model and params.pretrained is None:
        raise ModelError(
            f"teacher.pretrained is null, but {params.model} names no weights of its own.",
            "set teacher.pretrained to a weights tag such as openai.",
        )


def _describe(preprocess: Preprocess) -> str:
    """The transform as text, without the memory addresses of its functions."""
    return re.sub(r" at 0x[0-9a-f]+", "", " ".join(str(preprocess).split()))
