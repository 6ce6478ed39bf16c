"""One step, and one loop for every objective."""

import copy
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from pipeline.encoder import GroundingHeads, SentenceEncoder, Student
from pipeline.errors import InterruptedRunError, ParamsError, TrainingError
from pipeline.params.student import StudentParams
from pipeline.params.train import TrainParams
from pipeline.runtime import defers_signals
from pipeline.train.batches import (
    Rows,
    Schedule,
    TrainingData,
    epoch_batches,
    make_schedule,
    pair_stream,
    text_stream,
)
from pipeline.train.checkpoint import Checkpoint, State
from pipeline.train.curves import Curves, Point
from pipeline.train.objective import Distillation, StepLoss, TeacherBatch
from pipeline.train.run_params import RunParams

LOG_EVERY = 10
"""Steps between two points of the training curves."""

_MAX_GRADIENT_NORM = 1.0

_PRECISIONS = {"fp32": "no", "bf16": "bf16"}

ScoreDev = Callable[[SentenceEncoder], Mapping[str, float]]
"""Scores an encoder on the dev pairs; the best `sts_dev` selects the student."""


@dataclass(frozen=True)
class Training:
    """The best student of a run, and its account."""

    student: Student
    metrics: dict[str, float | int]
    curves: list[Point]


def train_student(
    data: TrainingData,
    params: RunParams,
    seed: int,
    score_dev: ScoreDev,
    checkpoint: Checkpoint | None = None,
) -> Training:
    """Train a student and keep the one that scores best on dev.

    Args:
        data: text-only sentences, and pairs with their teacher features.
        params: student, loss and train blocks.
        seed: of heads, dropout and both streams.
        score_dev: scores an encoder on the dev pairs; called before the first step, every
            `evaluate_every` steps and after the last.
        checkpoint: where the run is kept and goes on from; None: a stop loses it. On one machine
            the CPU gives the same bits, stopped or not.

    Raises:
        InputError: a stream is shorter than one batch.
        ParamsError: a Matryoshka dimension is not below the encoder's width.
        TrainingError: the loss is not finite.
        InterruptedRunError: SIGTERM or SIGINT came; the run was kept after its last whole step.
        ResourceError: the checkpoint could not be written.
    """
    run = _Run(data, params, seed, score_dev)
    run.go(checkpoint)
    return Training(run.best_student(), run.metrics(), run.curves.points)


