"""SentEval's evaluation written plainly: what the fast evaluator is timed and tested against.

One task after another in the order of its file, one batch of 128 after another, every sentence as
often as it stands there; one classifier after another, one step at a time, in torch's own modules.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.model_selection import StratifiedKFold
from torch import nn

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2)
EPOCHS, PATIENCE, MOST_ROUNDS = 4, 5, 51
YEARS = ("STS12", "STS13", "STS14", "STS15", "STS16")
Array = NDArray[Any]
Encode = Callable[[Sequence[str]], Array]
"""Embeds the sentences of one batch."""


def plain_encoder(path: str, pooling: str) -> Encode:
    """A transformers model with its tokenizer; a batch is padded to its longest sentence."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModel.from_pretrained(path, dtype=torch.float32).eval()

    @torch.no_grad()
    def encode(sentences: Sequence[str]) -> Array:
        batch = tokenizer(list(sentences), padding=True, truncation=True, return_tensors="pt")
        hidden = model(**batch).last_hidden_state
        if pooling == "cls":
            return hidden[:, 0].numpy()
        mask = batch["attention_mask"].unsqueeze(-1)
        return ((hidden * mask).sum(1) / mask.sum(1)).numpy()

    return encode


def encode_in_order(encode: Encode, sentences: Sequence[str]) -> Array:
    """Batches of 128 as they come."""
    starts = range(0, len(sentences), 128)
    return np.vstack([encode(sentences[start : start + 128]) for start in starts])


def plain_sts(encode: Encode, table: pd.DataFrame) -> dict[str, float]:
    """Spearman x100 of every task's test split, aggregation `all`."""
    test = table[table["split"] == "test"]
    return {
        str(task): _correlate(encode, list(_sts_sets(str(task), rows)))
        for task, rows in test.groupby("task", sort=False)
    }


