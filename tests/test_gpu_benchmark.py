"""benchmarks.gpu: numbers stay whatever happens, and what cannot run is named."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu.measure import Bench
from benchmarks.gpu.profiling import Span, summarise
from benchmarks.gpu.run import PARTS, Account
from benchmarks.gpu.tables import BEGIN, END, fill_page
from pipeline.core.errors import InputError
from tests.conftest import ROOT
from tests.test_imports import LACKING, python

PAGE = ROOT / "docs/gpu.md"
COMMAND = [sys.executable, "-m", "benchmarks.gpu"]
MEASURED = [
    {"name": "our loop", "steps_per_second": 12.5, "holds": True},
    {"name": "the plain loop", "skipped": "pandas not installed"},
]
EXACT = {"name": "exact", "recall": 1, "holds": False}
RESULTS = {
    "settings": {"started": "2026-11-28T10:00:00+00:00", "minutes": 8, "tiny": False},
    "machine": {"device": "some card", "torch": "2.12.1"},
    "parts": {
        "training": {"status": "done", "seconds": 9.5, "measured": MEASURED},
        "search": {"status": "cut off", "measured": [EXACT]},
    },
}


def run_tiny(out: Path, *options: str, **env: str) -> dict:
    command = [*COMMAND, "--out", str(out), "--tiny", *options]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((out / "gpu.json").read_text())


def states(results: dict, state: str) -> dict:
    return {
        f"{part}: {one['name']}": one[state]
        for part, content in results["parts"].items()
        for one in content["measured"]
        if state in one
    }


def test_a_failure_or_what_cannot_run_is_named_and_the_others_go_on(capsys):
    stream = io.StringIO()
    taken = Bench(stream, tiny=False, ends=time.monotonic() + 10)
    assert taken.take("good", lambda: {"rate": 2.0}, seconds=5) == {"rate": 2.0}
    assert taken.take("bad", lambda: 1 / 0) == {}
    taken.take("strange", lambda: {"rate": float("nan")})
    taken.take("foreign", dict, needs=["numpy", "no_such_package"])
    taken.take("long", dict, seconds=60)
    if taken.device.type != "cuda":
        taken.take("card", dict, cuda=True)
    machine, good, bad, strange, foreign, long, *card = map(
        json.loads, stream.getvalue().splitlines()
    )
    assert machine["machine"]["torch"]
    assert (good["name"], good["rate"]) == ("good", 2.0)
    assert good["peak_gib"] > 0
    assert bad["failed"] == "ZeroDivisionError: division by zero"
    assert strange["rate"] == "nan"
    assert foreign["skipped"] == "no_such_package not installed"
    assert long["skipped"].startswith("takes 60 s, and ")
    assert all(one["skipped"] == "needs a CUDA GPU" for one in card)
    assert "foreign: skipped: no_such_package not installed" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["torch", "numpy"])
@pytest.mark.integration
def test_a_part_that_lacks_its_packages_is_skipped(package):
    arguments = ["gpu", "--part", "training"]
    done = python(
        f"sys.argv = {arguments}; from benchmarks.gpu.__main__ import main; main()", package
    )
    assert json.loads(done.stdout) == {"name": "training", "skipped": f"{package} not installed"}
    assert f"training: skipped: {package} not installed" in done.stderr


def test_every_result_is_on_disk_at_once(tmp_path):
    path = tmp_path / "gpu.json"
    account = Account(path, {"minutes": 1})
    account.begin("training")
    assert json.loads(path.read_text())["parts"]["training"]["status"] == "cut off"
    account.take("training", '{"name": "one", "rate": 3}')
    account.take("training", '{"machine": {"device": "cpu"}}')
    account.end("training", "done", 1.0)
    content = json.loads(path.read_text())
    assert content["parts"]["training"]["measured"] == [{"name": "one", "rate": 3}]
    assert content["machine"] == {"device": "cpu"}
    assert content["parts"]["training"]["status"] == "done"


def test_gaps_are_where_nothing_was_at_work():
    spans = [Span("b", 30, 40), Span("a", 0, 10), Span("a", 5, 20), Span("c", 45, 50)]
    values = summarise(spans)
    assert values["longest_gaps_ms"] == ["before b 0.010", "before c 0.005"]
    assert values["longest_kernels_ms"] == ["a 0.025", "b 0.010", "c 0.005"]
    assert values["busy_share"] == 1 - 15 / 50


def test_a_page_is_filled_between_its_marks(tmp_path):
    text = PAGE.read_text()
    assert text.index(BEGIN) < text.index(END)
    assert [part for part in PARTS if f"`{part}`" not in text] == []
    page, results = tmp_path / "gpu.md", tmp_path / "gpu.json"
    page.write_text(f"above\n{BEGIN}\nstale\n{END}\nbelow\n")
    with pytest.raises(InputError, match=r"run `python -m benchmarks.gpu --out"):
        fill_page(page, results)
    results.write_text('{"parts": []}')
    with pytest.raises(InputError, match="holds no results"):
        fill_page(page, results)
    results.write_text(json.dumps(RESULTS))
    for _ in range(2):
        fill_page(page, results)
    text = page.read_text()
    assert text.startswith(f"above\n{BEGIN}\n")
    assert text.endswith(f"{END}\nbelow\n")
    assert "stale" not in text
    assert text.count("device some card; torch 2.12.1") == 1
    assert "| our loop | 12.5 | yes |" in text
    assert "- the plain loop: skipped: pandas not installed" in text
    assert "This part was not finished: cut off." in text
    assert "| exact | 1 | **no** |" in text
    assert "--tiny" not in text


@pytest.mark.slow
def test_all_of_it_runs_in_small_on_a_cpu(tmp_path):
    started = time.monotonic()
    results = run_tiny(tmp_path, "--profile", "--minutes", "4")
    seconds = time.monotonic() - started
    assert {part["status"] for part in results["parts"].values()} == {"done"}
    assert set(results["parts"]) == set(PARTS)
    assert states(results, "failed") == {}
    assert set(states(results, "skipped").values()) <= {"needs a CUDA GPU"}
    checked = results["parts"]["correctness"]["measured"]
    assert [one["holds"] for one in checked if "holds" in one].count(True) >= 6
    assert all(one.get("holds", True) for one in checked)
    assert seconds < 240, "a machine of two busy cores; two minutes is the claim for idle ones"
    page = tmp_path / "gpu.md"
    page.write_text(PAGE.read_text())
    fill_page(page, tmp_path / "gpu.json")
    assert "| our loop |" in page.read_text()


@pytest.mark.slow
def test_it_runs_without_what_a_machine_with_a_gpu_may_lack(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys; sys.modules.update(dict.fromkeys({LACKING!r}))\n"
    )
    results = run_tiny(tmp_path / "out", "--minutes", "4", PYTHONPATH=str(tmp_path))
    assert {part["status"] for part in results["parts"].values()} == {"done"}
    assert states(results, "failed") == {}
    skipped = states(results, "skipped")
    assert skipped["training: the plain loop"] == "pandas, scipy not installed"
    assert skipped["features: ViT-L/14 of open_clip"] == "open_clip not installed"
    assert skipped["search: IVF, by FAISS"] == "faiss not installed"
    assert states(results, "steps_per_second")["training: our loop"] > 0
    assert (
        states(results, "captions_per_second")["features: ViT-L/14 of transformers: captions"] > 0
    )
    assert set(states(results, "written").values()) == {False}


@pytest.mark.slow
def test_what_was_measured_stays_when_the_time_is_over(tmp_path):
    results = run_tiny(tmp_path, "--only", "correctness", "--minutes", "0.1")
    assert results["parts"]["correctness"]["status"] == "cut off"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_what_was_measured_and_no_process(tmp_path, number):
    command = [*COMMAND, "--out", str(tmp_path), "--tiny", "--only", "correctness"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    eventually(lambda: measured(tmp_path / "gpu.json"))
    (part,) = children(process.pid)
    process.send_signal(number)
    assert process.wait(timeout=30) in {128 + number, -number}
    assert measured(tmp_path / "gpu.json")
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert content["parts"]["correctness"]["status"] == "cut off"
    eventually(lambda: not Path(f"/proc/{part}").exists())


def measured(path: Path) -> list[dict]:
    if not path.exists():
        return []
    return json.loads(path.read_text())["parts"].get("correctness", {}).get("measured", [])


def eventually(holds) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