class _Run:
    """The state of one training run."""

    def __init__(
        self, data: TrainingData, params: RunParams, seed: int, score_dev: ScoreDev
    ) -> None:
        torch.manual_seed(seed)
        self._params, self._data, self._seed, self._score_dev = params, data, seed, score_dev
        self._accelerator = Accelerator(mixed_precision=_PRECISIONS[params.train.precision])
        self._steps = count_steps(data, params.train)
        model = build_model(params, data.pairs.features.dim)
        optimiser = AdamW(
            model.parameters(), lr=params.train.learning_rate, weight_decay=0.0, fused=True
        )
        decay = LambdaLR(optimiser, lambda step: max(0.0, 1 - step / self._steps))
        self._model, self._optimiser, self._decay = self._accelerator.prepare(
            model, optimiser, decay
        )
        self._text = text_stream(len(data.sentences), params.train.batch_size, seed)
        self._pairs = pair_stream(data.pairs, params, seed)
        self._schedule = schedule_of(data, params.train)
        self._step = 0
        self._best: tuple[float, int, State] | None = None
        self.curves = Curves()
        self._seconds = self._selecting = 0.0

    def go(self, checkpoint: Checkpoint | None) -> None:
        """Run all steps that are left, scoring on dev before, between and after."""
        self._started = time.perf_counter()
        if checkpoint is not None and (state := checkpoint.load()) is not None:
            self._restore(state)
        else:
            self._dev_before = self._score()
        bar = tqdm(
            total=self._steps, initial=self._step, desc="training", unit="step", mininterval=0.5
        )
        with bar, defers_signals() as stop_signal:
            while self._step < self._steps:
                self._take_step(bar)
                self._keep(checkpoint, stop_signal())
            self._keep(checkpoint, stop_signal())  # one that came while the last step was kept
        self._seconds += time.perf_counter() - self._started

    def best_student(self) -> Student:
        """The student at the step that scored best on dev."""
        assert self._best is not None
        model = self._unwrapped()
        model.load_state_dict(self._best[2])
        return Student(
            model.encoder.eval(),
            model.heads.eval(),
            self._params.train.objective,
            self._seed,
            tuple(self._params.student.matryoshka),
            self._data.pairs.features.teacher,
        )

    def metrics(self) -> dict[str, float | int]:
        """The account of the run; scores are Spearman x100 on dev."""
        assert self._best is not None
        return {
            "steps": self._steps,
            "dev_before": round(self._dev_before, 4),
            "dev_best": round(self._best[0], 4),
            "best_step": self._best[1],
            "masked_share": round(self.curves.mean_of("masked_share"), 6),
            "applied_margin": round(self.curves.mean_of("applied_margin"), 6),
            "seconds": round(self._seconds, 1),
            "steps_per_second": round(self._steps / self._seconds, 2),
            "selection_share": round(self._selecting / self._seconds, 4),
        }

    def _take_step(self, bar: "tqdm[Any]") -> None:
        self._step += 1
        self.curves.add(self._descend())
        bar.update()
        is_last = self._step == self._steps
        if self._step % LOG_EVERY == 0 or is_last:
            self._log(bar)
        if self._step % self._params.train.evaluate_every == 0 or is_last:
            self._select()

    def _descend(self) -> list[StepLoss]:
        """One optimiser step on the mean loss of its batches."""
        self._model.train()
        encoder = self._unwrapped().encoder
        losses = []
        for sentences, teacher in self._batches():
            tokens = encoder.tokenize(sentences, self._params.student.max_length)
            loss: StepLoss = self._model(tokens, teacher)
            self._accelerator.backward(loss.total / self._params.train.accumulate)
            losses.append(loss)
        self._accelerator.clip_grad_norm_(self._model.parameters(), _MAX_GRADIENT_NORM)
        self._optimiser.step()
        self._decay.step()
        self._optimiser.zero_grad()
        return losses

    def _batches(self) -> Iterator[tuple[list[str], TeacherBatch | None]]:
        """The batches of a step, all from the stream that the schedule names."""
        is_paired = self._schedule.is_paired(self._step)
        for _ in range(self._params.train.accumulate):
            if is_paired:
                yield self._pair_batch(next(self._pairs))
            else:
                yield [self._data.sentences[row] for row in next(self._text)], None

    def _pair_batch(self, rows: Rows) -> tuple[list[str], TeacherBatch]:
        pairs = self._data.pairs
        return [pairs.captions[row] for row in rows], pairs.teacher(rows, self._accelerator.device)

    def _log(self, bar: "tqdm[Any]") -> None:
        values = self.curves.means()
        if not np.isfinite(values["loss"]):
            raise TrainingError(
                f"the loss is {values['loss']} at step {self._step}.",
                "lower train.learning_rate or raise loss.temperature.",
            )
        self.curves.record(self._step, values)
        best = f"{self._best[0]:.2f}" if self._best else "-"
        bar.set_postfix(loss=f"{values['loss']:.4f}", sts_dev_best=best)

    def _select(self) -> None:
        score = self._score()
        if self._best is None or score > self._best[0]:
            state = {key: value.cpu() for key, value in self._unwrapped().state_dict().items()}
            self._best = (score, self._step, copy.deepcopy(state))

    def _score(self) -> float:
        started = time.perf_counter()
        score = self._score_dev(self._unwrapped().encoder)
        self._selecting += time.perf_counter() - started
        self.curves.record(self._step, score)
        return score["sts_dev"]

    def _keep(self, checkpoint: Checkpoint | None, stop: signal.Signals | None) -> None:
        if checkpoint is not None and (stop is not None or checkpoint.is_due()):
            checkpoint.save(self._state())
        if stop is not None:
            kept, again = ("kept", "goes on from there") if checkpoint else ("lost", "starts anew")
            raise InterruptedRunError(
                f"training was stopped by {stop.name} after step {self._step} of {self._steps}, "
                f"which is {kept}.",
                f"run the same command again; it {again}.",
            )

    def _state(self) -> State:
        return {
            "step": self._step,
            "model": self._unwrapped().state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "decay": self._decay.state_dict(),
            "random": _random_states(self._accelerator.device),
            "positions": [self._text.position, self._pairs.position],
            "best": list(self._best) if self._best else None,
            "dev_before": self._dev_before,
            "curves": self.curves.state(),
            "seconds": self._seconds + time.perf_counter() - self._started,
            "selecting": self._selecting,
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._step, self._dev_before = state["step"], state["dev_before"]
        self._unwrapped().load_state_dict(state["model"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._decay.load_state_dict(state["decay"])
        self._text.position, self._pairs.position = state["positions"]
        self._best = tuple(state["best"]) if state["best"] else None
        self.curves.restore(state["curves"])
        self._seconds, self._selecting = state["seconds"], state["selecting"]
        _set_random_states(state["random"], self._accelerator.device)

    def _unwrapped(self) -> Distillation:
        model: Distillation = self._accelerator.unwrap_model(self._model)
        return model


def schedule_of(data: TrainingData, params: TrainParams) -> Schedule:
    """The mix of both streams for this data."""
    return make_schedule(
        params.pair_every,
        text_batches=max(1, len(data.sentences) // params.batch_size),
        pair_batches=epoch_batches(data.pairs, params),
    )


def count_steps(data: TrainingData, params: TrainParams) -> int:
    """`steps`, or what `epochs` give: an epoch has as many batches as both streams together."""
    if params.steps is not None:
        return params.steps
    batches = len(data.sentences) // params.batch_size + epoch_batches(data.pairs, params)
    return max(1, params.epochs * batches // params.accumulate)


def build_model(params: RunParams, teacher_dim: int) -> Distillation:
    """The encoder with fresh heads, drawn from torch's random state, under its objective.

    Raises:
        ModelError: the encoder cannot be loaded.
        ParamsError: a Matryoshka dimension is not below its width.
    """
    student = params.student
    encoder = SentenceEncoder.load(student.encoder, student.pooling)
    _require_shorter(student, encoder.dim)
    heads = GroundingHeads(encoder.dim, teacher_dim, student.grounding_dim)
    return Distillation(
        encoder, heads, params.train.objective, params.loss, tuple(student.matryoshka)
    )


def _require_shorter(student: StudentParams, width: int) -> None:
    if student.matryoshka and student.matryoshka[0] >= width:
        raise ParamsError(
            f"student.matryoshka names {student.matryoshka[0]} dimensions, but {student.encoder} "
            f"has {width}.",
            f"name dimensions below {width}.",
        )


def _random_states(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states["device"] = torch.get_device_module(device).get_rng_state()
    return states


def _set_random_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states["device"])
