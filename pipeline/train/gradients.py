"""The gradient of one batch, also where the batch does not fit into memory."""

import contextlib
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from pipeline.student.encoder import Tokens
from pipeline.train.objective import Distillation, StepLoss, TeacherBatch, Views

Autocast = Callable[[], contextlib.AbstractContextManager[object]]
Gather = Callable[[Views], Views]
Parts = list[dict[str, Int[Tensor, "_ _"]]]
"""Stretches of a batch's sentences."""


def add_gradients(
    model: Distillation,
    tokens: Tokens,
    teacher: TeacherBatch | None,
    *,
    scale: float = 1.0,
    chunk: int | None = None,
    autocast: Autocast = contextlib.nullcontext,
    gather: Gather = lambda views: views,
) -> StepLoss:
    """Add the gradient of a batch's loss to the model's parameters.

    In chunks, only the vectors of the batch are kept: the loss and its gradient with respect to
    them are computed at once, over all negatives; each chunk is then encoded a second time, under
    the same dropout, and takes its part of that gradient further (GradCache, arXiv 2101.06983).
    The gradient is that of the whole batch; what is paid is a second forward pass.

    Args:
        model: encoder, heads and objective.
        tokens: (B, T), the sentences of this process.
        teacher: features of the batch, or None.
        scale: of the loss, before its gradient is taken.
        chunk: sentences encoded at a time; None: all.
        autocast: the precision of the forward pass.
        gather: brings the vectors of other processes.

    Returns:
        The loss and its terms, not scaled.
    """
    if chunk is None or chunk >= len(tokens["input_ids"]):
        with autocast():
            loss = model.loss_of_views(gather(model.two_views(tokens)), teacher)
        torch.autograd.backward(loss.total * scale)
        return loss
    parts = split_tokens(tokens, chunk)
    states, views = _encode_without_gradient(model, parts, autocast)
    with autocast():
        loss = model.loss_of_views(gather(views), teacher)
    torch.autograd.backward(loss.total * scale)
    last = random_states(views[0].device)
    for part, state, *gradients in zip(parts, states, *_gradients(views, chunk), strict=True):
        set_random_states(state, views[0].device)
        with autocast():
            again = model.two_views(part)
        torch.autograd.backward(again, gradients)
    set_random_states(last, views[0].device)
    return loss


def _encode_without_gradient(
    model: Distillation, parts: Parts, autocast: Autocast
) -> tuple[list[dict[str, Tensor]], Views]:
    """The random states before each part, and the vectors of all as leaves of the graph."""
    states, views = [], []
    for part in parts:
        states.append(random_states(part["input_ids"].device))
        with torch.no_grad(), autocast():
            views.append(model.two_views(part))
    first, second = (torch.cat(side).requires_grad_() for side in zip(*views, strict=True))
    return states, (first, second)


def _gradients(views: Views, chunk: int) -> list[tuple[Tensor, ...]]:
    whole = (torch.zeros_like(view) if view.grad is None else view.grad for view in views)
    return [torch.split(one, chunk) for one in whole]


def split_tokens(tokens: Tokens, chunk: int) -> Parts:
    """A batch in stretches of `chunk` sentences."""
    parts = {key: torch.split(value, chunk) for key, value in tokens.items()}
    return [dict(zip(parts, part, strict=True)) for part in zip(*parts.values(), strict=True)]


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The states that dropout draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states["device"] = torch.get_device_module(device).get_rng_state()
    return states


def set_random_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Go back to `random_states`."""
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states["device"])
