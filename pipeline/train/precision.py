"""The precision of the forward pass, and torch.compile."""

import contextlib
import functools
import os
import shutil
from typing import Any, Literal, cast

import torch

from pipeline.core.device import computes, warn_of_slow
from pipeline.core.errors import ParamsError
from pipeline.student.encoder import SentenceEncoder
from pipeline.train.gradients import Autocast

Precision = Literal["fp32", "bf16"]


def choose_precision(wanted: Literal["auto", "fp32", "bf16"], device: torch.device) -> Precision:
    """Resolve `auto`: bf16 where the device has instructions for it, else fp32."""
    warn_of_slow("train.precision", wanted, device)
    if wanted != "auto":
        return wanted
    return "bf16" if computes("bf16", device) else "fp32"


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
