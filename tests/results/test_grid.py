"""Grids: what a grid file may say, what DVC is told, and real experiments in a toy project."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides, get_hydra_sweeps
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from pipeline.core.errors import ParamsError
from pipeline.params.changes import apply_changes
from pipeline.results.grid import check_grid, overrides, read_grid
from tests.conftest import ROOT, assert_clear_error, invoke, write_params

TOY = """
import json, os, sys, time
from pathlib import Path
from pipeline.params.block import load_params
from pipeline.params.schema import Params

if mark := os.environ.get("TOY_WAITS"):
    Path(mark + "~").write_text(str(os.getpid()))
    os.replace(mark + "~", mark)
    time.sleep(60)
seed, margin = int(sys.argv[1]), load_params(Path("params.yaml"), Params).loss.margin
if margin == 3:
    sys.exit("no margin of 3")
value = 50 + seed * 0.7 + margin * 10 + seed * margin
about = {"seed": seed, "evaluator": 2, "data": {"sts": "a"}}
report = {"sts": {"avg": value}, "systems": [{"name": "student", "about": about}]}
for folder in ("reports/evaluate", f"reports/train/{seed}"):
    Path(folder).mkdir(parents=True, exist_ok=True)
Path(f"reports/evaluate/{seed}.json").write_text(json.dumps(report))
rows = f"system,part,task,measure,score,low,high,count\\nstudent,sts,avg,spearman,{value},,,9\\n"
Path(f"reports/evaluate/{seed}.csv").write_text(rows)
Path(f"reports/train/{seed}/metrics.json").write_text(json.dumps({"dev_best": value}))
"""

PIPELINE = """
stages:
  evaluate:
    matrix:
      seed: ${train.seeds}
    cmd: python toy.py ${item.seed}
    deps: [toy.py]
    params: [loss]
    outs:
      - reports/evaluate/${item.seed}.csv
      - reports/evaluate/${item.seed}.json
      - reports/train/${item.seed}
  summary:
    cmd: python -m stages.summary
    deps: [reports/evaluate, reports/train]
    params: [train.seeds]
    outs: [reports/scores.csv]
    metrics:
      - reports/summary.json:
          cache: false
"""

TOY_GRID = """
baseline: low
sweep: loss.margin
shared: {train.seeds: [0, 1, 2]}
configurations:
  low: {loss.margin: 0.1}
  broken: {loss.margin: 3}
  high: {loss.margin: 0.4, loss.terms: [caption]}
