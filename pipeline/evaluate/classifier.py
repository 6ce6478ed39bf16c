"""SentEval's classifier, fitted many times at once.

Protocol (SentEval, `usepytorch`, `nhid` 0): one linear layer with a bias under softmax
cross-entropy; Adam at 1e-3 with coupled weight decay on weights and bias; batches of 64, shuffled
anew every epoch. After every 4 epochs the accuracy on held-out samples is measured; the best model
is kept (strictly better only), and training stops at the 6th round in all that did not improve, or
after 51.

The reference fits one model after another and spends its time on calls, not on arithmetic. Here all
fits of a cohort take their steps together, as one batched matrix product, and the regularisations
of one training set share its batches, which they do in the reference too: every fit starts from the
same seed. Initial weights, shuffles and order of the samples are those of the reference, so that
the accuracies agree with it up to rounding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, groupby

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

BATCH = 64
EPOCHS = 4
"""Epochs a round."""
PATIENCE = 5
"""Rounds without improvement that are allowed, in all."""
MOST_ROUNDS = 51

_LEARNING_RATE, _BETA1, _BETA2, _EPSILON = 1e-3, 0.9, 0.999, 1e-8
_COHORT_BYTES = 6_000_000
"""Of one gathered batch over a cohort: large enough to hide calls, small enough for the cache."""

Rows = Int64[np.ndarray, " _"]
"""Rows of the samples."""


@dataclass(frozen=True)
class Fit:
    """One training set, fitted once for each of its regularisations."""

    train: Rows
    held_out: Rows
    """Samples whose accuracy stops training and selects the model."""
    penalties: tuple[float, ...]
    """Adam's coupled weight decay."""
    rng: np.random.RandomState
    """Draws the shuffles; numpy's legacy stream, as in the reference."""


@dataclass(frozen=True)
class Fitted:
    """The best models of a fit, one a regularisation."""

    accuracy: Float[np.ndarray, " penalties"]
    """On the held-out samples, 0 to 1."""
    weights: Float32[np.ndarray, "penalties classes width"]
    """`width` is the features and, last, the bias."""


class Samples:
    """Features and labels, from 0, of a task."""

    def __init__(
        self,
        features: Float32[np.ndarray, "samples dim"],
        labels: Int64[np.ndarray, " samples"],
        classes: int,
    ) -> None:
        bias = np.ones((len(features), 1), dtype=np.float32)
        self.features = torch.from_numpy(np.hstack([features, bias]))
        self.width = int(self.features.shape[1])
        self.labels = labels
        self.classes = classes
        self.one_hot = torch.eye(classes)[torch.from_numpy(labels)]

    def predict(self, weights: Float32[np.ndarray, "classes width"], rows: Rows) -> Rows:
        """The most likely class of each sample."""
        logits = self.features[torch.from_numpy(rows)] @ torch.from_numpy(weights).T
        return logits.argmax(dim=1).numpy()


def fit_all(samples: Samples, fits: Sequence[Fit], seed: int) -> list[Fitted]:
    """Fit all models, one result a fit, in order.

    Args:
        samples: what the fits' rows point into.
        fits: the training sets; all with equally many penalties.
        seed: of the initial weights, which all fits share.
    """
    results: dict[int, Fitted] = {}
    for members in _cohorts(samples, fits):
        cohort = _Cohort(samples, [fits[member] for member in members], seed)
        results.update(zip(members, cohort.run(), strict=True))
    return [results[member] for member in range(len(fits))]


