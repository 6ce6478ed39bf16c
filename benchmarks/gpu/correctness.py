"""Does it work: against float64 on the CPU, end to end, after a kill, and twice with one seed."""

import os
import signal
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.gpu.measure import Bench, Values
from benchmarks.gpu.worlds import draw_data, draw_sentences, pack_pictures, save_bert, save_clip
from benchmarks.gpu.worlds import run_params as params_of
from pipeline.core.errors import InterruptedRunError
from pipeline.features.teacher import Teacher
from pipeline.features.teacher_rows import TeacherBatch
from pipeline.params.teacher import TeacherParams
from pipeline.student.encoder import SentenceEncoder
from pipeline.train import loop
from pipeline.train.batches import TrainingData
from pipeline.train.checkpoint import Checkpoint
from pipeline.train.gradients import Autocast
from pipeline.train.loop import Training
from pipeline.train.objective import Distillation, build_model
from pipeline.train.precision import autocast_of

TOLERANCES = {"fp32": (1e-4, 1e-3), "bf16": (3e-2, 1e-1)}
"""Largest relative error of the loss, and of the gradient as a whole, that counts as rounding."""
SCORE_TOLERANCE = 0.5
"""Largest difference of a Spearman x100, between devices, after a few steps without dropout."""
FEATURE_TOLERANCE = 1e-2
"""Largest relative error of float16 features against float32 on the CPU."""
Solution = tuple[float, Tensor]
"""A loss, and the gradient of all weights."""
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@dataclass(frozen=True)
class Problem:
    """A batch of two views and its model."""

    model: Distillation
    views: tuple[list[str], list[str]]
    teacher: tuple[Tensor, Tensor]

    def gradient(self, device: torch.device, dtype: torch.dtype, autocast: Autocast) -> Solution:
        """Loss, and the gradient of all weights as one vector, in float64 on the CPU."""
        model = self.model.to(device, dtype)
        model.zero_grad()
        teacher = TeacherBatch(*(side.to(device, dtype) for side in self.teacher))
        with autocast():
            first, second = (model.encoder(model.encoder.tokenize(view)) for view in self.views)
            views = _widen(first), _widen(second)
            loss = model.loss_of_views(views, [teacher, teacher]).total
        torch.autograd.backward(loss)
        # A compiled model gives unused weights a gradient of 0, others none.
        parts = [torch.zeros_like(w) if w.grad is None else w.grad for w in model.parameters()]
        whole = torch.cat([part.double().flatten().cpu() for part in parts])
        return float(loss.detach()), whole


