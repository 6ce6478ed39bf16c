"""What DVC tracks is the same in every run that changed nothing; times are kept apart from it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from pipeline.core.times import read_seconds, write_times
from tests.conftest import TINY, invoke, write_params
from tests.test_dvc_yaml import DVC, first_seed, names_of

WORDS_OF_A_RUN = re.compile(
    "(?:milli)?seconds?|ms|s|minutes|hours|times?|elapsed|duration|rate|per|"
    "encoded|reused|selection"
)
"""What names of times and rates hold, and of counts of what was done this time."""


def is_of_a_run(name: str) -> bool:
    return any(map(WORDS_OF_A_RUN.fullmatch, re.split(r"[\W_]+", name)))


def made_by(stages: dict) -> set[str]:
    """What DVC tracks of the stages, for seed 0."""
    entries = map(first_seed, stages.values())
    return {name for one in entries for name in names_of(one["outs"] + one.get("metrics", []))}


MADE = made_by(DVC["stages"])


def files_of(folder: Path) -> dict[str, bytes]:
    """The bytes of all that DVC tracks in a folder, by name."""
    found = {}
    for name in MADE:
        root = folder / name
        assert root.exists(), name
        for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
            if path.is_file():
                found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def keys_of(content: object) -> Iterator[str]:
    if isinstance(content, dict):
        yield from content
        content = list(content.values())
    if isinstance(content, list):
        for one in content:
            yield from keys_of(one)


def names_in(path: Path) -> set[str]:
    """The keys of a JSON file, the columns of a CSV; what a long table calls its curves too."""
    if path.suffix == ".json":
        return set(keys_of(json.loads(path.read_text())))
    table = pd.read_csv(path)
    return {*table.columns, *table.get("curve", [])}


def test_a_time_is_known_by_its_name():
    for name in ("seconds", "steps_per_second", "took_s", "images_encoded", "selection_share"):
        assert is_of_a_run(name), name
    for name in ("masked_share", "recall@1", "steps", "images", "bytes", "dev_best"):
        assert not is_of_a_run(name), name


def test_nothing_that_dvc_tracks_names_a_time_or_a_rate(in_tiny_run):
    looked_at = [Path(name) for name in files_of(in_tiny_run) if name.endswith((".json", ".csv"))]
    reports = [path for path in looked_at if path.parts[0] == "reports"]
    assert len(reports) >= 15, reports
    found = {str(path): names_in(path) for path in reports}
    assert {"dev_best", "steps"} <= found["reports/train/0/metrics.json"]  # names are read at all
    assert {"space", "recall"} <= found["reports/index.csv"]
    named = {path: sorted(filter(is_of_a_run, names)) for path, names in found.items()}
    assert not {path: names for path, names in named.items() if names}


def test_every_stage_tells_what_it_took(in_tiny_run):
    reports = {name for name in MADE if name.startswith("reports/") and name.endswith(".json")}
    reports |= {"reports/train/0/metrics.json"}
    assert len(reports) == 7
    for name in reports:
        assert read_seconds(Path("reports"), Path(name)) > 0, name


def test_times_are_of_the_very_report_and_of_reports_alone(tmp_path):
    reports, elsewhere = tmp_path / "reports", tmp_path / "scores.json"
    report = reports / "train/0/metrics.json"
    report.parent.mkdir(parents=True)
    for path in (report, elsewhere):
        path.write_text("{}")
        write_times(reports, path, 12.34, {"steps_per_second": 5.0})
    assert [path.name for path in (reports / "times").rglob("*.json")] == ["metrics.json"]
    assert read_seconds(reports, report) == 12.3
    report.write_text('{"margin": 0.2}')  # as DVC does when it restores a result
    assert read_seconds(reports, report) is None
    assert read_seconds(reports, reports / "other.json") is None


@pytest.mark.slow
@pytest.mark.parametrize("keeps", [False, True], ids=["anew", "with what was kept"])
def test_the_same_run_again_makes_the_same_bytes(tiny_run, tmp_path, monkeypatch, keeps):
    """All that DVC tracks, metrics and outputs."""
    write_params(tmp_path, TINY)
    monkeypatch.chdir(tmp_path)
    for _ in range(1 + keeps):
        for stage in DVC["stages"]:
            result = invoke(stage)
            assert result.exit_code == 0, (stage, result.output)
    first, again = files_of(tiny_run), files_of(tmp_path)
    assert first.keys() == again.keys()
    assert not [name for name, content in first.items() if again[name] != content]
