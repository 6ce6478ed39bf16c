"""Teachers of transformers: CLIP and SigLIP, without running third-party code."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import transformers
from jaxtyping import Float, Int, Int64, UInt8
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer
from transformers.image_processing_backends import TorchvisionBackend

from pipeline.core.errors import ModelError
from pipeline.core.pretrained import LOAD_HINT, is_pickled
from pipeline.core.redact import first_line
from pipeline.features.identity import (
    PROBE_TEXTS,
    describe_tokenizer,
    hash_architecture,
    hash_tokenizer,
)
from pipeline.features.images import CONVENTION, Decoder
from pipeline.features.tokens import Tokens

_KINDS = ("clip", "siglip")
_OLD_END = 2
"""In CLIP configurations, this end-of-text id stands for the highest id of a text."""
_NO_CODE = {"trust_remote_code": False}
"""Without it, transformers asks at the terminal whether to run a folder's code."""


class HuggingFaceTeacher:
    """A CLIP or SigLIP model of transformers, in inference mode.

    Args:
        name: folder or hub name.
        device: where it runs.

    Raises:
        ModelError: it cannot be loaded, is of another kind, or lacks weights, tokenizer or image
            processor.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        config = _load_config(name)
        model, processor, tokenizer = _load(name)
        _require_vocabulary(name, tokenizer, config.text_config.vocab_size)
        self.model = cast(Any, model.to(device))
        self.library = f"transformers {transformers.__version__}"
        self._is_causal = config.model_type == "clip"
        self._end = config.text_config.eos_token_id
        self._context = min(
            int(config.text_config.max_position_embeddings), int(tokenizer.model_max_length)
        )
        self._tokenizer = tokenizer
        self._processor = processor
        self.decode = _make_decoder(name, processor)
        self.architecture = hash_architecture(model, config.to_dict())
        settings = json.dumps(processor.to_dict(), sort_keys=True, default=str)
        self.preprocessing = f"{CONVENTION}; {processor.backend} {settings}"
        rules = [*describe_tokenizer(tokenizer), str(self._context)]
        self.tokenizer = hash_tokenizer(rules, self.tokenize(PROBE_TEXTS).ids)

    def scale(
        self, pixels: UInt8[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """The last steps of the image processor, rescaling and normalising, for a batch."""
        return _scale(self._processor, pixels)

    def encode_images(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch dim"]:
        """Features of processed images, not normalised."""
        return cast(Tensor, self.model.get_image_features(pixel_values=images).pooler_output)

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Token ids, cut and padded to the context: SigLIP was trained on padded texts."""
        encoded = self._tokenizer(
            [caption.encode("utf-8", "replace").decode() for caption in captions],
            padding="max_length",
            truncation=True,
            max_length=self._context,
            return_tensors="pt",
        )
        ids = encoded["input_ids"]
        return Tokens(ids, self._lengths(ids), encoded.get("attention_mask"))

    def _lengths(self, ids: Int[Tensor, "captions context"]) -> Int64[np.ndarray, " captions"]:
        """Under CLIP's causal attention, the tokens up to the end-of-text token; else all."""
        if not self._is_causal:
            return np.full(len(ids), self._context, np.int64)
        last = (ids if self._end == _OLD_END else (ids == self._end).int()).argmax(dim=-1)
        return last.numpy() + 1

    def encode_tokens(self, tokens: Tokens) -> Float[Tensor, "batch dim"]:
        """Features of captions, not normalised."""
        output = self.model.get_text_features(input_ids=tokens.ids, attention_mask=tokens.mask)
        return cast(Tensor, output.pooler_output)


@dataclass(frozen=True)
class _Process:
    """An image processor, from a picture to pixels: all steps, or those for single images."""

    processor: Any
    whole: bool
    """Rescale and normalise too."""

    def __call__(self, image: Image.Image) -> Tensor:
        steps = {} if self.whole else {"do_rescale": False, "do_normalize": False}
        pixels = self.processor(image, return_tensors="pt", **steps)["pixel_values"][0]
        return cast(Tensor, pixels)


