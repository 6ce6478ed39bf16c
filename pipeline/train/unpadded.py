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
    """Runs a backbone without padding while it trains, and as ever where it does not.

    Attributes:
        first_position: what the backbone calls the first token's position.
    """

    first_position: int

    def __call__(self, backbone: nn.Module, tokens: Tokens) -> Float[Tensor, "batch tokens dim"]:
        """The last hidden states; in training, those of padding are of no use."""
        if not backbone.training:
            return run_padded(backbone, tokens)
        return run_unpadded(backbone, tokens, self.first_position)


def choose_unpadded(encoder: SentenceEncoder, params: TrainParams) -> bool:
    """Do as `train.unpad` says, and say whether padding is left out.

    Raises:
        ParamsError: it is to be, and cannot.
    """
    if params.unpad is False:
        return False
    if params.unpad == "auto":
        is_worth_it = encoder.device.type == "cpu" and not params.compile
        return is_worth_it and leave_out_padding(encoder)
    if not leave_out_padding(encoder):
        raise ParamsError(
            "train.unpad is true, but this encoder gives other vectors without padding.",
            "set it to auto or false.",
        )
    return True


def leave_out_padding(encoder: SentenceEncoder) -> bool:
    """Make an encoder train without padding, where that changes nothing in its vectors.

    It does not for models whose attention is not one of transformers' functions, or that find
    positions by themselves; a few sentences, encoded in both ways, tell. These stay as they were.

    Args:
        encoder: changed in place.

    Returns:
        Whether it was.
    """
    backbone = cast(Any, encoder.backbone)
    before = getattr(backbone.config, "_attn_implementation", None)
    padding = encoder.tokenizer.pad_token_id or 0
    tokens = encoder.tokenize(_PROBES)
    _register()
    for first_position in (0, padding + 1):
        run = functools.partial(run_unpadded, first_position=first_position)
        if _agrees(backbone, tokens, run):
            encoder.run_backbone = Unpadded(first_position)
            return True
    backbone.set_attn_implementation(before)
    return False


def take_masks_unseen(encoder: SentenceEncoder) -> bool:
    """Make a padded encoder give its masks to attention as they are, by `attention_mask`.

    It does not for models whose attention is not one of transformers' functions.

    Args:
        encoder: changed in place.

    Returns:
        Whether it was.
    """
    backbone = cast(Any, encoder.backbone)
    before = getattr(backbone.config, "_attn_implementation", None)
    tokens = encoder.tokenize(_PROBES)
    _register()
    if before == "sdpa" and _agrees(backbone, tokens, run_padded):
        return True
    backbone.set_attn_implementation(before)
    return False


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(_NAME, attend)
    AttentionMaskInterface.register(_NAME, attention_mask)


@torch.no_grad()
def _agrees(backbone: Any, tokens: Tokens, run: RunBackbone) -> bool:
    """Whether a way to the hidden states gives the model's own, with our attention in its place."""
    was_training = backbone.training
    backbone.eval()
    try:
        expected = run_padded(backbone, tokens)
        backbone.set_attn_implementation(_NAME)
        given = run(backbone, tokens)
    except Exception:  # noqa: BLE001  # a model says in its own way what it does not take
        return False
    finally:
        backbone.train(was_training)
    is_token = tokens["attention_mask"].bool()
    return torch.allclose(given[is_token], expected[is_token], rtol=_TOLERANCE, atol=_TOLERANCE)


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a batch stand, and so much padding that their number is a round one.

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
        """Put rows (rows, ...) to their places in (B, T, ...), with 0 between."""
        padded = _spread(rows, self.places, self.mask.numel())
        return padded.view(*self.mask.shape, *rows.shape[1:])

    def unpad(self, rows: Tensor) -> Tensor:
        """Take rows (rows, ...) from their places in (B, T, ...)."""
        return _take(rows.flatten(0, 1), self.places)


class _Spread(torch.autograd.Function):
    """No place is taken twice, so that gradients are put in place and need not be added up."""

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
    """The last hidden states of a batch; those of padding are of no use."""
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

    transformers defines arguments and result of such functions, and passes the layout on from the
    call of the model. Without one this is transformers' own.
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
    """The mask that transformers gives SDPA, but on a GPU never looked at.

    transformers leaves out a mask that hides nothing, and to know that, the host waits at every
    forward pass until the device has the mask. transformers defines arguments and result.
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
