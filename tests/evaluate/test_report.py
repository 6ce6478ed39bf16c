"""A report says what was measured, reads back, and is refused beside other measurements."""

import json
from dataclasses import replace

import pandas as pd
import pytest

from pipeline.core.errors import InputError, MissingArtifactError, StaleArtifactError
from pipeline.evaluate.report import (
    EVALUATOR,
    System,
    describe,
    headline,
    read_report,
    require_same_ground,
    write_report,
)
from pipeline.evaluate.score import AVERAGE, Score
from pipeline.evaluate.suite import Suite


def sts_score(task: str, value: float | None, split: str = "test", **about) -> Score:
    return Score("sts", task, split, "spearman", value, 50, **{"aggregation": "all", **about})


STS = [
    sts_score("STS12", 41.123456, low=30.0, high=50.0),
    sts_score("STS12", 57.0, aggregation="mean"),
    sts_score("STS12", 45.0, aggregation="", subset="MSRpar"),
    sts_score("STS12", 40.0, unseen=True),
    Score("sts", "STS12", "test", "pearson", 44.0, 50, aggregation="all"),
    Score("sts", "STS12", "test", "alignment", 0.2, 50),
    sts_score("STS-B", 60.0, split="dev"),
    replace(sts_score(AVERAGE, 41.123456), count=50),
    replace(sts_score(AVERAGE, 40.0, unseen=True), count=30),
]
TRANSFER = [
    Score("transfer", "MRPC", "test", "accuracy", 75.65, 1725),
    Score("transfer", "MRPC", "test", "dev_accuracy", 76.47, 1725),
    Score("transfer", "MRPC", "test", "f1", 82.97, 1725),
    Score("transfer", AVERAGE, "test", "accuracy", 75.65, 1725),
]
RETRIEVAL = [
    Score("retrieval", direction, "test", measure, 20.0, 66)
    for direction in ("text_to_image", "image_to_text")
    for measure in ("recall@1", "recall@5", "recall@10", "median_rank")
]
SCORES = [*STS, *TRANSFER, *RETRIEVAL]
STS_HEADLINE = {"STS12": 41.1235, "STS-B-dev": 60.0, "avg": 41.1235, "avg_unseen": 40.0}
RETRIEVAL_HEADLINE = {"recall@1": 20.0, "recall@5": 20.0, "recall@10": 20.0, "median_rank": 20.0}


@pytest.fixture
def suite(default_params) -> Suite:
    data = {"training_text": "a", "sts": "b", "transfer": "c", "retrieval": "d"}
    return Suite(None, None, None, frozenset(), data, default_params.evaluate)


@pytest.fixture
def system(suite) -> System:
    return System("student", describe(suite, "cpu", model="data/models/0", seed=3), SCORES)


def test_the_headline_is_nested_by_part_task_and_direction():
    assert headline(SCORES) == {
        "sts": {**STS_HEADLINE, "pairs": 50, "pairs_unseen": 30},
        "transfer": {"MRPC": 75.65, "avg": 75.65},
        "retrieval": {"text_to_image": RETRIEVAL_HEADLINE, "image_to_text": RETRIEVAL_HEADLINE},
    }


def test_an_undefined_score_is_left_out_of_the_headline_and_its_count_stays():
    undefined = [replace(score, value=None) if score.unseen else score for score in STS]
    assert headline(undefined) == {
        "sts": {k: v for k, v in STS_HEADLINE.items() if k != "avg_unseen"}
        | {"pairs": 50, "pairs_unseen": 30}
    }


def test_a_report_reads_back_and_writing_it_again_changes_no_byte(tmp_path, system):
    """The headline numbers are those of the first system."""
    other = System("other", {**system.about, "seed": None}, [sts_score(AVERAGE, 1.0)])
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    write_report(first, [other, system])
    content = json.loads(first.read_text())
    assert content["sts"] == {"avg": 1.0, "pairs": 50}
    assert "transfer" not in content
    back, read = read_report(first)
    assert back == other
    assert (read.name, read.about) == ("student", system.about)
    assert list(read.scores) == [
        replace(score, value=41.1235) if score.value == SCORES[0].value else score
        for score in SCORES
    ]
    write_report(second, [back, read])
    assert first.read_bytes() == second.read_bytes()
    assert first.with_suffix(".csv").read_bytes() == second.with_suffix(".csv").read_bytes()


def test_a_report_that_is_not_there_is_named(tmp_path):
    with pytest.raises(MissingArtifactError, match=r"r\.json does not exist"):
        read_report(tmp_path / "r.json")


SYSTEM = {"name": "x", "about": {"evaluator": 3, "data": {}, "settings": {}}, "scores": []}


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "\x00", '{"systems": [{"na'),
        [SYSTEM],
        *({}, {"systems": 3}, {"systems": ["student"]}),
        {"systems": [{key: SYSTEM[key] for key in ("about", "scores")}]},
        {"systems": [{key: SYSTEM[key] for key in ("name", "scores")}]},
        *({"systems": [SYSTEM | {"about": about}]} for about in ([], {"evaluator": 3, "data": {}})),
        {"systems": [SYSTEM | {"scores": [{"spearman": 3}]}]},
        {"systems": [SYSTEM | {"scores": [{"part": "x", "task": "y", "split": "test"}]}]},
    ],
)
def test_what_is_not_a_report_is_refused_by_name(tmp_path, content):
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(InputError, match=r"r\.json (is not|cannot be read)"):
        read_report(tmp_path / "r.json")
    (tmp_path / "r.json").write_text(json.dumps({"systems": [SYSTEM]}))
    assert read_report(tmp_path / "r.json")[0].name == "x"


def test_the_csv_has_one_row_a_headline_number_of_every_system(tmp_path, system):
    write_report(tmp_path / "r.json", [system, System("other", system.about, TRANSFER)])
    table = pd.read_csv(tmp_path / "r.csv")
    measured = len(STS_HEADLINE) + 2 + 2 * len(RETRIEVAL_HEADLINE)
    assert table["system"].value_counts().to_dict() == {"student": measured, "other": 2}
    assert not table.duplicated(["system", "part", "task", "measure"]).any()
    sts = table[(table["system"] == "student") & (table["part"] == "sts")]
    assert dict(zip(sts["task"], sts["score"], strict=True)) == STS_HEADLINE
    assert tuple(sts.iloc[0][["low", "high", "count"]]) == (30.0, 50.0, 50)


def test_a_system_of_the_same_ground_or_of_fewer_parts_is_accepted(tmp_path, suite, system):
    for data in (system.about["data"], {"training_text": "a", "sts": "b"}):
        require_same_ground(suite, replace(system, about={**system.about, "data": data}), tmp_path)


@pytest.mark.parametrize(
    ("block", "key", "value"),
    [
        ("settings", "seed", 7),
        ("settings", "convention", "mteb"),
        ("settings", "resamples", 100),
        *(("data", part, "z") for part in ("sts", "transfer", "retrieval", "training_text")),
        (None, "evaluator", EVALUATOR - 1),
    ],
)
def test_another_ground_is_refused_by_name(tmp_path, suite, system, block, key, value):
    changed = {key: value} if block is None else {block: {**system.about[block], key: value}}
    other = replace(system, about={**system.about, **changed})
    with pytest.raises(StaleArtifactError, match=f"student was measured with a different {key}"):
        require_same_ground(suite, other, tmp_path / "r.json")
