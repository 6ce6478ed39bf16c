"""Mutated files of every kind: the right result or one clear line, and never a dead process."""

import os
from pathlib import Path

import pytest

from tests.faults.fuzz.runner import account, run
from tests.faults.fuzz.targets import Target, make_targets
from tests.faults.ledger import record, times

SLOW = {
    "picture": 0.5,
    "captions .parquet": 0.5,
    "hub parquet": 0.3,
    "karpathy json": 0.3,
} | dict.fromkeys(
    ("images.parquet of pairs sealed again", "captions.parquet of pairs sealed again"), 0.5
)
"""Share of the usual number of cases."""


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    return make_targets(tmp_path_factory.mktemp("targets"))


NAMES = [
    "zip",
    "tar",
    "packed tar",
    "webdataset shard",
    "karpathy json",
    "wiki text",
    "senteval STS/STS12-en-test/STS.gs.MSRpar.txt",
    "senteval STS/STS12-en-test/STS.input.MSRpar.txt",
    "senteval SICK/SICK_trial.txt",
    "senteval TREC/train_5500.label",
    "senteval MRPC/msr_paraphrase_test.txt",
    "mteb pairs",
    "cased STS-B",
    "imported .npy",
    "imported .parquet",
    "captions .csv",
    "captions .tsv",
    "captions .json",
    "captions .coco.json",
    "captions .jsonl",
    "captions .parquet",
    "images.parquet of pairs sealed again",
    "captions.parquet of pairs sealed again",
    "hub parquet",
    "features.h5",
    "shard of features",
    "picture",
    "fetch notes",
    "upload",
]


def test_all_targets_are_run(targets):
    assert set(targets) == set(NAMES)


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", NAMES)
def test_mutated_bytes_end_in_a_result_or_in_one_line(targets, name, tmp_path):
    target = targets[name]
    share = 0.2 if name.startswith("senteval") else SLOW.get(name, 1.0)
    cases = range(int(share * times(40, 5_500)))
    kept = Path(os.environ.get("KDMCSE_FUZZ", tmp_path))
    kept.mkdir(parents=True, exist_ok=True)
    outcome = run(target, cases, kept)
    assert not outcome.findings, (kept, outcome.findings[:20])
    assert outcome.counts.total() == len(cases)
    for said, count in account(target, outcome).items():
        record(f"mutated {name}", target.where, said, count)
