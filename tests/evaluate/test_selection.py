"""Selection on STS dev: the evaluator's own number, tokenised once."""

import pytest
import torch

from pipeline.core.errors import InputError, ModelError
from pipeline.download.records import read_sts
from pipeline.evaluate.correlation import Bootstrap
from pipeline.evaluate.embeddings import embed
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


def test_the_scores_are_what_the_evaluator_calls_dev(encoder, table):
    embeddings = embed(encoder, [table["sentence1"], table["sentence2"]], batch_size=16)
    scores = score_sts(embeddings, sts_tasks(table, "senteval"), Bootstrap(100, 0))
    dev = [s for s in scores if s.split == "dev" and s.aggregation in {"all", ""} and not s.unseen]
    names = {"spearman": "sts_dev", "alignment": "alignment", "uniformity": "uniformity"}
    expected = {names[s.measure]: s.value for s in dev if s.measure in names and not s.subset}
    found = DevScorer(table, batch_size=16)(encoder)
    assert found == pytest.approx(expected, abs=1e-3)
    assert found["alignment"] > 0 > found["uniformity"]


def test_the_sentences_are_not_tokenised_again_for_changed_weights(encoder, table, monkeypatch):
    scorer = DevScorer(table, batch_size=16)
    first = scorer(encoder)
    monkeypatch.setattr(encoder, "tokenize_all", None)
    assert scorer(encoder) == first
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(1.1)
    assert scorer(encoder) != first


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


def test_pairs_that_do_not_select_are_no_part_of_what_does(table):
    """Training keeps its checkpoints by them: another test pair must not cost one."""
    dev = dev_pairs(table)
    assert dev.to_csv() == dev_pairs(table.assign(score=table["score"].where(
        table["split"] == "dev", 0.0))).to_csv()  # fmt: skip
    assert dev.to_csv() != dev_pairs(table.assign(score=0.0)).to_csv()
    assert dev_pairs(dev).equals(dev)