def _scale(
    processor: Any, pixels: UInt8[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch 3 height width"]:
    mean, deviation = (
        tuple(of) if isinstance(of, list) else of
        for of in (processor.image_mean, processor.image_std)
    )
    scaled = processor.rescale_and_normalize(
        pixels,
        processor.do_rescale,
        processor.rescale_factor,
        processor.do_normalize,
        mean,
        deviation,
    )
    return cast(Tensor, scaled.float())


def _make_decoder(name: str, processor: Any) -> Decoder:
    """The image processor as a decoder, after checking that it gives one shape.

    Raises:
        ModelError: it does not resize, or gives pictures of different shapes.
    """
    tried = [Image.linear_gradient("L").resize(size).convert("RGB") for size in _TRIED]
    process = _Process(processor, whole=True)
    wholes = _reported(name, lambda: [process(picture) for picture in tried])
    sides = [side for side in processor.to_dict()["size"].values() if side]
    if not processor.do_resize or len({tuple(one.shape) for one in wholes}) > 1 or not sides:
        raise ModelError(
            f"teacher {name}: its image processor gives pictures of different sizes.",
            "name a model whose preprocessor_config.json resizes and crops to one size.",
        )
    parts = _Process(processor, whole=False)
    splits = isinstance(processor, TorchvisionBackend) and all(
        _is_split(parts(picture), whole, processor)
        for picture, whole in zip(tried, wholes, strict=True)
    )
    return Decoder(parts if splits else process, int(max(sides)))


_TRIED = ((40, 60), (60, 40))


def _is_split(part: Tensor, whole: Tensor, processor: Any) -> bool:
    """Whether scaling the first part's pixels gives the same as the whole processor.

    It does not if the processor does more after that, such as padding.
    """
    return part.dtype == torch.uint8 and torch.equal(_scale(processor, part[None])[0], whole)


def _load_config(name: str) -> Any:
    config = _reported(name, lambda: AutoConfig.from_pretrained(name, trust_remote_code=False))
    if config.model_type not in _KINDS:
        raise ModelError(
            f"teacher {name} is a model of type {config.model_type}, which is not supported.",
            "name a transformers model of type clip or siglip (SigLIP 2 with images of one size "
            "is of type siglip), or an open_clip model.",
        )
    return config


def _load(name: str) -> tuple[nn.Module, Any, Any]:
    """Load model, image processor and tokenizer, and set inference mode."""
    _silence()
    pickled = is_pickled(name)
    tokenizer = _reported(name, lambda: AutoTokenizer.from_pretrained(name, **_NO_CODE))
    processor = _reported(
        name, lambda: cast(Any, AutoImageProcessor).from_pretrained(name, **_NO_CODE)
    )
    model, info = _reported(
        name,
        lambda: AutoModel.from_pretrained(
            name,
            dtype=torch.float32,
            use_safetensors=not pickled,
            weights_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        ),
    )
    if lacking := sorted(info["missing_keys"]):
        raise ModelError(
            f"teacher {name} lacks {len(lacking)} of its weights, the first {lacking[0]}.",
            "download the model's weights again.",
        )
    return model.eval().requires_grad_(requires_grad=False), processor, tokenizer


def _reported(name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:
        raise ModelError(
            f"teacher {name} cannot be loaded with transformers: {first_line(error)}.",
            f"{LOAD_HINT[:-1]}; its pictures need preprocessor_config.json.",
        ) from error


def _require_vocabulary(name: str, tokenizer: Any, size: int) -> None:
    """Refuse the empty tokenizer that transformers makes up if a folder has none."""
    ids = tokenizer.get_vocab().values()
    if len(ids) <= len(tokenizer.all_special_tokens) or max(ids) >= size:
        raise ModelError(
            f"teacher {name}: its tokenizer has {len(ids)} tokens, its model {size}.",
            "check that the tokenizer files are there and belong to this model.",
        )


def _silence() -> None:
    """Keep reports about weights and loading bars off the screen."""
    from transformers.utils import logging

    cast(Any, logging).set_verbosity_error()
    cast(Any, logging).disable_progress_bar()
