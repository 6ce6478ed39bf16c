"""The device and the memory of a process."""

import ctypes
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

from pipeline.core.errors import PipelineError
from pipeline.core.progress import log

_INSTRUCTIONS = {
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "fp16": ("avx512_fp16", "amx_fp16", "fp16_arith"),
}
"""Of x86 and of ARM, by their names in torch."""
_MALLOC_OPTIONS = (
    (-4, 0),  # M_MMAP_MAX: large blocks come from the heap, which can be reused
    (-1, 2**31 - 1),  # M_TRIM_THRESHOLD: do not shrink the heap
    (-2, 64 << 20),  # M_TOP_PAD: grow it in large steps
)
_OUT_OF_MEMORY = (
    *("out of memory", "allocate memory", "bad_alloc", "bad allocation", "alloc of size"),
    *("map segment", "start new thread", "could not create a primitive"),
    *("'frame' object is not callable", "error return without exception set"),
)
"""In errors of native libraries, of the loader, and of Python itself."""


def choose_device() -> "torch.device":
    """The device of this process: the first CUDA GPU, Apple's GPU, or the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def computes(precision: str, device: "torch.device") -> bool:
    """Whether a device is known to have instructions for matrix products of bf16 or fp16."""
    import torch

    if device.type == "cuda":
        return precision == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(capabilities.get(name, False) for name in _INSTRUCTIONS[precision])


def warn_of_slow(key: str, precision: str, device: "torch.device") -> None:
    """Warn of a forward pass in a type, set by a key of params.yaml, that the device emulates."""
    is_known = precision in _INSTRUCTIONS and device.type in {"cpu", "cuda"}
    if is_known and not computes(precision, device):
        what = "processor" if device.type == "cpu" else "GPU"
        log.warning(
            f"{key} is {precision}, for which this {what} has no instructions: it will be many "
            f"times slower than fp32; set {key} to auto"
        )


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next step instead of giving it back.

    The activations of every forward pass would otherwise be mapped and unmapped each time. Where
    page faults are expensive, as on virtual machines, that costs several times the computation.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for option, value in _MALLOC_OPTIONS:
            libc.mallopt(option, value)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that led to it, says that memory ran out.

    Native libraries report that as errors of their own, torch as a RuntimeError for example. Errors
    of the pipeline are skipped, since they may quote file names.
    """
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:  # libraries tie such chains into rings
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return any(
        isinstance(one, MemoryError) or any(words in str(one).lower() for words in _OUT_OF_MEMORY)
        for one in chain
        if not isinstance(one, PipelineError)
    )
