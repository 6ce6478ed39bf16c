"""Teachers of open_clip: the only module of the pipeline that uses that library."""

import contextlib
import copy
import functools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import open_clip
import torch
from jaxtyping import Bool, Float, Int, Int64, UInt8
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer, get_clean_fn
from open_clip.transform import CenterCropOrPad, MaybeConvertMode, ResizeKeepRatio
from open_clip.transformer import ResidualAttentionBlock, TextTransformer
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import (
    CenterCrop,
    Compose,
    Normalize,
    PILToTensor,
    Resize,
    ToTensor,
)

from pipeline.core.errors import ModelError
from pipeline.core.redact import first_line
from pipeline.features.identity import (
    PROBE_TEXTS,
    describe_tokenizer,
    hash_architecture,
    hash_tokenizer,
    without_addresses,
)
from pipeline.features.images import CONVENTION, Decoder
from pipeline.features.tokens import Tokens
from pipeline.params.teacher import TeacherParams

Tokenizer = Callable[[list[str]], Int[Tensor, "captions context"]]
Clean = Callable[[str], str]

_OF_PICTURES = (Resize, ResizeKeepRatio, CenterCrop, CenterCropOrPad, MaybeConvertMode)
"""Steps of a transform that take and give a picture."""

_WORDS = 1 << 18
"""Words whose token ids are kept."""


