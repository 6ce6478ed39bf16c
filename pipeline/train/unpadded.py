"""An encoder's pass over the tokens of a batch, without its padding.

All that a transformer does to one token at a time (projections, feed-forward, norms, dropout: most
of its work) is done for one long row of the batch's tokens. Only attention puts the sentences
side by side again. Vectors and gradients are those of the padded batch.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.errors import ParamsError
from pipeline.params.train import TrainParams
from pipeline.student.encoder import RunBackbone, SentenceEncoder, Tokens, run_padded
from pipeline.train.dropout import drop

_NAME = "unpadded"
"""Of our attention, among those of transformers."""
_PROBES = ("a", "two dogs run along the beach", "a man with a hat")
_TOLERANCE = 1e-4
_ROWS = 64
"""Rows are rounded up to a multiple of it. torch's library for CPUs (oneDNN) makes a kernel for
every shape that it meets and keeps a thousand: 1.5 GiB, and a tenth of the time of 120 steps."""


@dataclass(frozen=True)
class Unpadded:
    """Runs a backbone without padding in training, and with padding otherwise.

    Attributes:
        first_position: the number of the first token's position in the backbone.
    """

    first_position: int

    def __call__(self, backbone: nn.Module, tokens: Tokens) -> Float[Tensor, "batch tokens dim"]:
        """The last hidden states; in training, those of padding are meaningless."""
        if not backbone.training:
            return run_padded(backbone, tokens)
        return run_unpadded(backbone, tokens, self.first_position)


def choose_unpadded(encoder: SentenceEncoder, params: TrainParams) -> bool:
    """Do as `train.unpad` says, and return whether padding is left out.

    Raises:
        ParamsError: it should be, and cannot.
    """
    is_worth_it = encoder.device.type == "cpu" and not params.compile
    if not (is_worth_it if params.unpad == "auto" else params.unpad):
        return False
    is_unpadded = leave_out_padding(encoder)
    if params.unpad is True and not is_unpadded:
        raise ParamsError(
            "train.unpad is true, but this encoder gives other vectors without padding.",
            "set it to auto or false.",
        )
    return is_unpadded


def leave_out_padding(encoder: SentenceEncoder) -> bool:
    """Make an encoder train without padding, where that changes nothing in its vectors.

    A few sentences, encoded in both ways, decide. Models whose attention is not one of
    transformers' functions, or that compute positions themselves, stay as they were.

    Args:
        encoder: changed in place.

    Returns:
        Whether it was changed.
    """
    for first_position in (0, (encoder.tokenizer.pad_token_id or 0) + 1):
        if _takes(encoder, functools.partial(run_unpadded, first_position=first_position)):
            encoder.run_backbone = Unpadded(first_position)
            return True
    return False


def take_masks_unseen(encoder: SentenceEncoder) -> bool:
    """Make a padded encoder pass its masks to attention as they are, by `attention_mask`.

    Models whose attention is not one of transformers' functions stay as they were.

    Args:
        encoder: changed in place.

    Returns:
        Whether it was changed.
    """
    config = cast(Any, encoder.backbone).config
    return getattr(config, "_attn_implementation", None) == "sdpa" and _takes(encoder, run_padded)


def _takes(encoder: SentenceEncoder, run: RunBackbone) -> bool:
    """Whether a backbone gives the same states by `run` with our attention, which it then keeps."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(_NAME, attend)
    AttentionMaskInterface.register(_NAME, attention_mask)
    backbone = cast(Any, encoder.backbone)
    before = getattr(backbone.config, "_attn_implementation", None)
    agrees = _agrees(backbone, encoder.tokenize(_PROBES), run)
    if not agrees:
        backbone.set_attn_implementation(before)
    return agrees


