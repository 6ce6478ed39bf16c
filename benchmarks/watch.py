"""Times the steps of a training run, whoever takes them."""

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook


class Watch:
    """Times a run from the end of its warm-up on; torch tells it of every optimiser step.

    Args:
        warmup: steps before the timed ones, at least 1.
        steps: timed steps.
    """

    def __init__(self, warmup: int, steps: int) -> None:
        self.warmup, self.steps = warmup, steps
        self.taken = 0
        """Optimiser steps so far."""
        self.scores: list[float] = []
        """Of all evaluations, Spearman x100."""
        self._evaluations: list[float] = []
        self._created = now()
        self._hook = register_optimizer_step_post_hook(self._note_step)
        self._first = self._began = self._ended = math.nan
        self._before = self._between = 0.0

    @property
    def is_timing(self) -> bool:
        """Whether the warm-up is over."""
        return self.taken >= self.warmup

    def _note_step(self, *_: Any) -> None:
        self.taken += 1
        if self.taken == 1:
            self._first = now()
        if self.taken == self.warmup:
            self._began = now()
        if self.taken == self.warmup + self.steps:
            self._ended = now()

    def close(self) -> None:
        """Look at no further step."""
        self._hook.remove()

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        """Time an evaluation; those of the warm-up do not count."""
        started = now()
        yield
        seconds = now() - started
        if not self.taken:
            self._before += seconds
        if self.is_timing:
            self._evaluations.append(seconds)
            self._between += seconds if self.taken < self.warmup + self.steps else 0

    def finish(self) -> dict[str, Any]:
        """The account of the run, which must be over.

        Returns:
            seconds: of all timed steps with the evaluations among and behind them, and the best
            weights kept. steps_s: of the steps alone. evaluation_s: of one evaluation. start_s:
            from the start to the first step's end, the first evaluation left out.
        """
        finished = now()
        self.close()
        assert self.taken == self.warmup + self.steps, f"{self.taken} optimiser steps were seen"
        count = len(self._evaluations)
        return {
            "seconds": finished - self._began,
            "steps_s": self._ended - self._began - self._between,
            "evaluations": count,
            "evaluation_s": sum(self._evaluations) / count if count else 0.0,
            "start_s": self._first - self._created - self._before,
            "sts_dev": self.scores,
        }


def now() -> float:
    """Seconds, when the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
