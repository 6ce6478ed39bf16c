"""How the forward pass is computed: its type, and by whose kernels."""

import contextlib
import functools
import os
import shutil
from typing import Any, Literal, cast

import torch

from pipeline.encoder import SentenceEncoder
from pipeline.errors import ParamsError
from pipeline.train.gradients import Autocast

Precision = Literal["fp32", "bf16"]


def choose_precision(wanted: Literal["auto", "fp32", "bf16"], device: torch.device) -> Precision:
    """What `auto` stands for on a device: bf16 where its matrix products take it natively."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and _cpu_has_bf16() else "fp32"


def _cpu_has_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def autocast_of(precision: Precision, device: torch.device) -> Autocast:
    """Gives the context of a forward pass; losses leave it for their similarities."""
    if precision == "fp32":
        return contextlib.nullcontext
    return functools.partial(torch.autocast, device.type, torch.bfloat16)


def compile_encoder(encoder: SentenceEncoder, *, wanted: bool) -> None:
    """Let torch.compile make kernels of the encoder at its first batch, for any batch shape.

    Raises:
        ParamsError: that needs a C++ compiler, and there is none.
    """
    if not wanted:
        return
    if encoder.device.type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        raise ParamsError(
            "train.compile needs a C++ compiler, and there is no g++.",
            "install one, name another in CXX, or set train.compile to false.",
        )
    cast(Any, encoder.backbone).compile(dynamic=True)
