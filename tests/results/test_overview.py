"""The summary that `make repro` ends with: from any part of a run, in 80 columns."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from pipeline.core.times import write_times
from tests.conftest import assert_clear_error, invoke, write_params

HEAD = "system,part,task,measure,score,low,high,count"
SCORES = "configuration,seed,system,part,task,measure,value,low,high,count"
REPORTS = Path("reports")
ONCE = ["download", "features", "baselines", "summary", "index"]


def rows(system: str, base: float, interval: str = ",") -> list[str]:
    return [
        f"{system},sts,SCENES,spearman,{base + 9},,,9",
        f"{system},sts,avg,spearman,{base},{interval},9",
        f"{system},transfer,avg,accuracy,{base + 1},,,9",
        *(
            f"{system},retrieval,text_to_image,recall@{k},{base + k + 1},,,9"
            for k in (1, 5)
            if system != "untrained"
        ),
    ]


def write(name: str, text: str = "{}", seconds: float | None = 2.0) -> None:
    path = REPORTS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    if seconds is not None:
        write_times(REPORTS, path, seconds, {})


def write_scores(lines: list[str], *seeds: int) -> None:
    """The table of a summary: what is over all seeds, and a line a seed."""
    of_seeds = [f"workspace,{seed},student,sts,avg,spearman,{49 + seed},,,9" for seed in seeds]
    over_all = [f"workspace,,{line}" for line in lines]
    (REPORTS / "scores.csv").write_text("\n".join([SCORES, *of_seeds, *over_all]) + "\n")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Everything ran, with two seeds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    write_params(tmp_path, {"train": {"seeds": [0, 1]}, "loss": {"margin": 0.15}})
    for stage in ONCE:
        write(f"{stage}.json")
    for seed in (0, 1):
        write(f"train/{seed}/metrics.json", json.dumps({"seed": seed}), 100.0 + seed)
        write(f"evaluate/{seed}.json", json.dumps({"seed": seed}))
    write_scores(rows("student", 50.0, "48.5,51.5"), 0, 1)
    baselines = [HEAD, *rows("untrained", 10.0), *rows("teacher", 60.0)]
    (REPORTS / "baselines.csv").write_text("\n".join(baselines) + "\n")
    return tmp_path


def shown(*arguments: str) -> str:
    result = invoke("results", *arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


def line_of(name: str) -> list[str]:
    return next(line for line in shown().splitlines() if line.startswith(name)).split()


def read() -> dict:
    return json.loads(shown("--json"))


def test_the_student_stands_beside_the_baselines(folder):
    assert line_of("STS,")[3:] == ["10.00", "50.00", "60.00", "48.50", "to", "51.50"]
    assert line_of("transfer,")[3:] == ["11.00", "51.00", "61.00", "-"]
    assert line_of("text to image,")[5:] == ["-", "52.00", "62.00", "-"]  # recall@1, not @5
    assert line_of("image to text,")[5:] == ["-", "-", "-", "-"]
    assert "means over seeds 0, 1" in shown()


def test_every_stage_says_how_long_it_took(folder):
    assert line_of("download") == ["download", "2.0", "s"]
    assert line_of("train") == ["train", "3", "min", "21", "s"]
    assert line_of("evaluate") == ["evaluate", "4.0", "s"]
    assert read()["stages"]["train"] == {"runs": 2, "made": 2, "timed": 2, "seconds": 201.0}


def test_a_result_of_another_run_has_no_time(folder):
    """As where DVC takes it from the run cache, and the times beside it are of another margin."""
    write("train/1/metrics.json", '{"margin": 0.2}', None)
    write("index.json", '{"margin": 0.2}', None)
    restored = "not run here: from a cache or from git"
    assert " ".join(line_of("train")) == f"train 1 min 40 s 1 of 2 {restored}"
    assert " ".join(line_of("index")) == f"index - {restored}"


def test_the_three_commands_are_the_next_in_eighty_columns(folder):
    lines = shown().splitlines()
    assert [line.split("#")[0].strip() for line in lines if line[:2] == "  "][-4:] == [
        'python -m stages.search "a green square above a yellow circle" --images',
        "dvc exp run -S loss.margin=0.2",  # another one than that of params.yaml
        "dvc plots show",
        str(folder / "dvc_plots/index.html"),
    ]
    assert max(map(len, lines[:-1])) <= 80


def test_an_environment_that_is_not_active_is_named(folder, monkeypatch):
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/activate").touch()
    monkeypatch.setattr("sys.prefix", str(folder / ".venv"))
    assert "Next, after `source .venv/bin/activate`:" in shown()
    monkeypatch.setenv("VIRTUAL_ENV", str(folder / ".venv"))
    assert "Next:" in shown()


@pytest.mark.parametrize("ran", [0, 2, 3, 4, 6])
def test_a_part_of_a_run_says_what_is_missing(folder, ran):
    """Whatever has not run yet, from the last stage to all of them."""
    order = [
        ["download.json"], ["features.json"], ["train"], ["baselines.json", "baselines.csv"],
        ["evaluate"], ["summary.json", "scores.csv"], ["index.json"],
    ]  # fmt: skip
    stages = ["download", "features", "train", "baselines", "evaluate", "summary", "index"]
    for names in order[ran:]:
        for name in names:
            path = REPORTS / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for stage in stages[:ran]:
        assert "not" not in line_of(stage)
    for stage in stages[ran:]:
        assert line_of(stage) == [stage, "-", "not", "run", "yet"]
    missing = ["untrained, teacher"] * (ran < 4) + ["student"] * (ran < 6)
    systems = {0: "", 1: "student", 2: "untrained, student, teacher"}[len(missing)]
    assert (f"No scores yet of {systems}: run `dvc repro`." in shown()) == bool(missing)


def test_a_seed_that_did_not_run_yet(folder):
    shutil.rmtree(REPORTS / "train/1")
    (REPORTS / "evaluate/1.json").unlink()
    write_scores(rows("student", 50.0), 0)
    assert " ".join(line_of("train")) == "train 1 min 40 s 1 of 2 to run"
    assert "Scores are of seed 0; params.yaml names 0, 1: run `dvc repro`." in shown()


def test_undefined_scores_are_no_numbers_and_the_summary_wins_over_other_baselines(folder):
    write_scores(["student,sts,avg,spearman,,,,9", *rows("teacher", 70.0)])
    assert line_of("STS,")[3:] == ["10.00", "-", "70.00", "-"]
    assert read()["scores"]["STS, Spearman x100"] == {"untrained": 10.0, "teacher": 70.0}


@pytest.mark.parametrize(
    ("name", "text", "fix"),
    [
        ("scores.csv", "a,b\n1,2\n", "dvc repro -f summary"),
        ("baselines.csv", "", "dvc repro -f baselines"),
    ],
)
def test_a_broken_file(folder, name, text, fix):
    (REPORTS / name).write_text(text)
    assert_clear_error(invoke("results"), f"reports/{name}", fix)


def test_a_real_run(in_tiny_run):
    found = read()
    table = pd.read_csv("reports/scores.csv").set_index(["system", "task"])
    name = "STS, Spearman x100"
    assert found["scores"][name]["student"] == table.loc[("student", "avg"), "value"].iloc[0]
    assert found["seeds"] == [0]
    assert set(found["scores"][name]) == {"untrained", "student", "teacher"}
    assert all(one["timed"] == one["runs"] == 1 for one in found["stages"].values())
    assert found["missing"] == []
    assert "not run" not in shown()
