"""One step, and one loop for every objective."""

import copy
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
from pipeline.errors import TrainingError
from pipeline.params.loss import LossParams
from pipeline.params.student import StudentParams
from pipeline.params.train import TrainParams
from pipeline.runtime import log
from pipeline.train.batches import (
    Rows,
    Schedule,
    TrainingPairs,
    make_schedule,
    pair_batches,
    text_batches,
)
from pipeline.train.objective import Distillation, StepLoss, TeacherBatch

LOG_EVERY = 10
"""Steps between two points of the training curves."""

_MAX_GRADIENT_NORM = 1.0
_MOST_MASKED = 0.5
"""A filter that removes a larger share of the negatives, or none, warns (METHOD)."""

ScoreDev = Callable[[SentenceEncoder], float]
"""Spearman x100 of an encoder on the dev pairs."""
Record = Callable[[int, Mapping[str, float]], None]
"""Takes a point of the training curves: the step, and values by name."""


@dataclass(frozen=True)
class RunParams:
    """The blocks of params.yaml that training reads."""

    student: StudentParams
    loss: LossParams
    train: TrainParams


@dataclass(frozen=True)
class TrainingData:
    """Both streams."""

    sentences: list[str]
    pairs: TrainingPairs


@dataclass(frozen=True)
class Training:
    """The best student of a run, and its account."""

    student: Student
    metrics: dict[str, float | int]


def train_student(
    data: TrainingData, params: RunParams, score_dev: ScoreDev, record: Record
) -> Training:
    """Train a student and keep the one that scores best on dev.

    Args:
        data: text-only sentences, and pairs with their teacher features.
        params: student, loss and train blocks.
        score_dev: scores an encoder on the dev pairs; called before the first step, every
            `evaluate_every` steps and after the last.
        record: receives losses every LOG_EVERY steps, and every dev score.

    Raises:
        InputError: a stream is shorter than one batch.
        TrainingError: the loss is not finite.
    """
    run = _Run(data, params, score_dev, record)
    run.go()
    return Training(run.best_student(), run.metrics())


class _Curves:
    """Loss terms since the last logged point; on the device until then, so no step waits."""

    def __init__(self) -> None:
        self._terms: dict[str, list[Tensor]] = {}
        self._masked: list[Tensor] = []

    def add(self, loss: StepLoss) -> None:
        """Take the terms of one step; those it does not have are left out."""
        terms = {"": loss.total, "_text": loss.text, "_image": loss.image, "_caption": loss.caption}
        for suffix, term in terms.items():
            if term is not None:
                self._terms.setdefault(f"loss{suffix}", []).append(term.detach())
        if loss.masked_share is not None:
            self._masked.append(loss.masked_share.detach())

    def means(self) -> dict[str, float]:
        """The mean of every term over the steps that had it since the last call."""
        means = {name: float(torch.stack(terms).mean()) for name, terms in self._terms.items()}
        self._terms.clear()
        return means

    def masked_share(self) -> float | None:
        """Mean share of masked negatives over all filtered steps, 0 to 1; None without any."""
        return float(torch.stack(self._masked).mean()) if self._masked else None


