"""Tokenised captions: made by `Teacher.tokenize`, encoded by `Teacher.encode_tokens`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, Int64
from numpy.typing import NDArray
from torch import Tensor

Rows = Sequence[int] | NDArray[np.integer]


@dataclass(frozen=True)
class Tokens:
    """Captions as token ids, each padded to the context."""

    ids: Int[Tensor, "captions context"]
    lengths: Int64[np.ndarray, " captions"]
    """How many tokens of each caption, from the first, its feature depends on."""
    mask: Int[Tensor, "captions context"] | None = None
    """1 for tokens, 0 for padding; None for models that do not take a mask."""

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Rows) -> "Tokens":
        """The captions of these rows, cut to the longest one."""
        chosen = np.asarray(rows, dtype=np.int64)
        lengths = self.lengths[chosen]
        cut, index = int(lengths.max(initial=1)), torch.from_numpy(chosen)
        mask = None if self.mask is None else self.mask[index, :cut]
        return Tokens(self.ids[index, :cut], lengths, mask)

    def to(self, device: torch.device) -> "Tokens":
        """The same on another device."""
        mask = None if self.mask is None else self.mask.to(device)
        return Tokens(self.ids.to(device), self.lengths, mask)
