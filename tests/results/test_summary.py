"""The summary over seeds: every number again from the reports, every refusal by its words."""

import json
import statistics
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from pipeline.core.errors import InputError
from pipeline.results.compare import compare
from pipeline.results.scores import COLUMNS, read_configuration, read_summary
from tests.conftest import assert_clear_error, invoke, write_params

STS = {0: 58.1, 1: 59.0, 2: 58.4}
ACCURACY = {0: 80.0, 1: 81.5, 2: 80.25}
HEAD = "system,part,task,measure,score,low,high,count"


def report(place: int, **changes: object) -> dict:
    about = {"seed": place, "evaluator": 2, "data": {"sts": "a"}, "settings": {"seed": 1111}}
    return {
        "sts": {"STS12": STS[place] - 10, "avg": STS[place], "pairs": 9},
        "transfer": {"MR": ACCURACY[place] + 1, "avg": ACCURACY[place]},
        "retrieval": {"text_to_image": {"recall@1": 20.5 + place, "median_rank": 6.0}},
        "systems": [
            {"name": "mine", "about": about | changes, "scores": []},
            {"name": "teacher", "about": {}, "scores": []},
        ],
    }


def write(seed: int, content: dict | None = None, **train: float) -> None:
    path = Path(f"reports/evaluate/{seed}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content or report(seed)))
    rows = [
        f"mine,sts,avg,spearman,{STS[seed]},{STS[seed] - 1},{STS[seed] + 1},9",
        f"mine,transfer,avg,accuracy,{ACCURACY[seed]},,,90",
        "teacher,sts,avg,spearman,66.0,65.0,67.0,9",
    ]
    path.with_suffix(".csv").write_text("\n".join([HEAD, *rows]) + "\n")
    metrics = Path(f"reports/train/{seed}/metrics.json")
    metrics.parent.mkdir(parents=True, exist_ok=True)
    metrics.write_text(json.dumps({"dev_best": 60.0 + seed, "steps": 5} | train))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Three seeds of a configuration, as the current folder."""
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, {"train": {"seeds": [0, 1, 2]}})
    for seed in STS:
        write(seed)
    return tmp_path


def summarised(*arguments: str) -> dict:
    result = invoke("summary", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(Path("reports/summary.json").read_text())


def test_metrics_and_scores_are_means_with_spread_and_interval(folder):
    content = summarised()
    values = list(STS.values())
    mean, sd = statistics.mean(values), statistics.stdev(values)
    assert content["seeds"] == 3
    assert content["sts"] == pytest.approx({"avg": mean, "avg_sd": sd}, abs=5e-5)
    accuracies = list(ACCURACY.values())
    assert content["transfer"]["avg_sd"] == pytest.approx(statistics.stdev(accuracies), abs=5e-5)
    assert content["retrieval"] == {"text_to_image": {"recall@1": 21.5, "recall@1_sd": 1.0}}
    assert content["train"] == {"dev_best": 61.0, "dev_best_sd": 1.0}
    scores = {score.pop("score"): score for score in content["scores"]}
    assert list(scores) == [
        "sts.STS12",
        "sts.avg",
        "transfer.MR",
        "transfer.avg",
        "retrieval.text_to_image.recall@1",
        "retrieval.text_to_image.median_rank",
    ]
    low, high = stats.t.interval(0.95, 2, mean, stats.sem(values))
    expected = {"n": 3, "mean": mean, "sd": sd, "low": low, "high": high}
    assert scores["sts.avg"] == pytest.approx(expected, abs=5e-5)
    rank = {"n": 3, "mean": 6, "sd": 0, "low": None, "high": None}
    assert scores["retrieval.text_to_image.median_rank"] == rank


def test_one_seed_has_no_spread_and_keeps_its_bootstrap_interval(folder):
    write_params(folder, {"train": {"seeds": [1]}})
    content = summarised()
    assert content["sts"] == {"avg": 59.0}
    assert content["train"] == {"dev_best": 61.0}
    table = pd.read_csv("reports/scores.csv")
    of_seed = table["seed"] == 1
    for student in (table.iloc[0], table[of_seed].iloc[0]):
        assert (student["system"], student["value"]) == ("student", 59.0)
        assert (student["low"], student["high"]) == (58.0, 60.0)


def test_the_table_has_the_means_the_baselines_and_every_seed(folder):
    summarised()
    text = Path("reports/scores.csv").read_text()
    assert "workspace,,teacher,sts,avg,spearman,66.0,65.0,67.0,9\n" in text
    assert "workspace,2,student,sts,avg,spearman,58.4,57.4,59.4,9\n" in text
    table = pd.read_csv("reports/scores.csv")
    assert list(table) == COLUMNS
    values = list(STS.values())
    low, high = stats.t.interval(0.95, 2, statistics.mean(values), stats.sem(values))
    assert list(table.loc[0, ["value", "low", "high"]]) == pytest.approx(
        [statistics.mean(values), low, high], abs=5e-5
    )
    over_all = table[table["seed"].isna()]
    assert list(over_all["system"]) == ["student", "student", "teacher"]
    assert list(over_all["count"]) == [9, 90, 9]
    sts = table[table["seed"].notna() & (table["part"] == "sts")]
    assert list(zip(sts["seed"], sts["value"], strict=True)) == list(STS.items())


def test_the_summary_reads_back_as_the_reports(folder):
    content = summarised()
    back = read_summary(json.dumps(content), "x")
    direct = read_configuration("reports/evaluate")
    assert {s.score: s for s in compare(back)} == {s.score: s for s in compare(direct)}
    assert [r.seed for r in back.reports] == [0, 1, 2]
    assert [r.measured_with for r in back.reports] == [r.measured_with for r in direct.reports]
    assert content["reports"][2]["train"]["steps"] == 5


def test_the_table_is_on_stderr(folder):
    result = invoke("summary")
    assert result.stdout == ""
    row = next(line for line in result.stderr.splitlines() if "sts.avg" in line)
    assert row.split()[1:3] == ["58.50", "0.46"]


def test_a_missing_metric_of_training_is_left_out(folder):
    write(1, masked_share=0.25)
    assert "masked_share" not in summarised()["train"]
    for seed in STS:
        write(seed, masked_share=0.25 * seed)
    assert summarised()["train"]["masked_share"] == 0.25


def test_a_missing_file(folder):
    for path, stage in (
        ("reports/evaluate/2.csv", "evaluate"),
        ("reports/evaluate/1.json", "evaluate"),
        ("reports/train/0/metrics.json", "train"),
    ):
        Path(path).unlink()
        assert_clear_error(invoke("summary"), path, f"dvc repro {stage}")
        write(int(Path(path).stem) if stage == "evaluate" else 0)
    assert not Path("reports/summary.json").exists()


@pytest.mark.parametrize(
    ("path", "text", "words"),
    [
        ("reports/evaluate/1.json", "{", "cannot be read as JSON"),
        ("reports/train/1/metrics.json", "[1]", "not a JSON object"),
        ("reports/evaluate/1.csv", "", "cannot be read"),
        ("reports/evaluate/1.csv", "a,b\n1,2\n", "lacks the columns system, part"),
    ],
)
def test_a_broken_file(folder, path, text, words):
    Path(path).write_text(text)
    assert_clear_error(invoke("summary"), path, words)


@pytest.mark.parametrize(
    ("seed", "change", "words"),
    [
        (1, {"seed": 2}, "seed 2, not 1"),
        (2, {"evaluator": 3}, "evaluator differs"),
        (2, {"data": {"sts": "b"}}, "data.sts differs"),
    ],
)
def test_the_report_of_another_seed_or_measure(folder, seed, change, words):
    write(seed, report(seed, **change))
    assert_clear_error(invoke("summary"), f"reports/evaluate/{seed}.json", words)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"reports": [{"seed": 0}]}', '{"reports": []}'])
def test_text_that_is_no_summary(text):
    with pytest.raises(InputError, match="the summary of x"):
        read_summary(text, "x")
