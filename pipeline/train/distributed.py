"""The processes of one training run: what `accelerate launch` starts, or one alone.

Every process draws the same batches and encodes its share of each. With their vectors gathered, all
compute the loss of the whole batch, as one process would; the gradient of the encoder is then the
sum over the processes, and that of the heads is the same in all.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import distributed

from pipeline.core.errors import ParamsError
from pipeline.train.objective import Distillation, Views

T = TypeVar("T")


@dataclass(frozen=True)
class DistributedContext:
    """The place of this process among all.

    Attributes:
        count: processes.
        rank: number of this one, from 0.
        device: where it computes.
        gathers: whether negatives come from all processes.
    """

    count: int
    rank: int
    device: torch.device
    gathers: bool = True

    @property
    def is_main(self) -> bool:
        """Whether this process logs, scores and writes."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether this is the only process."""
        return self.count == 1

    def share(self, rows: Any) -> Any:
        """This process's part of a batch's rows: equal stretches, in the order of the ranks."""
        size = len(rows) // self.count
        return rows[self.rank * size : (self.rank + 1) * size]

    def teacher_rows(self, rows: Any) -> Any:
        """The rows whose features the loss of this process reads."""
        return rows if self.gathers else self.share(rows)

    def gather(self, views: Views) -> Views:
        """The vectors of the whole batch; gradients flow into those of this process only."""
        if self.is_alone or not self.gathers:
            return views
        whole = []
        for own in views:
            parts = [torch.empty_like(own) for _ in range(self.count)]
            distributed.all_gather(parts, own.detach().contiguous())
            parts[self.rank] = own
            whole.append(torch.cat(parts))
        return tuple(whole)

    def seed_dropout(self, seed: int) -> None:
        """Give every process different dropout; the main one draws as a single process would."""
        if not self.is_main:
            torch.manual_seed(int(np.random.SeedSequence([seed, self.rank]).generate_state(1)[0]))

    def reduce_gradients(self, model: Distillation) -> None:
        """Combine the gradients of all processes into that of the batch, in every process."""
        if self.is_alone:
            return
        of_encoder = 1 if self.gathers else self.count
        for part, divisor in ((model.encoder, of_encoder), (model.heads, self.count)):
            gradients = [one.grad for one in part.parameters() if one.grad is not None]
            if gradients:
                flat = torch.cat([one.flatten() for one in gradients])
                distributed.all_reduce(flat)
                summed = torch.split(flat / divisor, [one.numel() for one in gradients])
                for gradient, found in zip(gradients, summed, strict=True):
                    gradient.copy_(found.view_as(gradient))

    def share_value(self, value: Any) -> Any:
        """The value of the main process, in all."""
        if self.is_alone:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def main_first(self, make: Callable[[], T]) -> T:
        """What `make` returns here; the main process finishes it before the others begin."""
        made = make() if self.is_main else None
        self.share_value(None)
        return make() if made is None else made

    def collect(self, value: Any) -> list[Any]:
        """The value of every process, by rank."""
        if self.is_alone:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values


def find_context(batch_size: int, device: torch.device, *, gathers: bool) -> DistributedContext:
    """The processes that `accelerate launch` started, or this one alone.

    Args:
        batch_size: sentences of a batch over all processes.
        device: where one process alone computes.
        gathers: whether negatives come from all processes.

    Raises:
        ParamsError: the batch cannot be divided equally, or gives a process no negatives.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return DistributedContext(1, 0, device)
    from accelerate import PartialState

    state = PartialState(cpu=device.type == "cpu")
    count = state.num_processes
    least = 1 if gathers else 2
    if batch_size % count or batch_size // count < least:
        raise ParamsError(
            f"train.batch_size is {batch_size}, which {count} processes cannot divide.",
            f"use a multiple of {count}, of at least {least * count}.",
        )
    return DistributedContext(count, state.process_index, state.device, gathers)
