"""The results table: numbers again by scipy, order, marks, refusals."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pipeline.results.chart import difference_chart, sweep_chart
from pipeline.results.table import make_table, read_folder
from tests.conftest import assert_clear_error, invoke

BASE = np.array([58.1, 59.0, 58.4, 58.7])
GAIN = BASE + np.array([1.1, 1.2, 1.0, 1.15])
NOISE = BASE + np.array([0.6, -0.5, 0.3, -0.2])
PRIMARY = "sts.avg"
GRID = """
baseline: base
configurations:
  noise: {loss.margin: 0.1}
  base: {loss.margin: 0.2}
  gain: {loss.margin: 0.3}
"""


def write(name: str, values: object, *, retrieval: bool = True, seed: int | None = 0, **about):
    """One report a value, of the seeds from `seed` on."""
    for place, value in enumerate(values):
        at = None if seed is None else seed + place
        data = {"sts": "a"} | ({"retrieval": "b"} if retrieval else {})
        facts = {"seed": at, "evaluator": 2, "data": data} | about
        content = {
            "sts": {"STS12": value - 5, "avg": value, "avg_unseen": value - 0.5, "pairs": 3},
            "systems": [{"name": name, "about": facts}],
        }
        recalls = {"text_to_image": {"recall@1": 30.0 + place}}
        path = Path("runs", name, f"{at}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content | ({"retrieval": recalls} if retrieval else {})))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("grid.yaml").write_text(GRID)
    write("base", BASE)
    write("gain", GAIN)
    write("noise", NOISE, retrieval=False)
    write("untrained", [40.0], retrieval=False, seed=None)
    return tmp_path


def table(*arguments: str) -> dict:
    result = invoke("table", "grid.yaml", "--reports", "runs", "--json", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def rows(*arguments: str) -> dict[str, dict]:
    return {row["name"]: row for row in table(*arguments)["rows"]}


def markdown(*arguments: str) -> tuple[str, dict[str, list[str]]]:
    result = invoke("table", "grid.yaml", "--reports", "runs", *arguments)
    assert result.exit_code == 0, result.output
    caption, _, *lines = result.stdout.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return caption, {row[0]: row[1:] for row in cells}


def test_the_test_by_scipy(folder):
    found = rows()
    assert list(found) == ["untrained", "noise", "base", "gain"]  # outside the grid, its order
    p_values = {
        name: stats.ttest_rel(v, BASE).pvalue for name, v in (("gain", GAIN), ("noise", NOISE))
    }
    for name, values in (("gain", GAIN), ("noise", NOISE)):
        test, differences = found[name]["test"], values - BASE
        interval = stats.t.interval(0.95, 3, differences.mean(), stats.sem(differences))
        assert test["difference"]["mean"] == pytest.approx(differences.mean())
        assert test["difference"]["interval"] == pytest.approx(interval)
        assert test["p"] == pytest.approx(p_values[name])
    assert found["gain"]["test"]["p_adjusted"] == pytest.approx(2 * p_values["gain"])
    assert found["noise"]["test"]["p_adjusted"] == pytest.approx(p_values["noise"])
    assert found["base"]["test"] is None
    assert found["untrained"]["test"] is None


def test_noise_is_two_standard_errors(folder):
    """Four differences with the mean 1 and a standard error of spread / 2; or without a spread."""
    write("gain", BASE + 1)
    gain = rows()["gain"]
    assert (gain["test"]["p"], gain["verdict"]) == (None, None)
    for spread, verdict in ((0.95, "larger than noise"), (1.05, "within noise")):
        deviations = np.array([1, -1, 1, -1]) * spread * np.sqrt(3) / 2
        assert stats.sem(deviations) == pytest.approx(spread / 2)
        for sign in (1, -1):
            write("gain", BASE + sign * (1 + deviations))
            assert rows()["gain"]["verdict"] == verdict


def test_the_markdown(folder):
    caption, cells = markdown()
    for words in ("seeds 0, 1, 2, 3 (n = 4", "`base`", "standard deviation", "> 2 SE", "(n = 4)"):
        assert words in caption
    assert cells["configuration"][:4] == [
        "n",
        "sts.avg",
        "sts.avg_unseen",
        "retrieval.text_to_image.recall@1",
    ]
    spread = f"{GAIN.mean():.2f} ± {GAIN.std(ddof=1):.2f}"
    assert cells["gain"][:2] == ["4", spread]
    assert cells["gain"][-1] == "larger than noise"
    error = stats.sem(GAIN - BASE)
    assert cells["gain"][4] == "+1.11"
    assert cells["gain"][6] == f"{error:.2f}"
    assert cells["noise"][3] == "-"
    assert cells["noise"][-1] == "within noise"
    assert cells["base"][-6:] == ["-", "-", "-", "-", "-", "baseline"]
    assert cells["untrained"][:2] == ["1", "40.00"]
    assert cells["untrained"][-1] == "-"


def test_scores_are_chosen_by_name_and_pattern(folder):
    assert table("--score", "sts.*")["scores"] == ["sts.STS12", "sts.avg", "sts.avg_unseen"]
    chosen = table("--score", "sts.avg_unseen", "--score", "sts.*")
    assert chosen["scores"] == ["sts.avg_unseen", "sts.STS12", "sts.avg"]
    assert chosen["rows"][3]["test"]["score"] == "sts.avg_unseen"


def test_the_files(folder):
    printed = invoke("table", "grid.yaml", "--reports", "runs", "--out", "docs/a.b").stdout
    assert Path("docs/a.b.md").read_text() == printed
    numbers = pd.read_csv("docs/a.b.csv").set_index("configuration")
    assert list(numbers.index) == ["untrained", "noise", "base", "gain"]
    gain = numbers.loc["gain"]
    assert gain["sts.avg.sd"] == pytest.approx(GAIN.std(ddof=1), rel=1e-5)
    assert gain["se"] == pytest.approx(stats.sem(GAIN - BASE), rel=1e-5)
    assert gain["p"] == pytest.approx(stats.ttest_rel(GAIN, BASE).pvalue, rel=1e-5)
    assert (gain["n"], gain["verdict"]) == (4, "larger than noise")
    assert np.isnan(numbers.loc["untrained", "sts.avg.sd"])


def test_the_plot_has_equal_bytes_and_no_date(folder):
    for sweep in ("", "sweep: loss.margin\n"):
        Path("grid.yaml").write_text(sweep + GRID)
        images = []
        for name in ("one", "two"):
            markdown("--out", name)
            images.append(Path(f"{name}.svg").read_bytes())
        assert images[0] == images[1]
        assert images[0].startswith(b"<?xml")
        assert not re.search(rb"<dc:date>|20\d\d-\d\d-\d\d", images[0])


def drawn(figure) -> dict[str, tuple]:
    """By label: points, ends of the bars, colour and shape."""
    found = {}
    for container in figure.axes[0].containers:
        line, _, (bars,) = container
        ends = [tuple(np.array(segment).ravel()) for segment in bars.get_segments()]
        found[container.get_label()] = (
            line.get_xydata(),
            ends,
            line.get_color(),
            line.get_marker(),
        )
    return found


def tabulate(*names: str):
    return make_table(read_folder(Path("runs")), names, "base")


def test_the_plot_of_differences(folder):
    write(
        "middle", BASE + np.array([1.9, 0.2, 1.0, 0.9])
    )  # p = 0.07: more than 2 SE, not significant
    figure = difference_chart(tabulate("noise", "base", "middle", "gain"))
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["noise", "middle", "gain"]
    marks = drawn(figure)
    assert list(marks) == ["p, Holm < 0.05", "larger than noise", "within noise"]
    points = {label: mark[0].tolist() for label, mark in marks.items()}
    assert points["p, Holm < 0.05"] == [pytest.approx([(GAIN - BASE).mean(), 2])]
    assert points["larger than noise"] == [pytest.approx([1.0, 1])]
    interval = stats.t.interval(0.95, 3, (NOISE - BASE).mean(), stats.sem(NOISE - BASE))
    (ends,) = marks["within noise"][1]
    assert (ends[0], ends[2]) == pytest.approx(interval)
    assert len({mark[2] for mark in marks.values()}) == 3
    assert len({mark[3] for mark in marks.values()}) == 3


def test_the_plot_of_a_sweep(folder):
    values = {"noise": 0.3, "base": 0.2, "gain": 0.1}
    figure = sweep_chart(tabulate("noise", "base", "gain"), "loss.margin", values)
    points, ends, _, _ = drawn(figure)["mean"]
    assert points[:, 0].tolist() == [0.1, 0.2, 0.3]
    assert points[:, 1] == pytest.approx([GAIN.mean(), BASE.mean(), NOISE.mean()])
    interval = stats.t.interval(0.95, 3, GAIN.mean(), stats.sem(GAIN))
    assert (ends[0][1], ends[0][3]) == pytest.approx(interval)
    assert figure.axes[0].get_xlabel() == "loss.margin"


def test_one_seed_has_differences_without_a_test(folder):
    for name in ("base", "gain", "noise"):
        for seed in (1, 2, 3):
            Path(f"runs/{name}/{seed}.json").unlink()
    _, cells = markdown("--out", "x")
    assert cells["gain"][4] == "+1.10"
    assert cells["gain"][5:] == ["-"] * 5
    assert "±" not in cells["gain"][1]


# Refusals.


def refused(*arguments: str):
    return invoke("table", "grid.yaml", "--reports", "runs", *arguments)


def remove(name: str) -> None:
    for path in Path("runs", name).iterdir():
        path.unlink()


def test_all_missing_configurations_are_named(folder):
    remove("gain")
    remove("noise")
    assert_clear_error(refused(), "no results of noise, gain", "--partial")
    assert list(rows("--partial")) == ["untrained", "base"]
    remove("base")
    write("gain", GAIN)
    assert_clear_error(refused("--partial"), "baseline base")


def test_missing_seeds(folder):
    Path("runs/gain/3.json").unlink()
    Path("runs/base/0.json").unlink()
    assert_clear_error(refused(), "the seeds differ")
    gain = rows("--partial")["gain"]
    assert gain["seeds"] == [0, 1, 2]
    assert gain["test"]["difference"]["mean"] == pytest.approx((GAIN - BASE)[1:3].mean())
    remove("gain")
    write("gain", GAIN, seed=10)  # no common seed
    assert rows("--partial")["gain"]["test"] is None


@pytest.mark.parametrize("name", ["gain", "untrained"])
@pytest.mark.parametrize(
    ("change", "words"),
    [({"evaluator": 3}, "evaluator differs"), ({"data": {"sts": "z"}}, "data.sts differs")],
)
def test_reports_that_were_measured_otherwise(folder, name, change, words):
    remove(name)
    write(name, [50.0], retrieval=False, seed=None if name == "untrained" else 0, **change)
    assert_clear_error(refused("--partial"), "not measured alike", words)


def test_scores_that_cannot_be_shown(folder):
    known = refused("--score", "sts.STS99")
    assert_clear_error(known, "no report has a score sts.STS99", "sts.avg")
    score = "retrieval.text_to_image.recall@1"
    assert_clear_error(refused("--score", score), "untrained, noise lack", score)


def test_reports_need_a_grid_and_must_be_there(folder):
    assert_clear_error(invoke("table", "--reports", "runs"), "needs a grid")
    assert_clear_error(invoke("table", "grid.yaml", "--reports", "nowhere"), "no report in nowhere")
