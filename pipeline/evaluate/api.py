"""Scores of any sentence encoder, for users of the library: tables in, tables out."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float32

from pipeline.core.errors import InputError, ModelError
from pipeline.download.records import read_sts, read_transfer
from pipeline.download.senteval import read_senteval
from pipeline.evaluate.correlation import Bootstrap
from pipeline.evaluate.embeddings import Embeddings, embed
from pipeline.evaluate.score import Score
from pipeline.evaluate.sts import score_sts, sts_tasks
from pipeline.evaluate.transfer import score_transfer
from pipeline.params.evaluate import Convention

_COLUMNS = ["task", "split", "measure", "value", "low", "high", "count"]


def evaluate_sts(
    encoder: Any,
    data: pd.DataFrame | str | Path,
    *,
    convention: Convention = "senteval",
    seed: int = 1111,
    resamples: int = 1000,
    batch_size: int = 128,
) -> pd.DataFrame:
    """Score sentence embeddings on semantic textual similarity.

    Args:
        encoder: what has `encode(texts, batch_size=)`, such as a `SentenceTransformer` or a
            `Student`; or a function from a list of texts to an array, one row a text.
        data: a table with sentence1, sentence2 and score (and task, subset and split, where there
            are several), SentEval's `senteval.tar`, or a folder with sts.parquet.
        convention: whose pairs of STS-B and SICK-R; see docs/evaluation.md.
        seed: of the bootstrap.
        resamples: bootstrap samples of an interval.
        batch_size: texts a forward pass.

    Returns:
        Spearman and Pearson correlations x100 of every task, the average over tasks last: task,
        split, measure, value, low and high (95 % interval), count (pairs).

    Raises:
        InputError: the data cannot be read, or a task has nothing to correlate.
        ModelError: the encoder gives no finite row a text, or the same one for all texts.
    """
    defaults = {"task": "STS", "subset": "", "split": "test"}
    table = _read(data, 0, read_sts, ["sentence1", "sentence2", "score"], defaults)
    tasks = sts_tasks(table, convention)
    embeddings = _embed(encoder, [task.pairs for task in tasks], batch_size)
    scores = score_sts(embeddings, tasks, Bootstrap(resamples, seed), seen=None)
    return _table(score for score in scores if score.aggregation == "all")


def evaluate_transfer(
    encoder: Any, data: pd.DataFrame | str | Path, *, seed: int = 1111, batch_size: int = 128
) -> pd.DataFrame:
    """Score sentence embeddings by logistic regression on them, in SentEval's protocol.

    Args:
        encoder: as in `evaluate_sts`.
        data: a table with sentence1 and label (and sentence2, task and split, where there are
            several), SentEval's `senteval.tar`, or a folder with transfer.parquet.
        seed: of initial weights, shuffles and folds.
        batch_size: texts a forward pass.

    Returns:
        Accuracies and F1 x100 of every task, the average over tasks last, in the columns of
        `evaluate_sts`; count is that of samples.

    Raises:
        InputError: the data cannot be read, or a task has other splits or labels than SentEval's.
        ModelError: the encoder gives no finite row a text.
    """
    defaults = {"task": "transfer", "split": "all", "sentence2": None}
    table = _read(data, 1, read_transfer, ["sentence1", "label"], defaults)
    return _table(score_transfer(_embed(encoder, [table], batch_size), table, seed=seed))


def _read(
    data: pd.DataFrame | str | Path,
    part: int,
    read_folder: Callable[[Path], pd.DataFrame],
    needed: Sequence[str],
    defaults: Mapping[str, str | None],
) -> pd.DataFrame:
    """The rows of a table, of a part of SentEval's archive, or of a folder."""
    if not isinstance(data, pd.DataFrame):
        path = Path(data)
        if not path.exists():
            raise InputError(f"{path} does not exist.", "name SentEval's senteval.tar or a folder.")
        return read_folder(path) if path.is_dir() else read_senteval(path)[part]
    if fault := next(_faults(data, needed), None):
        fix = f"give it the columns {', '.join(needed)}: text without nulls, and finite numbers."
        raise InputError(f"the table {fault}.", fix)
    return data.assign(**{name: value for name, value in defaults.items() if name not in data})


def _faults(table: pd.DataFrame, needed: Sequence[str]) -> Iterator[str]:
    """What is wrong with a table; the last column needed holds numbers, the others text."""
    if missing := [name for name in needed if name not in table]:
        yield f"has no {' and no '.join(missing)}"
    if table.empty:
        yield "has no rows"
    texts = needed[:-1]
    if "sentence2" in table and table["sentence2"].notna().any():
        texts = ["sentence1", "sentence2"]
    for name in texts:
        if not table[name].map(lambda value: isinstance(value, str)).all():
            yield f"has a {name} that is not text"
    yield from _number_faults(table[needed[-1]])


def _number_faults(column: pd.Series) -> Iterator[str]:
    if not pd.api.types.is_numeric_dtype(column):
        yield f"has a {column.name} that is not a number"
    elif not np.isfinite(column.to_numpy(np.float64, na_value=np.nan)).all():
        yield f"has a {column.name} that is not finite"
    elif column.name == "label" and (column % 1).any():
        yield "has a label that is not a whole number"


def _embed(encoder: Any, tables: Sequence[pd.DataFrame], batch_size: int) -> Embeddings:
    texts = [table[f"sentence{side}"] for table in tables for side in (1, 2)]
    return embed(_AnyEncoder(encoder), texts, batch_size=batch_size)


@dataclass(frozen=True)
class _AnyEncoder:
    """What users have as an `Encoder` of this room."""

    model: Any

    def encode(
        self,
        sentences: Sequence[str],
        *,
        batch_size: int,
        show_progress: bool = False,  # noqa: ARG002  # as the protocol has it
    ) -> Float32[np.ndarray, "sentences dim"]:
        texts = list(sentences)
        if hasattr(self.model, "encode"):
            found = self.model.encode(texts, batch_size=batch_size)
        else:
            found = self.model(texts)
        if hasattr(found, "detach"):  # a tensor, which may be on a GPU
            found = found.detach().float().cpu()
        vectors = np.asarray(found, dtype=np.float32)
        if vectors.shape[:-1] != (len(texts),) or not np.isfinite(vectors).all():
            raise ModelError(
                f"the encoder gave an array {vectors.shape} for {len(texts)} texts, or a value "
                "that is not finite.",
                "let it give one row of finite numbers a text.",
            )
        return vectors


def _table(scores: Iterable[Score]) -> pd.DataFrame:
    return pd.DataFrame(map(asdict, scores), columns=_COLUMNS)