def _cohorts(samples: Samples, fits: Sequence[Fit]) -> Iterator[list[int]]:
    """Fits with equally many batches an epoch, so that they keep in step."""
    most = max(1, _COHORT_BYTES // (4 * BATCH * samples.width))
    members = sorted(range(len(fits)), key=lambda member: _batches(fits[member]))
    for _, alike in groupby(members, key=lambda member: _batches(fits[member])):
        rest = list(alike)
        yield from (rest[start : start + most] for start in range(0, len(rest), most))


def _batches(fit: Fit) -> int:
    return -(-len(fit.train) // BATCH)


class _Cohort:
    """Models that take every step together.

    Tensors are (fits, penalties * classes, width); fits whose models have all stopped are dropped.
    """

    def __init__(self, samples: Samples, fits: list[Fit], seed: int) -> None:
        self._samples = samples
        self._fits = dict(enumerate(fits))
        self._penalties = len(fits[0].penalties)
        start = _initial_weights(samples, seed)
        self._weights = start.repeat(len(fits), self._penalties, 1)
        self._decay = torch.tensor([fit.penalties for fit in fits]).repeat_interleave(
            samples.classes, dim=1
        )[..., None]
        self._mean = torch.zeros_like(self._weights)
        self._square = torch.zeros_like(self._weights)
        self._steps = 0
        shape = (len(fits), self._penalties)
        self._best = np.full(shape, -1.0)
        self._kept = np.zeros((*shape, samples.classes, samples.width), dtype=np.float32)
        self._misses = np.zeros(shape, dtype=int)

    def run(self) -> list[Fitted]:
        for _ in range(MOST_ROUNDS):
            for _ in range(EPOCHS):
                rows, share = _epoch(list(self._fits.values()))
                gathered = torch.empty(rows.shape[1] * BATCH, self._samples.width)
                for step in range(len(rows)):
                    self._step(rows[step], share[step], gathered)
            self._select()
            self._drop_finished()
            if not self._fits:
                break
        return [Fitted(*result) for result in zip(self._best, self._kept, strict=True)]

    def _step(
        self,
        rows: Int64[Tensor, "fits batch"],
        share: Float[Tensor, "fits 1 1 batch"],
        gathered: Float[Tensor, "rows width"],
    ) -> None:
        """One Adam step of every model on its own batch."""
        torch.index_select(self._samples.features, 0, rows.reshape(-1), out=gathered)
        features = gathered.view(*rows.shape, -1)
        logits = torch.bmm(self._weights, features.transpose(1, 2))
        shape = (len(rows), self._penalties, self._samples.classes, BATCH)
        error = torch.softmax(logits.view(shape), dim=2)
        error -= self._samples.one_hot[rows].transpose(1, 2).unsqueeze(1)
        error *= share
        gradient = torch.bmm(error.view_as(logits), features)
        self._descend(gradient.addcmul_(self._weights, self._decay))

    def _descend(self, gradient: Float[Tensor, "fits models width"]) -> None:
        """Adam (Kingma and Ba 2015), as torch computes it."""
        self._steps += 1
        self._mean.lerp_(gradient, 1 - _BETA1)
        self._square.mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
        scale = (1 - _BETA2**self._steps) ** 0.5
        denominator = self._square.sqrt().div_(scale).add_(_EPSILON)
        rate = _LEARNING_RATE / (1 - _BETA1**self._steps)
        self._weights.addcdiv_(self._mean, denominator, value=-rate)

    def _select(self) -> None:
        """Keep what is strictly better; count the misses of the rest."""
        for place, (member, fit) in enumerate(self._fits.items()):
            weights = self._weights[place].view(self._penalties, self._samples.classes, -1)
            features = self._samples.features[torch.from_numpy(fit.held_out)]
            classes = torch.matmul(weights, features.T).argmax(dim=1).numpy()
            accuracy = (classes == self._samples.labels[fit.held_out]).mean(axis=1)
            running = self._misses[member] <= PATIENCE
            better = running & (accuracy > self._best[member])
            self._best[member, better] = accuracy[better]
            self._kept[member, better] = weights.numpy()[better]
            self._misses[member, running & ~better] += 1

    def _drop_finished(self) -> None:
        running = [bool((self._misses[member] <= PATIENCE).any()) for member in self._fits]
        if all(running):
            return
        stay = torch.tensor(running)
        self._fits = dict(compress(self._fits.items(), running))
        for name in ("_weights", "_decay", "_mean", "_square"):
            setattr(self, name, getattr(self, name)[stay])


def _initial_weights(samples: Samples, seed: int) -> Float[Tensor, "classes width"]:
    """How torch starts a linear layer, without touching the global stream."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = torch.nn.Linear(samples.width - 1, samples.classes)
    return torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach()


def _epoch(
    fits: Sequence[Fit],
) -> tuple[Int64[Tensor, "steps fits batch"], Float[Tensor, "steps fits 1 1 batch"]]:
    """The rows of every batch, and each row's share in its batch's mean; 0 behind the end."""
    size = _batches(fits[0]) * BATCH
    rows = np.zeros((len(fits), size), dtype=np.int64)
    share = np.zeros((len(fits), size), dtype=np.float32)
    for place, fit in enumerate(fits):
        count = len(fit.train)
        rows[place, :count] = fit.train[fit.rng.permutation(count)]
        share[place, :count] = 1 / BATCH
        share[place, size - BATCH : count] = 1 / (count - (size - BATCH))
    by_step = (len(fits), -1, BATCH)
    return (
        torch.from_numpy(rows.reshape(by_step)).transpose(0, 1).contiguous(),
        torch.from_numpy(share.reshape(by_step)).transpose(0, 1)[:, :, None, None],
    )
