"""Transfer: logistic regression on frozen embeddings, in SentEval's protocol.

How a task is scored follows from the splits it has:

    all               nested 10-fold cross-validation (MR, CR, SUBJ, MPQA)
    train, test       10-fold cross-validation on train chooses l2 (TREC, MRPC)
    train, dev, test  dev chooses l2 (SST2)

Tasks of sentence pairs are scored on |u - v| and u * v together; those of two classes by F1 of
class 1 too.
Embeddings enter as the encoder gives them, without scaling. l2 is chosen from 1e-5 to 1e-2; of
equals the smallest. As SentEval reports them, accuracies are rounded to two decimals where it does.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedKFold

from pipeline.core.errors import InputError
from pipeline.core.progress import progress
from pipeline.evaluate.classifier import Fit, Fitted, Rows, Samples, fit_all
from pipeline.evaluate.embeddings import Embeddings, protocol_order
from pipeline.evaluate.score import AVERAGE, Score

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2)
FOLDS = 10
_OUTER_SEED = 1111
"""Nested cross-validation splits by this seed always, whatever the task's own (SentEval)."""
_BINARY = 2
_HELD_OUT = 0.05
"""Share of the training samples that are held out to stop the last fit."""


def score_transfer(embeddings: Embeddings, table: pd.DataFrame, *, seed: int) -> list[Score]:
    """Score all tasks of the table, and the average over them, under a progress bar.

    Args:
        embeddings: of all sentences of the table.
        table: rows of transfer.parquet.
        seed: of initial weights, shuffles and folds (SentEval's own is 1111).

    Returns:
        For every task `accuracy` and `dev_accuracy`, for pairs `f1`, x100; last the average.

    Raises:
        InputError: a task has other splits, or a class with fewer samples than folds.
    """
    watched = progress(list(table.groupby("task", sort=False)), what="transfer", unit="task")
    scores = [
        score
        for name, rows in watched
        for score in _Task(str(name), _sorted(rows), embeddings, seed).scores()
    ]
    accuracies = [score for score in scores if score.measure == "accuracy"]
    mean = float(np.mean([score.value for score in accuracies if score.value is not None]))
    count = sum(score.count for score in accuracies)
    return [*scores, Score("transfer", AVERAGE, "test", "accuracy", mean, count)]


def _sorted(rows: pd.DataFrame) -> pd.DataFrame:
    """SentEval's order, which fixes folds and batches: by tokens, then by label."""
    order = protocol_order(
        rows["sentence1"], rows["sentence2"].fillna(""), rows["label"].to_numpy()
    )
    return rows.iloc[order].reset_index(drop=True)


