"""Small things every step needs: device, atomic writes, hashes, signals, progress."""

import contextlib
import ctypes
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

from pipeline.errors import InterruptedRunError, PipelineError, ResourceError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn
    from tqdm import tqdm

log = logging.getLogger("kdmcse")

T = TypeVar("T")
R = TypeVar("R")


def choose_device() -> "torch.device":
    """The device of this process: the first CUDA GPU, Apple's GPU, or the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def computes(precision: str, device: "torch.device") -> bool:
    """Whether a device has instructions for matrix products of bf16 or fp16.

    Args:
        precision: bf16 or fp16.
        device: the CPU or a CUDA GPU; of others it is not known.
    """
    import torch

    if device.type == "cuda":
        return precision == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(capabilities.get(name, False) for name in _INSTRUCTIONS[precision])


_INSTRUCTIONS = {
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "fp16": ("avx512_fp16", "amx_fp16", "fp16_arith"),
}
"""Of x86 and of ARM, as torch calls them."""


def warn_of_slow(key: str, precision: str, device: "torch.device") -> None:
    """Warn where a forward pass is asked for in a type that the device has no instructions for.

    Args:
        key: of params.yaml, that asks.
        precision: what it asks for.
        device: of the forward pass.
    """
    is_known = precision in _INSTRUCTIONS and device.type in {"cpu", "cuda"}
    if is_known and not computes(precision, device):
        what = "processor" if device.type == "cpu" else "GPU"
        log.warning(
            "%s is %s, for which this %s has no instructions: it will be many times slower than "
            "fp32; set %s to auto",
            key,
            precision,
            what,
            key,
        )


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next step instead of giving it back.

    The activations of every forward pass would otherwise be mapped and unmapped afresh; where
    page faults are dear, as on virtual machines, that costs several times the computation itself.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option, value in _MALLOC_OPTIONS:
            libc.mallopt(option, value)


_MALLOC_OPTIONS = (
    (-4, 0),  # M_MMAP_MAX: large blocks come from the heap, which can be reused
    (-1, 2**31 - 1),  # M_TRIM_THRESHOLD: do not shrink the heap
    (-2, 64 << 20),  # M_TOP_PAD: grow it in large steps
)


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target` that becomes it when the block succeeds.

    The bytes are synced before the rename, so `target` is whole or absent, also after
    a kill or a power cut. On failure nothing is left behind.

    Raises:
        ResourceError: the disk is full, or the place cannot be written.
    """
    with reports_unwritable(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        with reports_unwritable(target):
            yield temporary
            _sync(temporary)
            temporary.chmod(0o666 & ~_umask())
            _require_going_on()
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target` that replaces it when the block succeeds.

    Raises:
        ResourceError: the disk is full, or the place cannot be written.
    """
    with reports_unwritable(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        with reports_unwritable(target):
            yield temporary
            for path in sorted(temporary.rglob("*")):
                _sync(path)
            temporary.chmod(0o777 & ~_umask())
            _require_going_on()
            _swap(temporary, target)
    finally:
        _remove(temporary)


def _swap(temporary: Path, target: Path) -> None:
    """Put a finished folder in the place of an old one, which is whole until then.

    Where another process puts its own there at the same moment, the last one stays.
    """
    old = temporary.with_name(temporary.name + ".old")
    while not (_takes_place(temporary, target) or _exchange(temporary, target)):
        with contextlib.suppress(FileNotFoundError):
            target.replace(old)
        _remove(old)


def _takes_place(temporary: Path, target: Path) -> bool:
    """Whether a folder could be renamed to a place that no other one holds."""
    try:
        temporary.replace(target)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
            raise
        return False
    return True


def _exchange(one: Path, other: Path) -> bool:
    """Whether two names could be exchanged, so that neither was without a bearer at any moment.

    They cannot where one of them is gone, or the system or its disk does not know how.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    names = (os.fsencode(one), os.fsencode(other))
    failed = libc.renameat2(_HERE, names[0], _HERE, names[1], _RENAME_EXCHANGE)
    return not failed


_HERE = -100
"""AT_FDCWD: names are relative to the working folder."""
_RENAME_EXCHANGE = 2


def _remove(path: Path) -> None:
    """Remove a folder, a file or a link, which may be gone."""
    with contextlib.suppress(OSError):
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


_REMEDIES = {
    errno.ENOSPC: "free some space and run the same command again; finished work is kept.",
    errno.EDQUOT: "free some space and run the same command again; finished work is kept.",
    errno.EFBIG: "raise the file size limit and run the same command again.",
    errno.EACCES: "make the folder writable, or name another place.",
    errno.EPERM: "make the folder writable, or name another place.",
    errno.EROFS: "name a place on a disk that can be written.",
    errno.EEXIST: "name another place; a part of this path is a file.",
    errno.EISDIR: "name a file; there is a folder of this name.",
    errno.ENOTDIR: "name another place; a part of this path is a file.",
}


@contextlib.contextmanager
def reports_unwritable(target: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into an error with a remedy."""
    try:
        yield
    except OSError as error:
        number = _number_of(error)
        if number not in _REMEDIES:
            raise
        raise ResourceError(
            f"{target} could not be written: {os.strerror(number).lower()}.", _REMEDIES[number]
        ) from error


def _number_of(error: OSError) -> int:
    """Its errno; numpy has none where fewer bytes than it asked for found room."""
    if error.errno is None and _SHORT.search(str(error)):
        return errno.ENOSPC
    return error.errno or 0


_SHORT = re.compile("requested and [0-9]+ written|problem writing element")


class Output:
    """A file for libraries that tell otherwise than by OSError that it could not be written."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.refusal: OSError | None = None
        """What the system said."""

    def write(self, content: Any) -> int:
        """As a file's."""
        try:
            return self._stream.write(content)
        except OSError as error:
            self.refusal = error
            raise

    def flush(self) -> None:
        """As a file's."""
        self._stream.flush()


@contextlib.contextmanager
def output_file(path: Path) -> Iterator[Output]:
    """A new file, for the writers of FAISS, numpy and torch.

    Raises:
        OSError: the system's, such as a full disk, whatever the library made of it.
    """
    with path.open("wb") as stream:
        output = Output(stream)
        try:
            yield output
        except Exception:
            if output.refusal is not None:
                raise output.refusal from None
            raise


def save_array(path: Path, array: "NDArray[Any]") -> None:
    """Write an array as .npy; errors as `output_file`."""
    import numpy as np

    with output_file(path) as stream:
        np.save(cast(IO[bytes], stream), array, allow_pickle=False)


_OUT_OF_MEMORY = re.compile(
    "out of memory|allocate memory|bad.?alloc|bad allocation|alloc of size [0-9]+ failed"
    "|map segment|start new thread|could not create a primitive"
    "|'frame' object is not callable|error return without exception set",
    re.IGNORECASE,
)
"""How native libraries and Python itself word it in an error that is no MemoryError."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error of whatever type, or one that it came of, says that memory ran out."""
    foreign = (one for one in _causes(error) if not isinstance(one, PipelineError))
    return any(isinstance(one, MemoryError) or _OUT_OF_MEMORY.search(str(one)) for one in foreign)


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what it came of; libraries tie such chains into rings."""
    found = [error]
    while (cause := found[-1].__cause__ or found[-1].__context__) and cause not in found:
        found.append(cause)
    return found


def _sync(path: Path) -> None:
    if path.is_file():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON with sorted keys, atomically; NaN is refused."""
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False)
    with atomic_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def hash_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_weights(model: "nn.Module", *, without: str = "") -> str:
    """The sha256 of a model's loaded weights by name, in hex.

    Args:
        model: whose weights.
        without: leave out what this stands in the name of.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if without and without in name:
            continue
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def hash_strings(parts: Iterable[str]) -> str:
    """The sha256 of a sequence of strings, in hex; the split between parts counts."""
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


@contextlib.contextmanager
def ends_on_signal(command: str) -> Iterator[None]:
    """Turn SIGTERM and SIGINT into an InterruptedRunError, so that clean-up runs."""

    def stop(number: int, _frame: FrameType | None) -> None:
        # Workers that the same signal ended are no error of their own any more.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        name = signal.Signals(number).name
        _stops.append(
            InterruptedRunError(
                f"{command} was stopped by {name}; nothing half-written was left.",
                "run the same command again.",
            )
        )
        raise _stops[-1]

    _stops.clear()
    previous = _install({signal.SIGTERM: stop, signal.SIGINT: stop})
    try:
        yield
        _require_going_on()
    finally:
        _install(previous)
        _stops.clear()


_stops: list[InterruptedRunError] = []
"""The signals that came."""


def _require_going_on() -> None:
    """End a run that was stopped while a native library ran, which may have swallowed the error.

    Nothing gets its final name any more: what was made since may lack what was to be done then.
    """
    if _stops:
        raise _stops[-1]


@contextlib.contextmanager
def defers_signals() -> Iterator[Callable[[], signal.Signals | None]]:
    """Hold SIGTERM and SIGINT back, so that a step in progress ends; yields what came, if any.

    A second signal does what the first would have done outside.
    """
    came: list[signal.Signals] = []

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(signal.Signals(number))
        _install(previous)

    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    _install(dict.fromkeys(previous, note))
    try:
        yield lambda: came[0] if came else None
    finally:
        _install(previous)


_Handler = Callable[[int, FrameType | None], Any] | int | None


def _install(handlers: Mapping[signal.Signals, Any]) -> dict[signal.Signals, _Handler]:
    return {number: signal.signal(number, handler) for number, handler in handlers.items()}


def progress(
    items: Iterable[T], *, what: str, unit: str, total: int | None = None, show: bool = True
) -> Iterator[T]:
    """Yield `items` under a progress bar on stderr, with rate and time left; see bars.py."""
    bar = _bar(items, total=total, desc=what, unit=unit, disable=not show)
    yield from bar


def counter(what: str, unit: str, total: int, *, done: int = 0, show: bool = True) -> "tqdm[Any]":
    """A progress bar on stderr, with rate and time left, that is moved on by `update`."""
    return _bar(total=total, initial=done, desc=what, unit=unit, disable=not show)


def bytes_counter(what: str, total: int | None, done: int) -> "tqdm[Any]":
    """A progress bar of bytes, as `counter`."""
    return _bar(total=total, initial=done, desc=what, unit="B", unit_scale=True)


def _bar(*items: Iterable[Any], **settings: Any) -> "tqdm[Any]":
    from pipeline.bars import make_bar

    bar = make_bar(*items, **settings)
    _bars.add(bar)
    return bar


_bars: "weakref.WeakSet[tqdm[Any]]" = weakref.WeakSet()


def end_bars() -> None:
    """End the lines of progress bars that an error left open, so that what is said stands alone."""
    for bar in list(_bars):
        bar.close()


def ahead(
    function: Callable[[T], R], items: Iterable[T], *, threads: int, depth: int
) -> Generator[R]:
    """`map(function, items)` by threads that run ahead of the reader by at most `depth` items.

    Results come in the order of the items, errors where their result would. With no threads the
    function runs when its result is asked for.
    """
    if not threads:
        yield from map(function, items)
        return
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(items, Generator):
                items.close()  # a progress bar ends its line now, not when it is collected


def fetched(values: Iterable["torch.Tensor"]) -> "Iterator[torch.Tensor]":
    """Tensors on the CPU, each waited for when the next one's work was given to the device.

    Args:
        values: given one by one, each by the work that makes it.
    """
    waiting: Callable[[], torch.Tensor] | None = None
    for value in values:
        coming = _fetch(value)
        if waiting is not None:
            yield waiting()
        waiting = coming
    if waiting is not None:
        yield waiting()


def _fetch(value: "torch.Tensor") -> "Callable[[], torch.Tensor]":
    """Start to copy a tensor to the CPU; gives it when it is there."""
    import torch

    if value.device.type != "cuda":
        there = value.cpu()
        return lambda: there
    coming = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    coming.copy_(value, non_blocking=True)
    copied = cast(Any, torch.cuda).Event()
    copied.record()

    def get() -> torch.Tensor:
        copied.synchronize()
        return coming

    return get


def length_batches(
    lengths: Sequence[int], batch_size: int, *, most: int | None = None
) -> list["NDArray[np.intp]"]:
    """Rows in batches of like length, the longest first; together they are all rows.

    Args:
        lengths: of the rows.
        batch_size: the most rows of a batch.
        most: the most of rows x longest length in a batch of several rows; None: no limit.
    """
    import numpy as np

    order = np.argsort([-length for length in lengths], kind="stable")
    batches, start = [], 0
    while start < len(order):
        longest = max(1, lengths[order[start]])
        size = batch_size if most is None else min(batch_size, max(1, most // longest))
        batches.append(order[start : start + size])
        start += size
    return batches