class _Run:
    """The state of one training run."""

    def __init__(
        self, data: TrainingData, params: RunParams, score_dev: ScoreDev, record: Record
    ) -> None:
        torch.manual_seed(params.train.seed)
        self._params, self._data = params, data
        self._score_dev, self._record = score_dev, record
        self._accelerator = Accelerator()
        self._steps = count_steps(data, params.train)
        model = _build(params, data.pairs.features.dim)
        optimiser = AdamW(model.parameters(), lr=params.train.learning_rate, weight_decay=0.0)
        decay = LambdaLR(optimiser, lambda step: max(0.0, 1 - step / self._steps))
        self._model, self._optimiser, self._decay = self._accelerator.prepare(
            model, optimiser, decay
        )
        self._best: tuple[float, int, dict[str, Any]] | None = None
        self._curves = _Curves()
        self._selecting = 0.0

    def go(self) -> None:
        """Run all steps, scoring on dev before, between and after."""
        started = time.perf_counter()
        self._dev_before = self._score()
        self._record(0, {"sts_dev": self._dev_before})
        with tqdm(total=self._steps, desc="training", unit="step", mininterval=0.5) as bar:
            for step, (sentences, teacher) in enumerate(self._batches(), start=1):
                loss = self._step(sentences, teacher)
                self._after_step(step, loss, bar)
        self._seconds = time.perf_counter() - started
        self._warn_of_useless_filter()

    def best_student(self) -> Student:
        """The student at the step that scored best on dev."""
        assert self._best is not None
        model = self._unwrapped()
        model.load_state_dict(self._best[2])
        train = self._params.train
        return Student(model.encoder.eval(), model.heads.eval(), train.objective, train.seed)

    def metrics(self) -> dict[str, float | int]:
        """The account of the run; scores are Spearman x100 on dev."""
        assert self._best is not None
        return {
            "steps": self._steps,
            "dev_before": round(self._dev_before, 4),
            "dev_best": round(self._best[0], 4),
            "best_step": self._best[1],
            "masked_share": round(self._curves.masked_share() or 0.0, 6),
            "seconds": round(self._seconds, 1),
            "steps_per_second": round(self._steps / self._seconds, 2),
            "selection_share": round(self._selecting / self._seconds, 4),
        }

    def _step(self, sentences: list[str], teacher: TeacherBatch | None) -> StepLoss:
        self._model.train()
        encoder = self._unwrapped().encoder
        tokens = encoder.tokenize(sentences, self._params.student.max_length)
        loss: StepLoss = self._model(tokens, teacher)
        self._accelerator.backward(loss.total)
        self._accelerator.clip_grad_norm_(self._model.parameters(), _MAX_GRADIENT_NORM)
        self._optimiser.step()
        self._decay.step()
        self._optimiser.zero_grad()
        return loss

    def _after_step(self, step: int, loss: StepLoss, bar: "tqdm[Any]") -> None:
        bar.update()
        self._curves.add(loss)
        if step % LOG_EVERY == 0 or step == self._steps:
            self._log(step, bar)
        if step % self._params.train.evaluate_every == 0 or step == self._steps:
            self._select(step)

    def _log(self, step: int, bar: "tqdm[Any]") -> None:
        values = self._curves.means()
        if not np.isfinite(values["loss"]):
            raise TrainingError(
                f"the loss is {values['loss']} at step {step}.",
                "lower train.learning_rate or raise loss.temperature.",
            )
        self._record(step, values)
        best = f"{self._best[0]:.2f}" if self._best else "-"
        bar.set_postfix(loss=f"{values['loss']:.4f}", sts_dev_best=best)

    def _select(self, step: int) -> None:
        score = self._score()
        self._record(step, {"sts_dev": score})
        if self._best is None or score > self._best[0]:
            state = {key: value.cpu() for key, value in self._unwrapped().state_dict().items()}
            self._best = (score, step, copy.deepcopy(state))

    def _warn_of_useless_filter(self) -> None:
        share = self._curves.masked_share()
        if share is not None and not 0 < share <= _MOST_MASKED:
            log.warning(
                "the noise filter removed %.1f %% of the negatives; choose another loss.filter",
                100 * share,
            )

    def _score(self) -> float:
        started = time.perf_counter()
        score = self._score_dev(self._unwrapped().encoder)
        self._selecting += time.perf_counter() - started
        return score

    def _unwrapped(self) -> Distillation:
        model: Distillation = self._accelerator.unwrap_model(self._model)
        return model

    def _batches(self) -> Iterator[tuple[list[str], TeacherBatch | None]]:
        """One batch a step, from the stream that the schedule names."""
        batch_size, seed = self._params.train.batch_size, self._params.train.seed
        text_rng, pair_rng = (np.random.default_rng([seed, stream]) for stream in range(2))
        text = text_batches(len(self._data.sentences), batch_size, text_rng)
        pairs = pair_batches(self._data.pairs.image_rows, batch_size, pair_rng)
        schedule = schedule_of(self._data, self._params.train)
        for step in range(1, self._steps + 1):
            if schedule.is_paired(step):
                yield self._pair_batch(next(pairs))
            else:
                yield [self._data.sentences[row] for row in next(text)], None

    def _pair_batch(self, rows: Rows) -> tuple[list[str], TeacherBatch]:
        pairs = self._data.pairs
        return [pairs.captions[row] for row in rows], pairs.teacher(rows, self._accelerator.device)


def schedule_of(data: TrainingData, params: TrainParams) -> Schedule:
    """The mix of both streams for this data."""
    return make_schedule(
        params.pair_every,
        text_batches=max(1, len(data.sentences) // params.batch_size),
        pair_batches=max(1, len(data.pairs) // params.batch_size),
    )


def count_steps(data: TrainingData, params: TrainParams) -> int:
    """`steps`, or what `epochs` give: an epoch has as many steps as both streams have batches."""
    if params.steps is not None:
        return params.steps
    size = params.batch_size
    return params.epochs * max(1, len(data.sentences) // size + len(data.pairs) // size)


def _build(params: RunParams, teacher_dim: int) -> Distillation:
    encoder = SentenceEncoder.load(params.student.encoder, params.student.pooling)
    heads = GroundingHeads(encoder.dim, teacher_dim, params.student.grounding_dim)
    return Distillation(encoder, heads, params.train.objective, params.loss)
