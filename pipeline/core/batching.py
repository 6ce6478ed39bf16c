"""Work in batches: threads that work ahead, rows of similar length together."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

T = TypeVar("T")
R = TypeVar("R")


def ahead(
    function: Callable[[T], R], items: Iterable[T], *, threads: int, depth: int
) -> Generator[R]:
    """`map(function, items)` by threads that work ahead of the reader by at most `depth` items.

    Results come in the order of the items, and an error in the place of its result. Without threads
    the function runs when its result is asked for.
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
    """Tensors copied to the CPU while the device already works on the next one."""
    waiting: deque[Callable[[], torch.Tensor]] = deque()
    for value in values:
        waiting.append(_start_copy(value))
        if len(waiting) > 1:
            yield waiting.popleft()()
    for wait in waiting:
        yield wait()


def _start_copy(value: "torch.Tensor") -> "Callable[[], torch.Tensor]":
    """Start to copy a tensor to the CPU; the result waits for the copy and returns it."""
    import torch

    if value.device.type != "cuda":
        there = value.cpu()
        return lambda: there
    coming = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    coming.copy_(value, non_blocking=True)
    copied = cast(Any, torch.cuda).Event()
    copied.record()

    def wait() -> torch.Tensor:
        copied.synchronize()
        return coming

    return wait


def length_batches(
    lengths: Sequence[int], batch_size: int, *, most: int | None = None
) -> list["NDArray[np.intp]"]:
    """All rows, in batches of at most `batch_size` rows of similar length, the longest first.

    Rows x longest length of a batch of several rows is at most `most`.
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