"""


def grid(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The default params in the current folder, which is no repository."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    write_params(tmp_path)
    return tmp_path


# The file.


@pytest.mark.parametrize("name", ["a", "margin-0.2", "kd.3cap", "A_b-1.x2", "10"])
def test_names_that_git_and_folders_take(tmp_path, name):
    read = read_grid(grid(tmp_path, f"baseline: '{name}'\nconfigurations: {{'{name}': {{}}}}"))
    assert list(read.configurations) == [name]


NAMES = ["", *" -.*ä", "a b", "a/b", "a..b", ".a", "a.", "-a", "a.lock", "a~1", "a:b", "@{u}"]
SWEEP = "baseline: a\nsweep: k\nconfigurations: {a: {k: 1}, b: {k: %s}, c: {}}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        *(
            (f"baseline: '{name}'\nconfigurations: {{'{name}': {{}}}}", "cannot name an experiment")
            for name in NAMES
        ),
        ("baseline: a\nconfigurations: {b: {}}", "baseline must be one of b"),
        *(
            (SWEEP % value, "b, c must set the sweep's k to a number")
            for value in ("'0.1'", "true", "null", "[1]")
        ),
    ],
)
def test_a_file_that_is_not_a_grid(tmp_path, text, words):
    with pytest.raises(ParamsError, match=words):
        read_grid(grid(tmp_path, text))


def test_a_configuration_is_laid_over_what_all_share(tmp_path):
    text = "baseline: a\nshared: {x.y: 1, x.z: 2}\nconfigurations: {a: {x.y: 3}, b: {}}"
    read = read_grid(grid(tmp_path, text))
    assert read.changes("a") == {"x.y": 3, "x.z": 2}
    params = {"x": {"y": 0, "z": 0, "w": 0}, "v": 0}
    assert apply_changes(params, read.changes("b")) == {"x": {"y": 1, "z": 2, "w": 0}, "v": 0}
    assert params["x"]["y"] == 0


# The check before anything is run.


def test_all_faults_come_at_once(folder):
    text = """
    baseline: a
    configurations:
      a: {loss.margin: 0.2}
      b: {loss.margn: 0.2, train.steps: many}
      c: {los.margin: 1}
      d: {teacher.model: "local-dir:../shared/clip"}
      e: {train.steps: null, loss.terms: [caption], student.encoder: /some/where}
    """
    result = invoke("grid", str(grid(folder, text)))
    assert_clear_error(
        result,
        "b: unknown key loss.margn (did you mean margin?)",
        "train.steps",
        "c: unknown key los.margin",
        "d: teacher.model: local-dir:../shared/clip leaves the project",
        "nothing was run",
    )
    assert " a: " not in result.stderr
    assert " e: " not in result.stderr


def test_params_that_are_wrong_themselves_and_a_folder_that_is_no_repository(folder):
    path = grid(folder, "baseline: a\nconfigurations: {a: {}, b: {loss.margin: 0.2}}")
    assert_clear_error(invoke("grid", str(path)), "DVC", "git repository")
    write_params(folder, {"loss": {"margin": -1}})
    with pytest.raises(ParamsError, match=r"^params.yaml: loss.margin") as caught:
        check_grid(read_grid(path), Path("params.yaml"))
    assert caught.value.what.count("loss.margin") == 1


# What DVC is told.

TEXT = st.text(st.characters(codec="ascii", exclude_categories=["Cc"])) | st.sampled_from(
    ["", "1", "1e-5", "null", "true", "off", "a,b", "[a]", "{a: 1}", "it's", "\\", "\\'", "\\\\'a",
     "a b", "#x", "a: b", "${train.steps}", "glob(*)", "range(1,3)", "ünï"]
)  # fmt: skip
VALUE = (
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(-1e9, 1e9)
    | TEXT.filter(lambda text: text != "???" and ("$" not in text or text == "${train.steps}"))
)


@given(VALUE | st.lists(VALUE, max_size=3), VALUE)
def test_dvc_writes_the_values_that_were_checked(tmp_path_factory, first, second):
    path = tmp_path_factory.mktemp("params") / "params.yaml"
    # In blocks, as params.yaml is: inside of braces DVC writes ":0" so that no reader takes it
    path.write_text("train:\n  seeds:\n  - 0\n  steps: 5\nstudent:\n  encoder: x\n")
    params = {"train": {"seeds": [0], "steps": 5}, "student": {"encoder": "x"}}
    changes = {"train.seeds": first, "student.encoder": second}
    (told,) = get_hydra_sweeps({"params.yaml": overrides(changes)})  # one run, no sweep
    apply_overrides(path, told["params.yaml"])
    written = YAML(typ="safe", pure=True).load(path.read_text())
    assert written == apply_changes(params, changes)


def test_a_whole_block_is_told_key_by_key():
    changes = {"loss.filter": {"kind": "cosine", "threshold": 0.9}, "train.steps": None}
    assert overrides(changes) == [
        "loss.filter.kind='cosine'",
        "loss.filter.threshold=0.9",
        "train.steps=null",
    ]


# Real experiments.


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


def dvc(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A toy project with one commit, whose summary has one seed."""
    folder = tmp_path_factory.mktemp("project")
    write_params(folder)
    for name, text in (("toy.py", TOY), ("dvc.yaml", PIPELINE), ("grid.yaml", TOY_GRID)):
        (folder / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        git("init", "-q")
        git("config", "user.email", "someone@example.org")
        git("config", "user.name", "someone")
        dvc("init", "-q")
        dvc("config", "core.analytics", "false")
        write_params(folder, {"train": {"seeds": [0, 1, 2]}})
        dvc("repro", "-q")
        git("add", "-A")
        git("commit", "-qm", "toy")
    return folder


@pytest.fixture
def in_project(project, monkeypatch) -> Path:
    monkeypatch.chdir(project)
    return project


@pytest.mark.slow
def test_a_grid_is_run_and_tabulated(in_project):
    Path("note.txt").write_text("not in git")
    with Path("grid.yaml").open("a") as stream:
        stream.write("# changed\n")
    before = git("status", "--porcelain"), Path("params.yaml").read_bytes()
    result = invoke("grid", "grid.yaml")
    assert_clear_error(result, "1 experiments failed: broken")
    assert (git("status", "--porcelain"), Path("params.yaml").read_bytes()) == before
    assert dvc("exp", "list", "--name-only").split() == ["high", "low"]

    again = invoke("grid", "grid.yaml")
    assert_clear_error(again, "1 experiments failed: broken")
    assert dvc("exp", "list", "--name-only").split() == ["high", "low"]

    assert_clear_error(invoke("table", "grid.yaml"), "no results of broken")
    table = invoke("table", "grid.yaml", "--partial", "--out", "t", "--score", "sts.avg")
    assert table.exit_code == 0, table.output
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in table.stdout.splitlines()[4:]
    ]
    low, high = ([50 + s * 0.7 + m * 10 + s * m for s in range(3)] for m in (0.1, 0.4))
    assert [row[:2] for row in rows] == [["low", "3"], ["high", "3"]]
    assert rows[0][2].startswith(f"{sum(low) / 3:.2f} ± ")
    assert rows[1][3] == f"{sum(high) / 3 - sum(low) / 3:+.2f}"
    assert Path("t.svg").stat().st_size > 1000

    everything = invoke("table")
    assert everything.exit_code == 0, everything.output
    names = [line.split("|")[1].strip() for line in everything.stdout.splitlines()[4:]]
    assert names == ["HEAD", "loss.margin=0.4, loss.terms=['caption']", "loss.margin=0.1"]