class OpenClipTeacher:
    """A model of open_clip with its transform and tokenizer, in inference mode.

    Args:
        params: which model.
        device: where it runs.

    Raises:
        ModelError: it cannot be loaded.
    """

    def __init__(self, params: TeacherParams, device: torch.device) -> None:
        model, transform, tokenizer = _load(params, device)
        self.model = cast(Any, model)
        self.library = f"open_clip {open_clip.__version__}"
        self._text = CausalText.of(model)
        self._tokenizer = quick_tokenizer(tokenizer)
        picture, self._normalize = split_transform(transform)
        self.decode = Decoder(picture, _side_of(model))
        self.architecture = hash_architecture(model)
        config = json.dumps(open_clip.get_model_preprocess_cfg(model), sort_keys=True)
        self.preprocessing = f"{CONVENTION}; {without_addresses(str(transform))} {config}"
        rules = _describe_tokenizer(tokenizer)
        self.tokenizer = hash_tokenizer(rules, self._tokenizer(list(PROBE_TEXTS)))

    def scale(
        self, pixels: UInt8[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """The last steps of the transform, ToTensor and Normalize, for a batch."""
        scaled = pixels.float().div_(255)
        return scaled if self._normalize is None else cast(Tensor, self._normalize(scaled))

    def encode_images(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch dim"]:
        """Features of transformed images, not normalised."""
        # Some models (CoCa) normalise by default.
        return cast(Tensor, self.model.encode_image(images, normalize=False))

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Token ids, cut and padded to the context by the tokenizer."""
        ids = self._tokenizer(list(captions))
        if self._text is None:
            return Tokens(ids, np.full(len(ids), ids.shape[1], np.int64))
        return Tokens(ids, self._text.last_tokens(ids).numpy() + 1)

    def encode_tokens(self, tokens: Tokens) -> Float[Tensor, "batch dim"]:
        """Features of captions, not normalised."""
        if self._text is None:
            return cast(Tensor, self.model.encode_text(tokens.ids, normalize=False))
        return self._text(tokens.ids)


class CausalText:
    """A causal text tower, run only on the tokens that its features depend on.

    The feature is the state of the end-of-text token, which under causal attention depends on no
    later token. Captions may therefore be cut there, and only this state of the last block is
    needed.

    Args:
        tower: holds token_embedding, positional_embedding, transformer, ln_final and
            text_projection.
        mask: the additive mask of its attention, (context, context).
        end: id of the end-of-text token; None: the highest id.
    """

    def __init__(
        self, tower: nn.Module, mask: Float[Tensor, "context context"], end: int | None
    ) -> None:
        self._tower = cast(Any, tower)
        self._mask = mask
        self._end = end
        self._is_plain = all(map(_is_plain, self._tower.transformer.resblocks))

    @classmethod
    def of(cls, model: nn.Module) -> "CausalText | None":
        """The text tower of an open_clip model; None if features depend on the whole context.

        They do in towers without a causal mask, with another pooling than the end-of-text token's
        state (SigLIP), with a class token after the padding (CoCa), and in those of transformers,
        which use their own padding mask.
        """
        tower = model if type(model) is open_clip.CLIP else getattr(model, "text", None)
        if type(tower) not in {open_clip.CLIP, TextTransformer}:
            return None
        known = cast(Any, tower)
        prefix = "text_" if tower is model else ""
        pooling, end = getattr(known, f"{prefix}pool_type"), getattr(known, f"{prefix}eos_id")
        has_class_token = getattr(known, "cls_emb", None) is not None
        if known.attn_mask is None or has_class_token or pooling not in {"argmax", "eos"}:
            return None
        return cls(known, known.attn_mask, end if pooling == "eos" else None)

    def last_tokens(self, ids: Int[Tensor, "batch cut"]) -> Int64[Tensor, " batch"]:
        """Index of the end-of-text token; of the first, if there are several."""
        return (ids if self._end is None else (ids == self._end).int()).argmax(dim=-1)

    def __call__(self, ids: Int[Tensor, "batch cut"]) -> Float[Tensor, "batch dim"]:
        """Features of captions that are cut after the longest one, or not at all."""
        tower, last, cut = self._tower, self.last_tokens(ids), ids.shape[1]
        states = tower.token_embedding(ids) + tower.positional_embedding[:cut]
        if self._is_plain:
            state = _run_blocks(tower.transformer.resblocks, states, last)
        else:
            states = tower.transformer(states, attn_mask=self._mask[:cut, :cut])
            state = states[torch.arange(len(last), device=last.device), last]
        state, projection = tower.ln_final(state), tower.text_projection
        if projection is None or isinstance(projection, nn.Linear):
            return cast(Tensor, projection(state) if projection is not None else state)
        return cast(Tensor, state @ projection)


def _is_plain(block: nn.Module) -> bool:
    """Whether `_run_block` computes the same as this block."""
    attention = getattr(block, "attn", None)
    return (
        type(block) is ResidualAttentionBlock
        and type(attention) is nn.MultiheadAttention
        and attention.in_proj_weight is not None
        and attention.in_proj_bias is not None
        and attention.bias_k is None
    )


def _run_blocks(
    blocks: nn.ModuleList, states: Float[Tensor, "batch cut width"], last: Int64[Tensor, " batch"]
) -> Float[Tensor, "batch width"]:
    """The state of each caption's last token after all blocks.

    nn.MultiheadAttention is not used: it copies its input and takes a mask of numbers, with which
    `scaled_dot_product_attention` cannot use its causal kernels.
    """
    *first, final = blocks
    for block in first:
        states = _run_block(block, states, None)
    return _run_block(final, states, last)[:, 0]


def _run_block(
    block: Any, states: Float[Tensor, "batch cut width"], at: Int64[Tensor, " batch"] | None
) -> Float[Tensor, "batch queries width"]:
    """One block, for all states or for one state of each caption, at the given index."""
    normed = block.ln_1(states)
    queries = normed
    if at is not None:
        rows = torch.arange(len(at), device=at.device)
        states, queries = states[rows, at][:, None], normed[rows, at][:, None]
    states = states + block.ls_1(_attend(block.attn, queries, normed, at))
    return cast(Tensor, states + block.ls_2(block.mlp(block.ln_2(states))))


def _attend(
    attention: nn.MultiheadAttention,
    queries: Float[Tensor, "batch queries width"],
    keys: Float[Tensor, "batch cut width"],
    at: Int64[Tensor, " batch"] | None,
) -> Float[Tensor, "batch queries width"]:
    """Causal self-attention; queries are all states, or one of each caption at the given index."""
    width = queries.shape[-1]
    weight, bias = attention.in_proj_weight, cast(Tensor, attention.in_proj_bias)
    key, value = F.linear(keys, weight[width:], bias[width:]).chunk(2, dim=-1)
    mixed = F.scaled_dot_product_attention(
        _split_heads(F.linear(queries, weight[:width], bias[:width]), attention.num_heads),
        _split_heads(key, attention.num_heads),
        _split_heads(value, attention.num_heads),
        attn_mask=None if at is None else _seen_from(at, keys.shape[1]),
        is_causal=at is None,
    )
    return cast(Tensor, attention.out_proj(mixed.transpose(1, 2).flatten(-2)))


def _split_heads(
    states: Float[Tensor, "batch some width"], heads: int
) -> Float[Tensor, "batch heads some part"]:
    return states.reshape(*states.shape[:2], heads, -1).transpose(1, 2)


def _seen_from(at: Int64[Tensor, " batch"], cut: int) -> Bool[Tensor, "batch 1 1 cut"]:
    """Which tokens each caption's last token sees: those up to itself."""
    return (torch.arange(cut, device=at.device) <= at[:, None])[:, None, None]


def split_transform(
    transform: Callable[[Image.Image], Tensor],
) -> tuple[Callable[[Image.Image], Tensor], Normalize | None]:
    """The part of a transform that is applied to single images, and the part for whole batches.

    If the transform ends as open_clip's do, with ToTensor and Normalize after steps from picture to
    picture, the first part gives uint8, a quarter of the bytes; else it is the whole transform.
    """
    steps = transform.transforms if isinstance(transform, Compose) else []
    match steps:
        case [*pictures, ToTensor(), Normalize() as rest] if all(
            isinstance(step, _OF_PICTURES) for step in pictures
        ):
            return Compose([*pictures, PILToTensor()]), rest
    return transform, None


def _side_of(model: nn.Module) -> int:
    size = open_clip.get_model_preprocess_cfg(model)["size"]
    return int(size if isinstance(size, int) else max(size))


def quick_tokenizer(tokenizer: Any) -> Tokenizer:
    """The library's tokenizer, or a faster one that gives the same ids.

    No token of a SimpleTokenizer crosses white space, hence the ids of a text are those of its
    words, of which known ones need not be split again: over 10 times faster.
    """
    if type(tokenizer) not in {SimpleTokenizer, HFTokenizer}:
        return cast(Tokenizer, tokenizer)
    quick, clean = copy.copy(tokenizer), _quick(tokenizer.clean_fn)
    if type(tokenizer) is HFTokenizer:
        quick.clean_fn = clean
    elif tokenizer.reduction_fn is None:
        bare = copy.copy(tokenizer)
        bare.clean_fn = str
        encode = functools.lru_cache(maxsize=_WORDS)(bare.encode)
        quick.encode = lambda text: [
            token for word in clean(text).split() for token in encode(word)
        ]
    return cast(Tokenizer, quick)


def _quick(clean: Clean) -> Clean:
    """A clean-up function of open_clip that skips ftfy for plain ASCII.

    ftfy and the unescaping of HTML change only texts with a character that is not ASCII or not
    printable, or with an ampersand.
    """
    known: dict[Clean, Clean] = {get_clean_fn("lower"): str.lower, get_clean_fn("whitespace"): str}
    rest = known.get(clean)
    if rest is None:
        return clean

    def quick(text: str) -> str:
        if text.isascii() and text.isprintable() and "&" not in text:
            return rest(" ".join(text.split()))
        return clean(text)

    return quick


def _describe_tokenizer(tokenizer: Any) -> list[str]:
    """Vocabulary, rules and context length, as text."""
    clean = getattr(getattr(tokenizer, "clean_fn", None), "__name__", "")
    about = [type(tokenizer).__name__, str(tokenizer.context_length), clean]
    if isinstance(tokenizer, SimpleTokenizer):
        vocabulary, merges = tokenizer.encoder, sorted(tokenizer.bpe_ranks.items())
        return [*about, json.dumps(sorted(vocabulary.items())), str(merges), tokenizer.pat.pattern]
    return [*about, *describe_tokenizer(tokenizer.tokenizer)]


def _load(params: TeacherParams, device: torch.device) -> tuple[nn.Module, Any, Any]:
    """Load model, image transform and tokenizer, and set inference mode.

    open_clip returns some models in training mode, in which BatchNorm would use, and overwrite its
    own statistics with, those of the batch; hence the `eval`.
    """
    _check_name(params)
    logging.getLogger().setLevel(logging.WARNING)
    with _reports_loading(params):
        config = open_clip.get_model_config(params.model) or {}
    _refuse_code(params.model, config)
    with _reports_loading(params):
        is_of_transformers = bool(config.get("text_cfg", {}).get("hf_tokenizer_name"))
        model, transform = open_clip.create_model_from_pretrained(
            params.model,
            params.pretrained,
            device=device,
            force_quick_gelu=needs_quick_gelu(params.model, params.pretrained),
        )
        # Without it, transformers would ask at the terminal whether to run the folder's code.
        without_code = {"trust_remote_code": False} if is_of_transformers else {}
        tokenizer = open_clip.get_tokenizer(params.model, **without_code)
    return model.eval().requires_grad_(requires_grad=False), transform, tokenizer


@contextlib.contextmanager
def _reports_loading(params: TeacherParams) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # open_clip raises bare RuntimeError, KeyError, OSError, ...
        raise ModelError(
            f"teacher {params.model} ({params.pretrained}) cannot be loaded: {first_line(error)}.",
            "check teacher.model and teacher.pretrained; `open_clip.list_pretrained()` names "
            "all that can be downloaded.",
        ) from error


def _refuse_code(model: str, config: Any) -> None:
    """Refuse a configuration that lets third-party code run.

    open_clip passes the settings of a tokenizer on to transformers unchanged.
    """
    if isinstance(config, dict) and config.get("trust_remote_code"):
        raise ModelError(
            f"teacher {model}: its open_clip_config.json asks to run code from its folder "
            "(trust_remote_code).",
            "name another model; this code would run with your rights.",
        )
    if isinstance(config, dict | list):
        for part in config.values() if isinstance(config, dict) else config:
            _refuse_code(model, part)


def needs_quick_gelu(model: str, pretrained: str | None) -> bool:
    """Whether the weights were trained with QuickGELU, as OpenAI's were.

    open_clip only warns if the architecture has another activation, and the features are then
    silently wrong.
    """
    tag = open_clip.get_pretrained_cfg(model, pretrained) if pretrained else None
    return bool((tag or {}).get("quick_gelu", False))


def _check_name(params: TeacherParams) -> None:
    """Catch the most common mistake before anything is downloaded."""
    if ":" not in params.model and params.pretrained is None:
        raise ModelError(
            f"teacher.pretrained is null, but {params.model} names no weights of its own.",
            "set teacher.pretrained to a weights tag such as openai.",
        )