def run(bench: Bench) -> None:
    """All checks."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        check = Gradients(bench, save_bert(folder / "bert", tiny=bench.tiny, **NO_DROPOUT))
        for precision in TOLERANCES:
            check.take(precision, precision)
        still = save_bert(folder / "still", tiny=True, **NO_DROPOUT)
        data = draw_data(300, 100, tiny=True)
        bench.take("training, evaluation and search", lambda: end_to_end(bench, still, data))
        needs = ["PIL", "torchvision"]
        bench.take("features", lambda: same_features(bench, folder), needs=needs)
        drawing = save_bert(folder / "drawing", tiny=True)
        bench.take("killed and resumed", lambda: resumed(drawing, data, folder / "checkpoints"))
        bench.take("equal seeds", lambda: equal_seeds(drawing, data))
        bench.take("waits of a step", lambda: waits(drawing, data), cuda=True)
        for precision in TOLERANCES:
            check.take(f"{precision}, compiled", precision, compiled=True)


class Gradients:
    """Losses and gradients of one problem against those in float64 on the CPU."""

    def __init__(self, bench: Bench, model: str) -> None:
        self._bench = bench
        self._problem = draw_problem(bench, model)
        self._solution: Solution | None = None
        bench.take("float64 on the CPU", self._solve)

    def _solve(self) -> Values:
        loss, gradient = self._problem.gradient(torch.device("cpu"), torch.float64, nullcontext)
        self._solution = (loss, gradient)
        return {"loss": round(loss, 6), "gradient": round(float(gradient.norm()), 6)}

    def take(self, name: str, precision: str, *, compiled: bool = False) -> None:
        """Measure the errors of a precision, where there is something to hold it against."""
        if (solution := self._solution) is not None:
            self._bench.take(
                name,
                lambda: compare(self._bench, self._problem, solution, precision, compiled=compiled),
                seconds=30 if compiled else 3,
            )


def draw_problem(bench: Bench, model: str) -> Problem:
    """Sentences of different lengths, in eval mode, so that the masks are those of all devices."""
    size = bench.of(6, 16)
    params = params_of(model, {})
    distillation = build_model(params, 768).eval()
    views = [draw_sentences(size, (3, 28), tiny=bench.tiny, seed=seed) for seed in (1, 2)]
    generator = torch.Generator().manual_seed(0)
    images, captions = (torch.randn(size, 768, generator=generator) for _ in range(2))
    return Problem(distillation, (views[0], views[1]), (images, captions))


def compare(
    bench: Bench, problem: Problem, expected: Solution, precision: str, *, compiled: bool
) -> Values:
    """Relative errors of a precision on the device."""
    torch.compiler.reset()
    autocast = autocast_of(cast(Any, precision), bench.device)
    backbone = cast(Any, problem.model.encoder.backbone)
    forward = backbone.forward
    if compiled:
        backbone.forward = torch.compile(forward, backend=bench.of("aot_eager", "inductor"))
    try:
        loss, gradient = problem.gradient(bench.device, torch.float32, autocast)
    finally:
        backbone.forward = forward
    errors = (
        abs(loss - expected[0]) / abs(expected[0]),
        float((gradient - expected[1]).norm() / expected[1].norm()),
    )
    limits = TOLERANCES[precision]
    return {
        "error_of_loss": float(f"{errors[0]:.3g}"),
        "error_of_gradient": float(f"{errors[1]:.3g}"),
        "tolerances": list(limits),
        "holds": bool(errors[0] <= limits[0] and errors[1] <= limits[1]),
    }


def _widen(vectors: Tensor) -> Tensor:
    return vectors if vectors.dtype == torch.float64 else vectors.float()


@contextmanager
def on(device: torch.device) -> Iterator[None]:
    """Let training take another device than the first GPU."""
    with mock.patch.object(loop, "choose_device", return_value=device):
        yield


def train(
    model: str, data: TrainingData, checkpoint: Checkpoint | None = None, score: Any = None
) -> Training:
    """Eight steps of a tiny student in float32."""
    changes = {"steps": 8, "batch_size": 16, "evaluate_every": 4, "pair_every": 2}
    changes |= {"precision": "fp32", "unpad": False, "learning_rate": 1e-3}
    params = params_of(model, changes)
    run = loop.TrainingRun(data, params, 0)
    return run.train(score or (lambda _: {"sts_dev": 0.0}), checkpoint)


def end_to_end(bench: Bench, model: str, data: TrainingData) -> Values:
    """A student trained, evaluated and searched on the device and on the CPU, without dropout."""
    scores, nearest = [], []
    for device in (torch.device("cpu"), bench.device):
        with on(device):
            encoder = train(model, data).student.encoder
        vectors = [encoder.encode(data.sentences[n::2], batch_size=64) for n in (0, 1)]
        scores.append(spearman_of(*vectors))
        nearest.append((vectors[0] @ vectors[1].T).argmax(1))
    moved = abs(scores[0] - scores[1])
    return {
        "score_on_cpu": round(scores[0], 3),
        "score": round(scores[1], 3),
        "tolerance": SCORE_TOLERANCE,
        "same_nearest": round(float((nearest[0] == nearest[1]).mean()), 4),
        "holds": bool(moved <= SCORE_TOLERANCE),
    }


def spearman_of(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman x100 of the cosines of pairs with gold scores that mean nothing: their order."""
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (first, second)]
    ranks = np.argsort(np.argsort((unit[0] * unit[1]).sum(1)))
    return 100 * float(np.corrcoef(ranks, np.arange(len(ranks)))[0, 1])


