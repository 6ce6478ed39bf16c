"""Keep weights in half the space."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from pipeline.core.files import atomic_file


def save_half(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write weights as safetensors, floating-point ones as float16; integers stay as they are.

    Raises:
        ResourceError: the disk is full.
    """
    halved = {
        name: (weight.half() if weight.is_floating_point() else weight).contiguous()
        for name, weight in weights.items()
    }
    with atomic_file(path) as temporary:
        save_file(halved, temporary, metadata={"format": "pt"})
