"""STS scores, recomputed pair by pair; and the figures of PROTOCOL on real data."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr, rankdata

from pipeline.errors import InputError, ModelError
from pipeline.evaluate.report import sts_metrics, sts_table
from pipeline.evaluate.sts import dev_pairs, normalise, pair_cosines, score_pairs, score_sts


class HashedEncoder:
    """A fixed random vector for every sentence; counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, sentences, *, batch_size, show_progress=False):
        self.asked += sentences
        return np.stack([self.vector(sentence) for sentence in sentences])

    @staticmethod
    def vector(sentence: str) -> np.ndarray:
        rng = np.random.default_rng(list(sentence.encode()))
        return rng.standard_normal(4).astype(np.float32)


def make_table(rng: np.random.Generator, pairs: int = 40) -> pd.DataFrame:
    words = [f"word {number}" for number in range(400)]
    rows = [
        (task, "sub", split, *rng.choice(words, 2), float(rng.integers(0, 6)))
        for task in ("STS12", "STS-B")
        for split in ("dev", "test")
        for _ in range(pairs)
    ]
    return pd.DataFrame(
        rows, columns=["task", "subset", "split", "sentence1", "sentence2", "score"]
    )


def reference(table: pd.DataFrame) -> float:
    cosines = []
    for row in table.itertuples():
        u, v = (HashedEncoder.vector(s).astype(float) for s in (row.sentence1, row.sentence2))
        cosines.append(sum(u * v) / (sum(u * u) * sum(v * v)) ** 0.5)
    return 100 * pearsonr(rankdata(cosines), rankdata(table["score"])).statistic


def test_scores_are_the_test_splits_rank_correlation():
    table = make_table(np.random.default_rng(0))
    scores = score_sts(HashedEncoder(), table, batch_size=3)
    assert [score.task for score in scores] == ["STS12", "STS-B"]
    for score in scores:
        test = table[(table["task"] == score.task) & (table["split"] == "test")]
        assert score.spearman == pytest.approx(reference(test), abs=1e-6)
        assert score.pairs == 40


def test_each_distinct_sentence_is_encoded_once():
    encoder = HashedEncoder()
    score_sts(encoder, make_table(np.random.default_rng(0)), batch_size=3)
    assert len(encoder.asked) == len(set(encoder.asked))


def test_unseen_pairs_are_those_without_a_training_sentence():
    table = make_table(np.random.default_rng(1), pairs=100)
    common = [f"word {number}" for number in range(40)]
    seen = frozenset(normalise(f"{word.title()} !") for word in common)
    scores = score_sts(HashedEncoder(), table, batch_size=9, seen=seen)
    for score in scores:
        test = table[(table["task"] == score.task) & (table["split"] == "test")]
        hit = test["sentence1"].isin(common) | test["sentence2"].isin(common)
        assert score.pairs_unseen == (~hit).sum() < score.pairs
        assert score.spearman_unseen == pytest.approx(reference(test[~hit]), abs=1e-6)


def test_metrics_average_tasks_and_count_pairs():
    scores = score_sts(HashedEncoder(), make_table(np.random.default_rng(2)), batch_size=8)
    metrics = sts_metrics(scores)
    assert metrics["avg"] == pytest.approx(np.mean([metrics["STS12"], metrics["STS-B"]]), abs=1e-3)
    assert metrics["pairs"] == metrics["pairs_unseen"] == 80
    assert list(sts_table(scores)["task"]) == ["STS12", "STS-B"]


def test_no_unseen_average_where_a_task_has_too_few_pairs():
    table = make_table(np.random.default_rng(2))
    seen = frozenset(f"word {number}" for number in range(400))
    metrics = sts_metrics(score_sts(HashedEncoder(), table, batch_size=8, seen=seen))
    assert "avg_unseen" not in metrics
    assert metrics["pairs_unseen"] == 0


def test_only_selection_tasks_select():
    table = make_table(np.random.default_rng(3))
    assert set(dev_pairs(table)["task"]) == {"STS-B"}
    with pytest.raises(InputError, match="no dev pairs"):
        dev_pairs(table[table["split"] == "test"])


class ConstantEncoder:
    def __init__(self, value: float) -> None:
        self.value = value

    def encode(self, sentences, *, batch_size, show_progress=False):
        return np.full((len(sentences), 3), self.value, np.float32)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_constant_embedding_has_no_correlation(value):
    with pytest.raises(ModelError, match="same cosine"):
        score_pairs(ConstantEncoder(value), make_table(np.random.default_rng(0)), batch_size=4)


def test_equal_gold_scores_have_no_correlation():
    table = make_table(np.random.default_rng(0)).assign(score=3.0)
    with pytest.raises(InputError, match="gold scores are equal"):
        score_pairs(HashedEncoder(), table, batch_size=4)


def test_zero_vectors_have_cosine_zero():
    table = make_table(np.random.default_rng(0))
    assert not pair_cosines(ConstantEncoder(0.0), table, batch_size=4).any()