def same_features(bench: Bench, folder: Path) -> Values:
    """A teacher in the device's own precision, against float32 on the CPU."""
    name = save_clip(folder / "clip", "ViT-B/32", tiny=bench.tiny)
    members = pack_pictures(folder / "pictures.zip", 224, 8)
    with zipfile.ZipFile(folder / "pictures.zip") as file:
        contents = [file.read(member) for member in members]
    texts = draw_sentences(8, (3, 20), tiny=bench.tiny)
    features = []
    for device, precision in ((torch.device("cpu"), "fp32"), (bench.device, "auto")):
        teacher = Teacher(TeacherParams(model=name), device, cast(Any, precision))
        pixels = torch.stack([cast(Tensor, teacher.decode(content)) for content in contents])
        features.append((teacher.encode_images(pixels), teacher.encode_captions(texts)))
    errors = [
        float((given - wanted).norm() / wanted.norm())
        for wanted, given in zip(*features, strict=True)
    ]
    return {
        "error_of_images": float(f"{errors[0]:.3g}"),
        "error_of_captions": float(f"{errors[1]:.3g}"),
        "tolerance": FEATURE_TOLERANCE,
        "holds": max(errors) <= FEATURE_TOLERANCE,
    }


def resumed(model: str, data: TrainingData, folder: Path) -> Values:
    """A run that SIGTERM stops in its middle and that goes on, against one that was left alone."""
    whole = train(model, data)
    seen = []

    def stop_in_the_middle(_: SentenceEncoder) -> Mapping[str, float]:
        seen.append(0)
        if len(seen) > 1:  # the first is before the first step, the second after half of them
            os.kill(os.getpid(), signal.SIGTERM)
        return {"sts_dev": 0.0}

    was_stopped = False
    try:
        train(model, data, Checkpoint(folder, "0" * 16, every=1e9), stop_in_the_middle)
    except InterruptedRunError:
        was_stopped = True
    again = train(model, data, Checkpoint(folder, "0" * 16, every=1e9))
    return {"was_stopped": was_stopped, **difference(whole, again), "holds": was_stopped}


def equal_seeds(model: str, data: TrainingData) -> Values:
    """Two runs of one seed."""
    return difference(train(model, data), train(model, data))


def difference(one: Training, other: Training) -> Values:
    """The largest relative differences of two runs' losses and weights; 0: the same bits."""
    losses = [[v for _, name, v in run.curves if name == "loss"] for run in (one, other)]
    weights = [
        torch.cat([w.double().flatten().cpu() for w in run.student.encoder.parameters()])
        for run in (one, other)
    ]
    of_losses = np.abs(np.subtract(*losses)) / np.abs(losses[0])
    of_weights = (weights[0] - weights[1]).norm() / weights[0].norm()
    return {
        "difference_of_losses": float(f"{of_losses.max():.3g}"),
        "difference_of_weights": float(f"{float(of_weights):.3g}"),
    }


def waits(model: str, data: TrainingData) -> Values:
    """Where the host waited for the device in five steps between logging steps; none is wanted."""
    taken = []

    def watch(*_: Any) -> None:
        taken.append(0)
        torch.cuda.set_sync_debug_mode("warn" if 2 <= len(taken) < 7 else "default")  # noqa: PLR2004

    hook = register_optimizer_step_post_hook(watch)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train_longer(model, data)
    finally:
        hook.remove()
        torch.cuda.set_sync_debug_mode("default")
    found = [one for one in caught if "synchroniz" in str(one.message)]
    places = sorted({f"{Path(one.filename).name}:{one.lineno}" for one in found})
    return {"waits": len(found), "places": places, "holds": not found}


def train_longer(model: str, data: TrainingData) -> None:
    """Nine steps, none of them a logging step but the last, with a filter that asks much."""
    changes = {"steps": 9, "batch_size": 16, "evaluate_every": 9, "pair_every": 2}
    params = params_of(model, changes)
    noise = params.loss.filter.model_copy(update={"kind": "percentile", "threshold": 80.0})
    loss = params.loss.model_copy(update={"filter": noise})
    run = loop.TrainingRun(data, type(params)(params.student, loss, params.train), 0)
    run.train(_no_score)


def _no_score(_: SentenceEncoder) -> Mapping[str, float]:
    return {"sts_dev": 0.0}