class _Task:
    """The samples of one task, in the protocol's order.

    Raises:
        InputError: the labels, splits or classes fit no protocol.
    """

    def __init__(self, name: str, table: pd.DataFrame, embeddings: Embeddings, seed: int) -> None:
        self.name = name
        self.seed = seed
        self.labels = table["label"].to_numpy(np.int64, copy=True)
        self.splits = table["split"].to_numpy(str)
        self.is_paired = bool(table["sentence2"].notna().all())
        features = embeddings.of(table["sentence1"])
        if self.is_paired:
            second = embeddings.of(table["sentence2"])
            features = np.hstack([np.abs(features - second), features * second])
        found = np.unique(self.labels[self.splits != "test"])
        if len(found) < _BINARY or not np.array_equal(found, np.arange(len(found))):
            raise InputError(
                f"{name} has the labels {', '.join(map(str, found[:5]))} to train on.",
                "give it two or more classes, numbered from 0.",
            )
        self.samples = Samples(features, self.labels, max(len(found), int(self.labels.max()) + 1))

    def scores(self) -> list[Score]:
        """What the protocol of the task's splits measures."""
        splits = frozenset(self.splits.tolist())
        if splits not in _PROTOCOLS:
            raise InputError(
                f"{self.name} has the splits {', '.join(sorted(splits))}.",
                "give it all, train and test, or train, dev and test.",
            )
        split = "all" if "all" in splits else "test"
        return [
            Score("transfer", self.name, split, measure, value, len(self.rows(split)))
            for measure, value in _PROTOCOLS[splits](self).items()
        ]

    def rows(self, split: str) -> Rows:
        return np.flatnonzero(self.splits == split)

    def folds(self, rows: Rows, seed: int) -> list[tuple[Rows, Rows]]:
        """Stratified train and test rows of each fold."""
        labels = self.labels[rows]
        fewest = int(np.unique(labels, return_counts=True)[1].min())
        if fewest < FOLDS or fewest == len(labels):
            raise InputError(
                f"{self.name}: {FOLDS} folds need two classes and {FOLDS} samples of each; "
                f"the smallest class has {fewest}.",
                "check the task's file.",
            )
        splitter = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
        return [(rows[train], rows[test]) for train, test in splitter.split(labels, labels)]

    def fit_grid(self, sets: Sequence[tuple[Rows, Rows]]) -> list[Fitted]:
        """Fit every penalty on every pair of training and held-out rows."""
        rngs = (np.random.RandomState(self.seed) for _ in sets)  # every fit starts from the seed
        fits = [Fit(*rows, PENALTIES, rng) for rows, rng in zip(sets, rngs, strict=True)]
        return fit_all(self.samples, fits, self.seed)

    def refit(self, sets: Sequence[tuple[Rows, float]]) -> list[Fitted]:
        """Fit on all rows of each set but a random 5 %, which stops the fit, with its penalty."""
        fits = []
        for rows, penalty in sets:
            rng = np.random.RandomState(self.seed)
            order = rng.permutation(len(rows))
            held_out = max(1, int(_HELD_OUT * len(rows)))
            fits.append(Fit(rows[order[held_out:]], rows[order[:held_out]], (penalty,), rng))
        return fit_all(self.samples, fits, self.seed)

    def accuracy(self, predicted: Rows, rows: Rows) -> float:
        return _percent((predicted == self.labels[rows]).mean())

    def test(self, fitted: Fitted, dev_accuracy: float, choice: int = 0) -> dict[str, float]:
        """The measures on the test split of one of the models of a fit."""
        rows = self.rows("test")
        predicted = self.samples.predict(fitted.weights[choice], rows)
        found = {"accuracy": self.accuracy(predicted, rows), "dev_accuracy": dev_accuracy}
        if self.is_paired and self.samples.classes == _BINARY:
            found["f1"] = _percent(f1_score(self.labels[rows], predicted))
        return found


def _nested(task: _Task) -> dict[str, float]:
    """For each outer fold an inner cross-validation chooses l2 on the other nine tenths."""
    outer = task.folds(task.rows("all"), _OUTER_SEED)
    fitted = task.fit_grid([fold for train, _ in outer for fold in task.folds(train, _OUTER_SEED)])
    chosen = [_choose(fitted[start : start + FOLDS]) for start in range(0, len(fitted), FOLDS)]
    again = task.refit([(train, best[0]) for (train, _), best in zip(outer, chosen, strict=True)])
    tested = [
        task.accuracy(task.samples.predict(one.weights[0], rows), rows)
        for one, (_, rows) in zip(again, outer, strict=True)
    ]
    dev = [accuracy for _, accuracy in chosen]
    means = {"accuracy": np.mean(tested), "dev_accuracy": np.mean(dev)}
    return {measure: round(float(mean), 2) for measure, mean in means.items()}


def _cross_validated(task: _Task) -> dict[str, float]:
    """One cross-validation on train chooses l2; its mean is the (optimistic) dev accuracy."""
    train = task.rows("train")
    penalty, dev_accuracy = _choose(task.fit_grid(task.folds(train, task.seed)))
    return task.test(task.refit([(train, penalty)])[0], dev_accuracy)


def _with_dev(task: _Task) -> dict[str, float]:
    """The dev split stops every fit and chooses l2."""
    fitted = task.fit_grid([(task.rows("train"), task.rows("dev"))])
    penalty, dev_accuracy = _choose(fitted)
    return task.test(fitted[0], dev_accuracy, PENALTIES.index(penalty))


_PROTOCOLS: dict[frozenset[str], Callable[[_Task], dict[str, float]]] = {
    frozenset({"all"}): _nested,
    frozenset({"train", "test"}): _cross_validated,
    frozenset({"train", "dev", "test"}): _with_dev,
}


def _choose(fitted: Sequence[Fitted]) -> tuple[float, float]:
    """The penalty of the best mean accuracy (x100, two decimals) over folds, and that mean."""
    means = [_percent(mean) for mean in np.mean([one.accuracy for one in fitted], axis=0)]
    best = int(np.argmax(means))
    return PENALTIES[best], means[best]


def _percent(share: float | np.floating[Any]) -> float:
    return round(100 * float(share), 2)
