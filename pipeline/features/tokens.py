"""Tokenised captions: what `Teacher.tokenize` gives and `Teacher.encode_tokens` takes."""

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
    """Tokens of each caption that its feature depends on, from the first."""
    mask: Int[Tensor, "captions context"] | None = None
    """1 where a token is no padding; None for models that do not ask for it."""

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Rows) -> "Tokens":
        """The captions of these rows, cut to the longest of them."""
        chosen = np.asarray(rows, dtype=np.int64)
        lengths = self.lengths[chosen]
        cut, index = int(lengths.max(initial=1)), torch.from_numpy(chosen)
        mask = None if self.mask is None else self.mask[index, :cut]
        return Tokens(self.ids[index, :cut], lengths, mask)

    def to(self, device: torch.device) -> "Tokens":
        """The same on another device."""
        mask = None if self.mask is None else self.mask.to(device)
        return Tokens(self.ids.to(device), self.lengths, mask)
