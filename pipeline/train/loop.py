"""One step, and one loop for every objective."""

import functools
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from pipeline.core.device import choose_device
from pipeline.core.errors import InterruptedRunError, ParamsError, TrainingError
from pipeline.core.progress import counter
from pipeline.core.signals import defers_signals
from pipeline.params.student import StudentParams
from pipeline.params.train import TrainParams
from pipeline.student.encoder import GroundingHeads, SentenceEncoder, Student, Tokens
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
from pipeline.train.dropout import replace_dropout
from pipeline.train.gradients import add_gradients, random_states, set_random_states
from pipeline.train.objective import Distillation, StepLoss, TeacherBatch
from pipeline.train.precision import autocast_of, choose_precision, compile_encoder
from pipeline.train.ranks import find_ranks
from pipeline.train.run_params import RunParams
from pipeline.train.teacher_rows import TeacherRows, to_device
from pipeline.train.token_store import PackedTokens, pack_tokens
from pipeline.train.trackers import Trackers
from pipeline.train.unpadded import choose_unpadded, take_masks_unseen

LOG_EVERY = 10
"""Steps between two points of the training curves."""

_MAX_GRADIENT_NORM = 1.0

ScoreDev = Callable[[SentenceEncoder], Mapping[str, float]]
"""Scores an encoder on the dev pairs; the best `sts_dev` selects the student."""


@dataclass(frozen=True)
class Training:
    """The best student of a run, and its account."""

    student: Student
    metrics: dict[str, float | int]
    times: dict[str, float]
    """What differs from run to run: seconds of all its processes and of those that were stopped,
    steps a second, and the share of the seconds that dev scores took."""
    curves: list[Point]
    is_main: bool = True
    """Whether this process is to write the results: one of those that train together does."""


