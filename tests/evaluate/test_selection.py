"""Selection on STS dev: the evaluator's own number, tokenised once."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from pipeline.core.errors import InputError, ModelError
from pipeline.download.records import read_sts
from pipeline.evaluate.correlation import Bootstrap
from pipeline.evaluate.embeddings import embed
from pipeline.evaluate.geometry import alignment, mcse_batches, uniformity
from pipeline.evaluate.selection import DevScorer, dev_pairs
from pipeline.evaluate.sts import score_sts, sts_tasks
from pipeline.student.encoder import SentenceEncoder
from tests.conftest import ROOT


@pytest.fixture
def encoder() -> SentenceEncoder:
    return SentenceEncoder.load(ROOT / "data/demo/student", "mean")


@pytest.fixture(scope="module")
def table(tiny_run):
    return read_sts(tiny_run / "data/evaluation")


def test_the_score_is_spearman_of_the_dev_pairs(encoder, table):
    dev = table[table["split"] == "dev"]
    first, second = (encoder.encode(list(dev[f"sentence{n}"]), batch_size=9) for n in (1, 2))
    products = (first.astype(float) * second).sum(1)
    cosines = products / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    expected = 100 * spearmanr(cosines, dev["score"]).statistic
    found = DevScorer(table, batch_size=16)(encoder)["sts_dev"]
    assert found == pytest.approx(expected, abs=1e-3)


def test_it_is_what_the_evaluator_calls_dev(encoder, table):
    embeddings = embed(encoder, [table["sentence1"], table["sentence2"]], batch_size=16)
    scores = score_sts(embeddings, sts_tasks(table, "senteval"), Bootstrap(100, 0))
    dev = next(s.value for s in scores if s.split == "dev" and s.aggregation == "all")
    assert DevScorer(table, batch_size=16)(encoder)["sts_dev"] == pytest.approx(dev, abs=1e-3)


def test_sentences_are_tokenised_once(encoder, table, monkeypatch):
    calls = []
    tokenise = encoder.tokenize_all
    monkeypatch.setattr(encoder, "tokenize_all", lambda s: calls.append(len(s)) or tokenise(s))
    scorer = DevScorer(table, batch_size=16)
    first = scorer(encoder)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(1.1)
    assert scorer(encoder) != first
    dev = table[table["split"] == "dev"]
    assert calls == [len({*dev["sentence1"], *dev["sentence2"]})]


def test_only_selection_tasks_select(table):
    with pytest.raises(InputError, match="no dev pairs of STS-B or SCENES"):
        DevScorer(table.assign(task="STS12"), batch_size=16)
    with pytest.raises(InputError, match="no dev pairs"):
        DevScorer(table[table["split"] == "test"], batch_size=16)


def test_a_collapsed_student_selects_nothing(encoder, table):
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    with pytest.raises(ModelError, match="STS dev: all pairs have the same cosine"):
        DevScorer(table, batch_size=16)(encoder)


def test_alignment_and_uniformity_are_those_of_the_dev_pairs(table, encoder):
    dev = table[table["split"] == "dev"]
    first, second = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True)
        for rows in (
            encoder.encode(list(dev[column]), batch_size=16).astype(np.float64)
            for column in ("sentence1", "sentence2")
        )
    )
    found = DevScorer(table, batch_size=16)(encoder)
    batches = mcse_batches([np.arange(len(dev))])
    gold = dev["score"].to_numpy()
    assert found["alignment"] == pytest.approx(alignment(first, second, gold, batches), abs=1e-4)
    assert found["uniformity"] == pytest.approx(uniformity(first, second, batches), abs=1e-4)
    assert found["alignment"] > 0 > found["uniformity"]


def test_pairs_that_do_not_select_are_no_part_of_what_does(table):
    """Training keeps its checkpoints by them: another test pair must not cost one."""
    dev = dev_pairs(table)
    assert dev.to_csv() == dev_pairs(table.assign(score=table["score"].where(
        table["split"] == "dev", 0.0))).to_csv()  # fmt: skip
    assert dev.to_csv() != dev_pairs(table.assign(score=0.0)).to_csv()
    assert dev_pairs(dev).equals(dev)
