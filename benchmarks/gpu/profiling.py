"""What limits training and features: the ten longest kernels, and the gaps between kernels."""

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.features import NEEDS, load_teacher
from benchmarks.gpu.measure import Bench, Values, wait
from benchmarks.gpu.training import Setting, Stepper
from benchmarks.gpu.worlds import TEACHER_DIM, draw_data, save_bert

SHOWN = 10


class Span(NamedTuple):
    """A kernel at work, microseconds; on a CPU an operator that no other one called."""

    name: str
    start: float
    end: float


def run(bench: Bench) -> None:
    """A few training steps and a few forward passes of the teacher."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench.take("training steps", lambda: profile_training(bench, folder), seconds=10)
        bench.take(
            "forward passes of ViT-L/14", lambda: profile_features(bench, folder), needs=NEEDS,
            seconds=10,
        )  # fmt: skip


def profile_training(bench: Bench, folder: Path) -> Values:
    """Six eager steps, the last of them paired."""
    model = save_bert(folder / "bert", tiny=bench.tiny)
    data = draw_data(100, 50, tiny=bench.tiny)
    stepper = Stepper(Setting(bench, model, data, folder, 0.0))
    teacher = tuple(torch.randn(2, stepper.size, TEACHER_DIM, device=bench.device))

    def work() -> None:
        for step in range(1, 7):
            stepper.step((teacher[0], teacher[1]) if step == 6 else None)  # noqa: PLR2004

    return profiled(bench, work)


def profile_features(bench: Bench, folder: Path) -> Values:
    """Three batches of pixels, copies among it."""
    teacher = load_teacher(bench, folder, "ViT-L/14 of transformers")
    pixels = torch.randint(0, 256, (bench.of(2, 256), 3, 224, 224), dtype=torch.uint8)

    def work() -> None:
        for _ in range(3):
            teacher.encode_images(pixels)

    return profiled(bench, work)


def profiled(bench: Bench, work: Callable[[], None]) -> Values:
    """Run twice, the second time under the profiler."""
    on_gpu = bench.device.type == "cuda"
    work()
    wait()
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=kinds) as profiler:
        work()
        wait()
    device = DeviceType.CUDA if on_gpu else DeviceType.CPU
    spans = [
        Span(one.name, one.time_range.start, one.time_range.end)
        for one in profiler.events()
        if one.device_type == device and (on_gpu or one.cpu_parent is None)
    ]
    return summarise(spans)


def summarise(spans: Sequence[Span]) -> Values:
    """The share of the time at work, the longest kernels and the longest gaps, milliseconds."""
    if not spans:
        raise ValueError("the profiler saw nothing")
    totals: dict[str, float] = defaultdict(float)
    for span in spans:
        totals[span.name] += span.end - span.start
    gaps = list(find_gaps(spans))
    whole = max(span.end for span in spans) - min(span.start for span in spans)
    idle = sum(length for _, length in gaps)
    longest = sorted(totals.items(), key=lambda pair: -pair[1])[:SHOWN]
    return {
        "wall_ms": round(whole / 1e3, 3),
        "busy_share": round(1 - idle / whole, 4),
        "kernels": len(spans),
        "longest_kernels_ms": [f"{name[:80]} {time / 1e3:.3f}" for name, time in longest],
        "longest_gaps_ms": [
            f"{name[:80]} {length / 1e3:.3f}"
            for name, length in sorted(gaps, key=lambda pair: -pair[1])[:SHOWN]
        ],
    }


def find_gaps(spans: Iterable[Span]) -> Iterable[tuple[str, float]]:
    """When nothing was at work, and before which kernel; spans may overlap."""
    ended = None
    for span in sorted(spans, key=lambda one: one.start):
        if ended is not None and span.start > ended:
            yield f"before {span.name}", span.start - ended
        ended = span.end if ended is None else max(ended, span.end)