def train_student(
    data: TrainingData,
    params: RunParams,
    seed: int,
    score_dev: ScoreDev,
    checkpoint: Checkpoint | None = None,
    tokens: Path | None = None,
    trackers: Trackers | None = None,
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
        tokens: folder in which tokenised text is kept for later runs; None: it is not kept.
        trackers: get the points of the curves as they come.

    Raises:
        InputError: a stream is shorter than one batch.
        ParamsError: a Matryoshka dimension is not below the encoder's width, or the batch cannot be
            shared out to the processes.
        TrainingError: the loss is not finite.
        InterruptedRunError: SIGTERM or SIGINT came; the run was kept after its last whole step.
        ResourceError: the checkpoint could not be written.
    """
    run = _Run(data, params, seed, score_dev, tokens, trackers or Trackers())
    run.go(checkpoint)
    return Training(run.best_student(), run.metrics(), run.times(), run.curves.points, run.is_main)


class _Run:
    """The state of one training run."""

    def __init__(
        self,
        data: TrainingData,
        params: RunParams,
        seed: int,
        score_dev: ScoreDev,
        tokens: Path | None,
        trackers: Trackers,
    ) -> None:
        torch.manual_seed(seed)
        train, pairs = params.train, data.pairs
        self._params, self._data, self._seed, self._score_dev = params, data, seed, score_dev
        self._trackers = trackers
        self._ranks = find_ranks(train.batch_size, choose_device(), gathers=train.gather_negatives)
        self._precision = choose_precision(train.precision, self._ranks.device)
        self._autocast = autocast_of(self._precision, self._ranks.device)
        self._steps = count_steps(data, train)
        self._model = build_model(params, pairs.features.dim).to(self._ranks.device)
        self._optimiser = AdamW(
            self._model.parameters(), lr=train.learning_rate, weight_decay=0.0, fused=True
        )
        self._decay = LambdaLR(self._optimiser, lambda step: max(0.0, 1 - step / self._steps))
        compile_encoder(self._model.encoder, wanted=train.compile)
        self._is_unpadded = choose_unpadded(self._model.encoder, train)
        if self._ranks.device.type == "cpu":
            replace_dropout(self._model.encoder.backbone)
        elif not (self._is_unpadded or train.compile):
            take_masks_unseen(self._model.encoder)
        self._ranks.draw_apart(seed)
        pack = functools.partial(
            pack_tokens,
            self._model.encoder,
            max_length=params.student.max_length,
            folder=tokens,
        )
        self._text_tokens, self._pair_tokens = self._ranks.main_first(
            lambda: (pack(data.sentences), pack(pairs.captions))
        )
        self._teacher = TeacherRows(
            pairs.features, pairs.image_rows, pairs.caption_rows, self._ranks.device
        )
        self._text = text_stream(self._text_tokens.lengths, train, seed)
        self._pairs = pair_stream(pairs, self._pair_tokens.lengths, params, seed)
        self._schedule = schedule_of(data, train)
        self._step = 0
        self._best: tuple[float, int, State] | None = None
        self.curves = Curves()
        self._seconds = self._selecting = self._seconds_before = 0.0

    def go(self, checkpoint: Checkpoint | None) -> None:
        """Run all steps that are left, scoring on dev before, between and after."""
        self._started = time.perf_counter()
        if checkpoint is not None and (state := checkpoint.load()) is not None:
            self._restore(state)
        else:
            self._dev_before = self._score()
        self._model.train()
        bar = counter("training", "step", self._steps, done=self._step, show=self._ranks.is_main)
        with bar, defers_signals() as stop_signal:
            while self._step < self._steps:
                self._take_step(bar)
                if self._ranks.is_alone or self._step % LOG_EVERY == 0:
                    self._keep(checkpoint, stop_signal())
            self._keep(checkpoint, stop_signal())  # one that came while the last step was kept
        self._seconds += time.perf_counter() - self._started

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return self._ranks.is_main

    def best_student(self) -> Student:
        """The student at the step that scored best on dev."""
        assert self._best is not None
        self._model.load_state_dict(self._best[2])
        return Student(
            self._model.encoder.eval(),
            self._model.heads.eval(),
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
            "precision_bits": 16 if self._precision == "bf16" else 32,
            "unpadded": int(self._is_unpadded),
            "processes": self._ranks.count,
        }

    def times(self) -> dict[str, float]:
        """How long the run took; a stopped run counts with all its parts."""
        return {
            "training_seconds": round(self._seconds, 1),
            "seconds_before": round(self._seconds_before, 1),
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
        train = self._params.train
        losses = [
            add_gradients(
                self._model,
                tokens,
                teacher,
                scale=1 / train.accumulate,
                chunk=train.chunk,
                autocast=self._autocast,
                gather=self._ranks.gather,
            )
            for tokens, teacher in self._batches()
        ]
        self._ranks.reduce_gradients(self._model)
        clip_grad_norm_(self._model.parameters(), _MAX_GRADIENT_NORM)
        self._optimiser.step()
        self._decay.step()
        self._optimiser.zero_grad()
        return losses

    def _batches(self) -> Iterator[tuple[Tokens, TeacherBatch | None]]:
        """This process's share of the step's batches, from the stream that the schedule names."""
        is_paired = self._schedule.is_paired(self._step)
        for _ in range(self._params.train.accumulate):
            if is_paired:
                rows = next(self._pairs)
                teacher = self._teacher(self._ranks.teacher_rows(rows))
                yield self._read(self._pair_tokens, rows), teacher
            else:
                yield self._read(self._text_tokens, next(self._text)), None

    def _read(self, tokens: PackedTokens, rows: Rows) -> Tokens:
        batch = tokens.batch(self._ranks.share(rows))
        return {key: to_device(value, self._ranks.device) for key, value in batch.items()}

    def _log(self, bar: "tqdm[Any]") -> None:
        values = self._ranks.share_value(self.curves.means())
        self._require_finite(values["loss"])
        self._record(values)
        best = f"{self._best[0]:.2f}" if self._best else "-"
        bar.set_postfix(loss=f"{values['loss']:.4f}", sts_dev_best=best)

    def _require_finite(self, loss: float) -> None:
        if not np.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} at step {self._step}.",
                "lower train.learning_rate or raise loss.temperature.",
            )

    def _select(self) -> None:
        self._require_finite(self._ranks.share_value(self.curves.pending("loss")))
        score = self._score()
        self._model.train()
        if self._best is None or score > self._best[0]:
            state = self._model.state_dict()
            kept = {key: value.to("cpu", copy=True) for key, value in state.items()}
            self._best = (score, self._step, kept)

    def _score(self) -> float:
        """The score of the encoder as it is, taken by the main process."""
        started = time.perf_counter()
        with self._autocast():
            score = self._score_dev(self._model.encoder) if self._ranks.is_main else {}
        score = self._ranks.share_value(score)
        self._selecting += time.perf_counter() - started
        self._record(score)
        return float(score["sts_dev"])

    def _record(self, values: Mapping[str, float]) -> None:
        self.curves.record(self._step, values)
        self._trackers.log(self._step, values)

    def _keep(self, checkpoint: Checkpoint | None, stop: signal.Signals | None) -> None:
        """Keep the run where that is due, in all processes at the same step."""
        stop = next((came for came in self._ranks.collect(stop) if came is not None), None)
        is_due = checkpoint is not None and (stop is not None or checkpoint.is_due())
        if self._ranks.share_value(is_due):
            state = self._state()
            if checkpoint is not None and self._ranks.is_main:
                checkpoint.save(state)
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
            "model": self._model.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "decay": self._decay.state_dict(),
            "random": self._ranks.collect(random_states(self._ranks.device)),
            "positions": [self._text.position, self._pairs.position],
            "best": list(self._best) if self._best else None,
            "dev_before": self._dev_before,
            "curves": self.curves.state(),
            "seconds": self._seconds + time.perf_counter() - self._started,
            "selecting": self._selecting,
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._step, self._dev_before = state["step"], state["dev_before"]
        self._model.load_state_dict(state["model"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._decay.load_state_dict(state["decay"])
        self._text.position, self._pairs.position = state["positions"]
        self._best = tuple(state["best"]) if state["best"] else None
        self.curves.restore(state["curves"])
        self._seconds, self._selecting = state["seconds"], state["selecting"]
        self._seconds_before = self._seconds
        set_random_states(state["random"][self._ranks.rank], self._ranks.device)


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
