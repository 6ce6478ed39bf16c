"""The gradient of one batch, also where the batch does not fit into memory."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from pipeline.features.teacher_rows import TeacherBatch
from pipeline.student.encoder import Tokens
from pipeline.train.objective import Distillation, StepLoss, TextRows, Views

Autocast = Callable[[], contextlib.AbstractContextManager[object]]
Gather = Callable[[Views], Views]


@dataclass(frozen=True)
class Batch:
    """One batch of this process, by view; see `Distillation.forward`."""

    tokens: Sequence[Tokens]
    teacher: Sequence[TeacherBatch] | None = None
    text: Sequence[TextRows] | None = None


def add_gradients(
    model: Distillation,
    batch: Batch,
    *,
    scale: float = 1.0,
    mini_batch_size: int | None = None,
    autocast: Autocast = contextlib.nullcontext,
    gather: Gather = lambda views: views,
) -> StepLoss:
    """Add the gradient of a batch's loss to the model's parameters.

    With mini-batches, only the vectors of the batch are kept: the loss and its gradient with
    respect to them are computed at once, over all negatives; each mini-batch is then encoded again,
    under the same dropout, to propagate its part of that gradient (GradCache, arXiv 2101.06983).
    The gradient is that of the whole batch, at the cost of a second forward pass.

    Args:
        model: encoder, heads and objective.
        batch: the sentences of this process, and features of the whole batch.
        scale: of the loss, before its gradient is taken.
        mini_batch_size: sentences encoded at a time; None: all.
        autocast: the precision of the forward pass.
        gather: adds the vectors of other processes.

    Returns:
        The loss and its terms, not scaled.
    """
    tokens = batch.tokens
    if mini_batch_size is None or mini_batch_size >= len(tokens[0]["input_ids"]):
        with autocast():
            views = gather(model.encode_views(tokens))
            loss = model.loss_of_views(views, batch.teacher, batch.text)
        torch.autograd.backward(loss.total * scale)
        return loss
    parts = list(zip(*(split_tokens(view, mini_batch_size) for view in tokens), strict=True))
    device = tokens[0]["input_ids"].device
    states, encoded = [], []
    for part in parts:
        states.append(random_states(device))
        with torch.no_grad(), autocast():
            encoded.append(model.encode_views(part))
    views = tuple(torch.cat(side).requires_grad_() for side in zip(*encoded, strict=True))
    with autocast():
        loss = model.loss_of_views(gather(views), batch.teacher, batch.text)
    torch.autograd.backward(loss.total * scale)
    last = random_states(device)
    gradients = [
        torch.split(torch.zeros_like(view) if view.grad is None else view.grad, mini_batch_size)
        for view in views
    ]
    for part, state, *gradient in zip(parts, states, *gradients, strict=True):
        set_random_states(state, device)
        with autocast():
            again = model.encode_views(part)
        torch.autograd.backward(again, gradient)
    set_random_states(last, device)
    return loss


def split_tokens(tokens: Tokens, size: int) -> list[dict[str, Int[Tensor, "_ _"]]]:
    """A batch in mini-batches of `size` sentences, the last of which may be smaller."""
    parts = {key: torch.split(value, size) for key, value in tokens.items()}
    return [dict(zip(parts, part, strict=True)) for part in zip(*parts.values(), strict=True)]


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The states of the generators that dropout draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states["device"] = torch.get_device_module(device).get_rng_state()
    return states


def set_random_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Restore what `random_states` gave."""
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states["device"])