def _sts_sets(task: str, rows: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """A year's sets one by one, sorted by length; other tasks whole, in file order."""
    if task not in YEARS:
        yield rows
        return
    for _, subset in rows.groupby("subset", sort=False):
        keys = [
            (len(row.sentence1.split()), len(row.sentence2.split()), row.score)
            for row in subset.itertuples()
        ]
        yield subset.iloc[sorted(range(len(keys)), key=keys.__getitem__)]


def _correlate(encode: Encode, sets: list[pd.DataFrame]) -> float:
    cosines = []
    for rows in sets:
        first, second = (encode_in_order(encode, list(rows[f"sentence{side}"])) for side in (1, 2))
        norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        cosines.append((first * second).sum(axis=1) / norms)
    gold = np.concatenate([rows["score"] for rows in sets])
    return 100 * float(spearmanr(np.concatenate(cosines), gold).statistic)


class PlainClassifier:
    """One linear layer, fitted as SentEval fits it; see `pipeline/evaluate/classifier.py`."""

    def __init__(self, dim: int, classes: int, penalty: float, seed: int) -> None:
        np.random.seed(seed)  # noqa: NPY002  # the reference draws from the global stream
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = nn.Linear(dim, classes)
        self.optimiser = torch.optim.Adam(self.model.parameters(), weight_decay=penalty)

    def fit(self, features: Array, labels: Array, held_out: tuple[Array, Array] | None) -> float:
        """Train, keep the best on the held-out samples (None: a random 5 %); its accuracy."""
        if held_out is None:
            order = np.random.permutation(len(features))  # noqa: NPY002
            cut = int(0.05 * len(features))
            held_out = features[order[:cut]], labels[order[:cut]]
            features, labels = features[order[cut:]], labels[order[cut:]]
        best, misses = -1.0, 0
        kept = self.model
        for _ in range(MOST_ROUNDS):
            for _ in range(EPOCHS):
                self._train_epoch(torch.from_numpy(features), torch.from_numpy(labels))
            accuracy = self.score(*held_out)
            if accuracy > best:
                best, kept = accuracy, copy.deepcopy(self.model)
            else:
                misses += 1
            if misses > PATIENCE:
                break
        self.model = kept
        return best

    def _train_epoch(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        order = torch.from_numpy(np.random.permutation(len(features)))  # noqa: NPY002
        for start in range(0, len(order), 64):
            rows = order[start : start + 64]
            loss = nn.functional.cross_entropy(self.model(features[rows]), labels[rows])
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()

    @torch.no_grad()
    def score(self, features: Array, labels: Array) -> float:
        """Accuracy, 0 to 1."""
        predicted = self.model(torch.from_numpy(features)).argmax(dim=1).numpy()
        return float((predicted == labels).mean())


class PlainTransfer:
    """The samples of one transfer task, in the protocol's order, and its three protocols.

    Args:
        encode: embeds one batch.
        table: the task's rows of transfer.parquet.
        seed: of the task.
    """

    def __init__(self, encode: Encode, table: pd.DataFrame, seed: int) -> None:
        self.seed = seed
        self.data = {
            split: self._load(encode, rows) for split, rows in table.groupby("split", sort=False)
        }
        self.classes = int(table["label"].max()) + 1

    @staticmethod
    def _load(encode: Encode, rows: pd.DataFrame) -> tuple[Array, Array]:
        pairs = bool(rows["sentence2"].notna().all())
        first = [text.split() for text in rows["sentence1"]]
        second = [text.split() for text in rows["sentence2"]] if pairs else [[]] * len(first)
        keys = [(len(a), len(b), y) for a, b, y in zip(first, second, rows["label"], strict=True)]
        rows = rows.iloc[sorted(range(len(keys)), key=keys.__getitem__)]
        u = encode_in_order(encode, list(rows["sentence1"]))
        labels = rows["label"].to_numpy(np.int64, copy=True)
        if not pairs:
            return u, labels
        v = encode_in_order(encode, list(rows["sentence2"]))
        return np.hstack([np.abs(u - v), u * v]), labels

    def classifier(self, penalty: float) -> PlainClassifier:
        """A fresh one."""
        dim = next(iter(self.data.values()))[0].shape[1]
        return PlainClassifier(dim, self.classes, penalty, self.seed)

    def run(self) -> tuple[float, float]:
        """Dev accuracy and accuracy x100, as SentEval rounds them."""
        if "all" in self.data:
            return self.nested(range(10))
        return self.with_dev() if "dev" in self.data else self.cross_validated()

    def nested(self, outer_folds: Sequence[int]) -> tuple[float, float]:
        """Nested cross-validation, over some of the outer folds."""
        features, labels = self.data["all"]
        dev, test = [], []
        folds = list(folds_of(1111).split(features, labels))
        for train, rows in (folds[number] for number in outer_folds):
            penalty, score = self.grid(features[train], labels[train], 1111)
            classifier = self.classifier(penalty)
            classifier.fit(features[train], labels[train], None)
            dev.append(score)
            test.append(round(100 * classifier.score(features[rows], labels[rows]), 2))
        return round(float(np.mean(dev)), 2), round(float(np.mean(test)), 2)

    def cross_validated(self) -> tuple[float, float]:
        """Cross-validation on train chooses the penalty; scored on test."""
        penalty, dev = self.grid(*self.data["train"], self.seed)
        classifier = self.classifier(penalty)
        classifier.fit(*self.data["train"], None)
        return dev, round(100 * classifier.score(*self.data["test"]), 2)

    def with_dev(self) -> tuple[float, float]:
        """The dev split chooses the penalty; the last fit repeats the best one."""
        scores = []
        for penalty in PENALTIES:
            accuracy = self.classifier(penalty).fit(*self.data["train"], self.data["dev"])
            scores.append(round(100 * accuracy, 2))
        classifier = self.classifier(PENALTIES[int(np.argmax(scores))])
        classifier.fit(*self.data["train"], self.data["dev"])
        return max(scores), round(100 * classifier.score(*self.data["test"]), 2)

    def grid(self, features: Array, labels: Array, folds_seed: int) -> tuple[float, float]:
        """The penalty of the best mean accuracy over ten folds, and that mean x100."""
        means = []
        for penalty in PENALTIES:
            accuracies = [
                self.fit_fold(penalty, features, labels, fold)
                for fold in folds_of(folds_seed).split(features, labels)
            ]
            means.append(round(100 * float(np.mean(accuracies)), 2))
        return PENALTIES[int(np.argmax(means))], max(means)

    def fit_fold(
        self, penalty: float, features: Array, labels: Array, fold: tuple[Array, Array]
    ) -> float:
        """The accuracy of one fit on the fold that stops it."""
        train, held_out = fold
        classifier = self.classifier(penalty)
        return classifier.fit(
            features[train], labels[train], (features[held_out], labels[held_out])
        )


def folds_of(seed: int) -> StratifiedKFold:
    """Ten stratified folds."""
    return StratifiedKFold(10, shuffle=True, random_state=seed)
