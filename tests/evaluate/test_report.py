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
    plot_table,
    read_report,
    report,
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


def test_the_headline_has_only_the_parts_that_were_measured():
    assert headline(STS).keys() == {"sts"}
    assert headline(TRANSFER).keys() == {"transfer"}


def test_an_undefined_score_is_left_out_of_the_headline_and_its_count_stays():
    undefined = [replace(score, value=None) if score.unseen else score for score in STS]
    numbers = headline(undefined)["sts"]
    assert "avg_unseen" not in numbers
    assert numbers["pairs_unseen"] == 30
    assert None not in numbers.values()


def test_the_headline_numbers_of_a_report_are_those_of_its_first_system(system):
    other = System("other", system.about, [sts_score(AVERAGE, 1.0)])
    content = report([other, system])
    assert content["sts"] == {"avg": 1.0, "pairs": 50}
    assert [one["name"] for one in content["systems"]] == ["other", "student"]
    assert "transfer" not in content


def test_a_report_reads_back_with_every_system_fact_and_score(tmp_path, system):
    other = System("other", {**system.about, "seed": None}, [sts_score(AVERAGE, None)])
    write_report(tmp_path / "r.json", [system, other])
    first, second = read_report(tmp_path / "r.json")
    assert second == other
    rounded = replace(SCORES[0], value=41.1235)
    assert list(first.scores) == [
        replace(score, value=41.1235) if score.value == SCORES[0].value else score
        for score in SCORES
    ]
    assert (first.name, first.about, first.scores[0]) == ("student", system.about, rounded)


def test_writing_what_was_read_changes_no_byte(tmp_path, system):
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    write_report(first, [system])
    write_report(second, read_report(first))
    assert first.read_bytes() == second.read_bytes()
    assert first.with_suffix(".csv").read_bytes() == second.with_suffix(".csv").read_bytes()


def test_a_report_that_is_not_there_is_named(tmp_path):
    with pytest.raises(MissingArtifactError, match=r"r\.json does not exist"):
        read_report(tmp_path / "r.json")


def without(content: dict, key: str) -> dict:
    return {name: value for name, value in content.items() if name != key}


SPOILED = {
    "no systems": lambda content: without(content, "systems"),
    "a list": lambda content: [content],
    "systems are a number": lambda content: {"systems": 3},
    "a system is a text": lambda content: {"systems": ["student"]},
    "no name": lambda content: {"systems": [without(content["systems"][0], "name")]},
    "no facts": lambda content: {"systems": [without(content["systems"][0], "about")]},
    "facts are a list": lambda content: {"systems": [{**content["systems"][0], "about": []}]},
    "no settings": lambda content: {
        "systems": [
            {**content["systems"][0], "about": without(content["systems"][0]["about"], "settings")}
        ]
    },
    "a score of unknown fields": lambda content: {
        "systems": [{**content["systems"][0], "scores": [{"spearman": 3}]}]
    },
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED.keys())
def test_json_that_is_not_a_report_is_refused_by_name(tmp_path, system, spoil):
    content = json.loads(json.dumps(report([system])))
    (tmp_path / "r.json").write_text(json.dumps(spoil(content)))
    with pytest.raises(InputError, match=r"r\.json is not an evaluation report") as error:
        read_report(tmp_path / "r.json")
    assert "stages.evaluate" in error.value.fix


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b'{"systems": [{"na'])
def test_a_damaged_file_is_refused_by_name(tmp_path, content):
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(InputError, match=r"r\.json is not an evaluation report"):
        read_report(tmp_path / "r.json")


def test_the_plot_table_has_one_row_a_headline_number_of_every_system(tmp_path, system):
    other = System("other", system.about, TRANSFER)
    table = plot_table([system, other])
    measured = len(STS_HEADLINE) + 2 + 2 * len(RETRIEVAL_HEADLINE)
    assert table["system"].value_counts().to_dict() == {"student": measured, "other": 2}
    assert not table.duplicated(["system", "part", "task", "measure"]).any()
    sts = table[(table["system"] == "student") & (table["part"] == "sts")]
    assert dict(zip(sts["task"], sts["score"], strict=True)) == STS_HEADLINE
    assert tuple(sts.iloc[0][["low", "high", "count"]]) == (30.0, 50.0, 50)
    write_report(tmp_path / "r.json", [system, other])
    assert len(pd.read_csv(tmp_path / "r.csv")) == len(table)


def test_a_system_of_the_same_ground_is_accepted(tmp_path, suite, system):
    require_same_ground(suite, system, tmp_path / "r.json")


def test_a_system_of_fewer_parts_is_accepted(tmp_path, suite, system):
    data = {"training_text": "a", "sts": "b"}
    require_same_ground(suite, replace(system, about={**system.about, "data": data}), tmp_path)


def spoil_ground(about: dict, block: str, key: str, value: object) -> dict:
    return {**about, block: {**about[block], key: value}}


@pytest.mark.parametrize(
    ("block", "key", "value"),
    [
        ("settings", "seed", 7),
        ("settings", "convention", "mteb"),
        ("settings", "resamples", 100),
        ("data", "sts", "z"),
        ("data", "transfer", "z"),
        ("data", "retrieval", "z"),
        ("data", "training_text", "z"),
    ],
)
def test_another_setting_or_other_data_is_refused_by_name(
    tmp_path, suite, system, block, key, value
):
    other = replace(system, about=spoil_ground(system.about, block, key, value))
    with pytest.raises(
        StaleArtifactError, match=f"r.json: student was measured with a different {key}"
    ):
        require_same_ground(suite, other, tmp_path / "r.json")


def test_another_version_of_the_evaluator_is_refused(tmp_path, suite, system):
    other = replace(system, about={**system.about, "evaluator": EVALUATOR - 1})
    with pytest.raises(StaleArtifactError, match="with a different evaluator"):
        require_same_ground(suite, other, tmp_path / "r.json")
