"""One step, and one loop for every objective."""

import functools
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from pipeline.core.errors import InterruptedRunError, TrainingError
from pipeline.core.progress import counter, log
from pipeline.core.signals import defers_signals
from pipeline.features.teacher_rows import SentenceRows, TeacherRows, to_device
from pipeline.params.train import TrainParams
from pipeline.student.encoder import SentenceEncoder, Student, Tokens
from pipeline.train.batches import (
    Rows,
    Siblings,
    TrainingData,
    epoch_batches,
    make_schedule,
    pair_stream,
    text_stream,
)
from pipeline.train.checkpoint import Checkpoint, State
from pipeline.train.curves import Curves, Point
from pipeline.train.distributed import find_context
from pipeline.train.dropout import replace_dropout
from pipeline.train.gradients import (
    Batch,
    add_gradients,
    random_states,
    set_random_states,
    split_tokens,
)
from pipeline.train.objective import StepLoss, build_model
from pipeline.train.precision import autocast_of, choose_precision, compile_encoder
from pipeline.train.run_params import RunParams
from pipeline.train.token_store import PackedTokens, pack_tokens
from pipeline.train.trackers import Report
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


class TrainingRun:
    """One student in training; the backbone is loaded here, once.

    Args:
        data: text-only sentences, which may be none, and pairs with their teacher features.
        params: student, loss and train blocks.
        seed: of heads, dropout and both streams.

    Raises:
        ModelError: the encoder cannot be loaded.
        ParamsError: a Matryoshka dimension is not below the encoder's width, or the batch cannot be
            divided among the processes.
        InputError: `train.pair_every` wants text, and there is none.
    """

    def __init__(self, data: TrainingData, params: RunParams, seed: int) -> None:
        torch.manual_seed(seed)
        train = params.train
        if train.pair_every == 1:  # no text is read
            data = TrainingData([], data.pairs)
        sentences = len(data.sentences)
        self._params, self._data, self._seed = params, data, seed
        self._context = find_context(
            train.batch_size, choose_device(), gathers=train.gather_negatives
        )
        self._device = self._context.device
        self.model = build_model(params, data.pairs.features.dim).to(self._device)
        """Fresh until `train`, and then the best student."""
        self._random = random_states(self._device)
        self._steps = count_steps(data, train)
        self._precision = choose_precision(train.precision, self._device)
        self._autocast = autocast_of(self._precision, self._device)
        self._schedule = make_schedule(
            train.pair_every,
            text_batches=max(min(1, sentences), sentences // train.batch_size),
            pair_batches=epoch_batches(data.pairs, train),
        )
        self._step = 0
        self._best: tuple[float, int, State] | None = None
        self._curves = Curves()
        self._seconds = self._selecting = self._seconds_before = 0.0

    @property
    def is_main(self) -> bool:
        """Whether this process writes the results: one of those that train together does."""
        return self._context.is_main

    def train(
        self,
        score_dev: ScoreDev,
        checkpoint: Checkpoint | None = None,
        tokens: Path | None = None,
        report: Report = lambda _step, _values: None,
    ) -> Training:
        """Train the model and keep the student that scores best on dev.

        Args:
            score_dev: scores an encoder on the dev pairs; called before the first step, every
                `evaluate_every` steps and after the last.
            checkpoint: where the run is kept and resumes from; None: a stop loses it. On one
                machine the CPU gives the same bits, stopped or not.
            tokens: folder in which tokenised text is kept for later runs; None: it is not kept.
            report: takes the points of the curves as they come.

        Raises:
            InputError: a stream is shorter than one batch.
            ParamsError: a setting of `train` does not work for this encoder or machine.
            TrainingError: the loss is not finite.
            InterruptedRunError: SIGTERM or SIGINT came; the run was kept after its last whole step.
            ResourceError: the checkpoint could not be written.
        """
        self._score_dev, self._report = score_dev, report
        set_random_states(self._random, self._device)
        self._prepare_model()
        self._prepare_batches(tokens)
        self._say_what_is_paired()
        self._started = time.perf_counter()
        if checkpoint is not None and (state := checkpoint.load()) is not None:
            self._restore(state)
        else:
            self._dev_before = self._score()
        self.model.train()
        bar = counter("training", "step", self._steps, done=self._step, show=self.is_main)
        with bar, defers_signals() as stop_signal:
            while self._step < self._steps:
                self._take_step(bar)
                if self._context.is_alone or self._step % LOG_EVERY == 0:
                    self._keep(checkpoint, stop_signal())
            self._keep(checkpoint, stop_signal())  # a signal that came while saving the last step
        self._seconds += time.perf_counter() - self._started
        return self._finish()

    def _prepare_model(self) -> None:
        """Make the forward pass fast, and the optimiser."""
        train, encoder = self._params.train, self.model.encoder
        self._optimiser = AdamW(
            self._parameter_groups(),
            lr=train.learning_rate,
            eps=train.adam_epsilon,
            weight_decay=0.0,
            fused=True,
        )
        self._decay = LambdaLR(self._optimiser, lambda step: max(0.0, 1 - step / self._steps))
        compile_encoder(encoder, wanted=train.compile)
        self._is_unpadded = choose_unpadded(encoder, train)
        if self._device.type == "cpu":
            replace_dropout(encoder.backbone)
        elif not (self._is_unpadded or train.compile):
            take_masks_unseen(encoder)
        self._context.seed_dropout(self._seed)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """All parameters; where the heads into the shared space have a rate, these apart."""
        rate = self._params.train.head_learning_rate
        if rate is None:
            return [{"params": list(self.model.parameters())}]
        heads = ("heads.grounding.", "heads.image.", "heads.caption.")
        named = list(self.model.named_parameters())
        others = [one for name, one in named if not name.startswith(heads)]
        return [
            {"params": others},
            {"params": [one for name, one in named if name.startswith(heads)], "lr": rate},
        ]

    def _prepare_batches(self, tokens: Path | None) -> None:
        pack = functools.partial(
            pack_tokens,
            self.model.encoder,
            max_length=self._params.student.max_length,
            folder=tokens,
        )
        data, pairs = self._data, self._data.pairs
        self._text_tokens, self._pair_tokens = self._context.main_first(
            lambda: (pack(data.sentences), pack(pairs.captions))
        )
        self._teacher = TeacherRows(pairs, self._device)
        self._text = text_stream(self._text_tokens.lengths, self._params.train, self._seed)
        self._pairs = pair_stream(pairs, self._pair_tokens.lengths, self._params, self._seed)
        self._siblings = Siblings(pairs.image_rows, self._seed)
        is_taught = (
            self._params.loss.distillation.weight and pairs.features.sentence_text is not None
        )
        self._sentence_rows = SentenceRows(pairs.features, self._device) if is_taught else None

    def _say_what_is_paired(self) -> None:
        paired, loss = self._schedule.paired_steps(self._steps), self._params.loss
        if not self.is_main:
            return
        log.info(
            "%d of %d steps take pairs (%.1f %%)", paired, self._steps, 100 * paired / self._steps
        )
        if loss.positives != "dropout":
            share = self._siblings.share
            say = log.warning if share == 0 else log.info
            say(
                "%.1f %% of the captions have a sibling; the others keep dropout views", 100 * share
            )

    def _finish(self) -> Training:
        """The student at the step that scored best on dev; scores are Spearman x100."""
        assert self._best is not None
        score, step, weights = self._best
        self.model.load_state_dict(weights)
        self.model.eval()
        student = Student(
            self.model.encoder,
            self.model.heads,
            self._params.train.objective,
            self._seed,
            tuple(self._params.student.matryoshka),
            self._data.pairs.features.teacher,
        )
        metrics = {
            "steps": self._steps,
            "dev_before": round(self._dev_before, 4),
            "dev_best": round(score, 4),
            "best_step": step,
            "paired_share": round(self._schedule.paired_steps(self._steps) / self._steps, 6),
            "masked_share": round(self._curves.mean_of("masked_share"), 6),
            "applied_margin": round(self._curves.mean_of("applied_margin"), 6),
            "precision_bits": 16 if self._precision == "bf16" else 32,
            "unpadded": int(self._is_unpadded),
            "processes": self._context.count,
        }
        times = {
            "training_seconds": round(self._seconds, 1),
            "seconds_before": round(self._seconds_before, 1),
            "steps_per_second": round(self._steps / self._seconds, 2),
            "selection_share": round(self._selecting / self._seconds, 4),
        }
        return Training(student, metrics, times, self._curves.points)

    def _take_step(self, bar: "tqdm[Any]") -> None:
        self._step += 1
        self._curves.add(self._descend())
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
                self.model,
                batch,
                scale=1 / train.gradient_accumulation_steps,
                mini_batch_size=train.mini_batch_size,
                autocast=self._autocast,
                gather=self._context.gather,
            )
            for batch in self._batches()
        ]
        self._context.reduce_gradients(self.model)
        clip_grad_norm_(self.model.parameters(), _MAX_GRADIENT_NORM)
        self._optimiser.step()
        self._decay.step()
        self._optimiser.zero_grad()
        return losses

    def _batches(self) -> Iterator[Batch]:
        """This process's share of the step's batches, from the stream that is due."""
        is_paired = self._schedule.is_paired(self._step)
        for _ in range(self._params.train.gradient_accumulation_steps):
            yield self._pair_batch() if is_paired else self._text_batch()

    def _text_batch(self) -> Batch:
        rows = next(self._text)
        tokens = self._read(self._text_tokens, [rows, rows])
        if self._sentence_rows is None:
            return Batch(tokens)
        text = self._sentence_rows(self._context.teacher_rows(rows))
        return Batch(tokens, text=[text, text])

    def _pair_batch(self) -> Batch:
        rows, positives = next(self._pairs), self._params.loss.positives
        views = [rows] if positives == "sibling" else [rows, rows]
        if positives != "dropout":
            views.append(self._siblings(rows, self._pairs.epoch))
        of_rows = self._teacher(self._context.teacher_rows(rows))
        teacher = [
            of_rows if view is rows else self._teacher(self._context.teacher_rows(view))
            for view in views
        ]
        text = [one.text for one in teacher if one.text is not None]
        return Batch(self._read(self._pair_tokens, views), teacher, text or None)

    def _read(self, tokens: PackedTokens, views: Sequence[Rows]) -> list[Tokens]:
        """The sentences of all views, padded to the longest of all."""
        mine = [self._context.share(rows) for rows in views]
        batch = tokens.batch(np.concatenate(mine))
        sent = {key: to_device(value, self._device) for key, value in batch.items()}
        return [dict(part) for part in split_tokens(sent, len(mine[0]))]

    def _log(self, bar: "tqdm[Any]") -> None:
        values = self._context.share_value(self._curves.means())
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
        self._require_finite(self._context.share_value(self._curves.pending("loss")))
        score = self._score()
        self.model.train()
        if self._best is None or score > self._best[0]:
            state = self.model.state_dict()
            kept = {key: value.to("cpu", copy=True) for key, value in state.items()}
            self._best = (score, self._step, kept)

    def _score(self) -> float:
        """The score of the encoder as it is now, computed by the main process."""
        started = time.perf_counter()
        with self._autocast():
            score = self._score_dev(self.model.encoder) if self._context.is_main else {}
        score = self._context.share_value(score)
        self._selecting += time.perf_counter() - started
        self._record(score)
        return float(score["sts_dev"])

    def _record(self, values: Mapping[str, float]) -> None:
        self._curves.record(self._step, values)
        self._report(self._step, values)

    def _keep(self, checkpoint: Checkpoint | None, stop: signal.Signals | None) -> None:
        """Save the run where that is due, in all processes at the same step."""
        stop = next((came for came in self._context.collect(stop) if came is not None), None)
        is_due = checkpoint is not None and (stop is not None or checkpoint.is_due())
        if self._context.share_value(is_due):
            state = self._state()
            if checkpoint is not None and self._context.is_main:
                checkpoint.save(state)
        if stop is not None:
            kept, again = ("kept", "resumes there") if checkpoint else ("lost", "starts anew")
            raise InterruptedRunError(
                f"training was stopped by {stop.name} after step {self._step} of {self._steps}, "
                f"which is {kept}.",
                f"run the same command again; it {again}.",
            )

    def _state(self) -> State:
        return {
            "step": self._step,
            "model": self.model.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "decay": self._decay.state_dict(),
            "random": self._context.collect(random_states(self._device)),
            "positions": [self._text.position, self._pairs.position],
            "best": list(self._best) if self._best else None,
            "dev_before": self._dev_before,
            "curves": self._curves.state(),
            "seconds": self._seconds + time.perf_counter() - self._started,
            "selecting": self._selecting,
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._step, self._dev_before = state["step"], state["dev_before"]
        self.model.load_state_dict(state["model"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._decay.load_state_dict(state["decay"])
        self._text.position, self._pairs.position = state["positions"]
        self._best = tuple(state["best"]) if state["best"] else None
        self._curves.restore(state["curves"])
        self._seconds, self._selecting = state["seconds"], state["selecting"]
        self._seconds_before = self._seconds
        set_random_states(state["random"][self._context.rank], self._device)


def count_steps(data: TrainingData, params: TrainParams) -> int:
    """`steps`, or what `epochs` give: an epoch has the batches of the streams that are read.

    With `pair_every` 1 no text is read, and with one that an epoch of text does not reach no pair.
    """
    if params.steps is not None:
        return params.steps
    text, pairs = len(data.sentences) // params.batch_size, epoch_batches(data.pairs, params)
    if params.pair_every == 1:
        text = 0
    elif params.pair_every != "auto" and params.pair_every > params.epochs * text:
        pairs = 0
    return max(1, params.epochs * (text + pairs) // params.gradient_accumulation_steps)