@pytest.mark.slow
def test_a_grid_is_queued_once(in_project, tmp_path):
    path = grid(tmp_path, "baseline: q1\nconfigurations: {q1: {loss.margin: 1.0}, q2: {}}")
    for _ in range(2):
        result = invoke("grid", str(path), "--queue")
        assert result.exit_code == 0, result.output
        status = dvc("queue", "status")
        assert (status.count("q1"), status.count("q2")) == (1, 1)
    assert "q1" not in dvc("exp", "list", "--name-only")
    dvc("queue", "remove", "--all")


@pytest.mark.slow
def test_force_replaces_an_experiment(in_project, tmp_path):
    path = grid(tmp_path, "baseline: f\nconfigurations: {f: {loss.margin: 1.0}}")
    assert invoke("grid", str(path)).exit_code == 0
    path.write_text("baseline: f\nconfigurations: {f: {loss.margin: 2.0}}")
    words = ("other params than the grid says: f (loss.margin)", "--force")
    assert_clear_error(invoke("grid", str(path)), *words)
    assert_clear_error(invoke("table", str(path)), *words)
    assert invoke("grid", str(path), "--force").exit_code == 0
    ref = git("for-each-ref", "--format=%(refname)", "refs/exps/*/*/f").strip()
    assert "margin: 2.0" in git("show", f"{ref}:params.yaml")


@pytest.mark.slow
def test_an_interrupted_grid_leaves_nothing_running(in_project, tmp_path):
    """The stage that runs is told too, and DVC has cleaned up before the command ends."""
    path = grid(tmp_path, "baseline: i\nconfigurations: {i: {loss.margin: 2.5}}")
    mark = tmp_path / "started"
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.grid", str(path)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TOY_WAITS": str(mark)},
    )
    while not mark.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "grid was stopped by SIGTERM" in errors
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)
    assert "i" not in dvc("exp", "list", "--name-only").split()
    assert not list(Path(".dvc/tmp/exps/standalone").glob("tmp*"))


def test_the_grids_of_the_project_are_valid():
    paths = sorted((ROOT / "grids").glob("*.yaml"))
    assert paths
    for path in paths:
        check_grid(read_grid(path), ROOT / "params.yaml")