@torch.no_grad()
def _agrees(backbone: Any, tokens: Tokens, run: RunBackbone) -> bool:
    """Whether `run` with our attention gives the model's own hidden states."""
    was_training = backbone.training
    backbone.eval()
    try:
        expected = run_padded(backbone, tokens)
        backbone.set_attn_implementation(_NAME)
        given = run(backbone, tokens)
    except Exception:  # noqa: BLE001  # models refuse in any way
        return False
    finally:
        backbone.train(was_training)
    is_token = tokens["attention_mask"].bool()
    return torch.allclose(given[is_token], expected[is_token], rtol=_TOLERANCE, atol=_TOLERANCE)


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a batch are, and enough padding to make their number a round one.

    Attributes:
        places: of every row in the flattened (B, T), none twice.
        mask: (B, T), whether a place holds a token.
    """

    places: Int[Tensor, " rows"]
    mask: Bool[Tensor, "batch longest"]

    @classmethod
    def of(cls, mask: Bool[Tensor, "batch longest"]) -> "Layout":
        """The layout of a batch with this mask."""
        places, holes = (one.flatten().nonzero().squeeze(1) for one in (mask, ~mask))
        return cls(torch.cat([places, holes[: -len(places) % _ROWS]]), mask)

    def pad(self, rows: Tensor) -> Tensor:
        """Put rows (rows, ...) in their places in (B, T, ...), with 0 between."""
        padded = _spread(rows, self.places, self.mask.numel())
        return padded.view(*self.mask.shape, *rows.shape[1:])

    def unpad(self, rows: Tensor) -> Tensor:
        """Take rows (rows, ...) from their places in (B, T, ...)."""
        return _take(rows.flatten(0, 1), self.places)


class _Spread(torch.autograd.Function):
    """No place is taken twice, so that gradients are copied and need no addition."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor, count: int) -> Tensor:
        ctx.places = places
        return rows.new_zeros(count, *rows.shape[1:]).index_copy_(0, places, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.index_select(0, ctx.places), None, None


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor) -> Tensor:
        ctx.places, ctx.count = places, len(rows)
        return rows.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        whole = gradient.new_zeros(ctx.count, *gradient.shape[1:])
        return whole.index_copy_(0, ctx.places, gradient), None


_spread: Callable[[Tensor, Tensor, int], Tensor] = cast(Any, _Spread).apply
_take: Callable[[Tensor, Tensor], Tensor] = cast(Any, _Take).apply


def run_unpadded(
    backbone: nn.Module, tokens: Tokens, first_position: int
) -> Float[Tensor, "batch tokens dim"]:
    """The last hidden states of a batch; those of padding are meaningless."""
    mask = tokens["attention_mask"].bool()
    layout = Layout.of(mask)
    positions = (mask.cumsum(1) - 1 + first_position).flatten()[layout.places]
    ids = tokens["input_ids"].flatten()[layout.places]
    out = backbone(input_ids=ids[None], position_ids=positions[None], layout=layout)
    return layout.pad(out.last_hidden_state[0])


def attend(
    module: nn.Module,
    query: Float[Tensor, "rows heads tokens dim"],
    key: Float[Tensor, "rows heads tokens dim"],
    value: Float[Tensor, "rows heads tokens dim"],
    attention_mask: Tensor | None,
    **settings: Any,
) -> tuple[Float[Tensor, "rows tokens heads dim"], None]:
    """Attention within each sentence, where a `layout` in `settings` says where they are.

    transformers defines arguments and result of such functions, and passes on the layout from the
    call of the model. Without a layout this is transformers' own attention.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    layout: Layout | None = settings.pop("layout", None)
    if layout is None:
        attended, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
        return attended, None
    query, key, value = (
        layout.pad(side[0].transpose(0, 1)).transpose(1, 2) for side in (query, key, value)
    )
    together = _attend(
        query, key, value, layout.mask[:, None, None], settings["dropout"], settings["scaling"]
    )
    return layout.unpad(together.transpose(1, 2))[None], None


def attention_mask(
    *,
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    allow_is_bidirectional_skip: bool = False,
    **settings: Any,
) -> Tensor | None:
    """The mask that transformers gives SDPA, but on a GPU never inspected.

    transformers drops a mask that hides nothing; to know that, the host waits for the device at
    every forward pass. transformers defines arguments and result.
    """
    from transformers.masking_utils import sdpa_mask

    is_known = attention_mask is None or torch.device(device).type in _SHARES_MEMORY
    return sdpa_mask(
        attention_mask=attention_mask,
        device=device,
        allow_is_bidirectional_skip=allow_is_bidirectional_skip and is_known,
        **settings,
    )


_SHARES_MEMORY = {"cpu"}
"""Devices whose values the host reads without waiting."""


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float, scaling: float
) -> Tensor:
    """SDPA; where that has no fast kernel, which is with dropout on a CPU, step by step."""
    if dropout == 0 or query.device.type != "cpu":
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling
        )
    scores = (query * scaling) @ key.transpose(-1, -2)
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return drop(weights, dropout) @ value
