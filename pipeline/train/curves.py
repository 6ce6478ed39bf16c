"""The training curves: terms gathered over steps, and every point that was recorded."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.train.objective import StepLoss

Point = tuple[int, str, float]
"""Step, curve and value."""

_CURVES = {
    "total": "loss",
    "text": "loss_text",
    "image": "loss_image",
    "caption": "loss_caption",
    "distillation": "loss_distillation",
    "cross_distillation": "loss_cross_distillation",
    "consistency": "loss_consistency",
    "masked_share": "masked_share",
    "applied_margin": "applied_margin",
}
"""Terms of a loss, and the names of their curves."""


class Curves:
    """All points so far; terms since the last one stay on the device, so that no step waits."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self._terms: dict[str, list[Tensor]] = {}

    def add(self, losses: Sequence[StepLoss]) -> None:
        """Collect the terms of a step's batches; those that are None are left out."""
        for term, curve in _CURVES.items():
            values = [getattr(loss, term) for loss in losses]
            if values[0] is not None:
                mean = torch.stack(values).mean().detach()
                self._terms.setdefault(curve, []).append(mean)

    def means(self) -> dict[str, float]:
        """The mean of every term over the steps that had it since the last call."""
        means = {curve: self.pending(curve) for curve in self._terms}
        self._terms.clear()
        return means

    def pending(self, curve: str) -> float:
        """The mean of a term over the steps since that call; 0 where there are none."""
        terms = self._terms.get(curve)
        return float(torch.stack(terms).mean()) if terms else 0.0

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Add points, by curve."""
        self.points += [(step, curve, float(value)) for curve, value in values.items()]

    def mean_of(self, curve: str) -> float:
        """The mean over all points of a curve; 0 where it has none."""
        values = [value for _, name, value in self.points if name == curve]
        return sum(values) / len(values) if values else 0.0

    def state(self) -> dict[str, Any]:
        """All that `restore` needs."""
        return {"points": self.points, "terms": self._terms}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.points, self._terms = state["points"], state["terms"]
