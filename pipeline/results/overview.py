"""What a run came to: the student's scores beside the baselines', and how long the stages took."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.core.times import read_seconds
from pipeline.results.summary import read_json, read_plot, read_summary

SYSTEMS = ("untrained", "student", "teacher")
"""In the order of the tables: where it came from, what it is, what it learned from."""

SCORES = {
    "STS, Spearman x100": ("sts", "avg", "spearman"),
    "transfer, accuracy x100": ("transfer", "avg", "accuracy"),
    "text to image, recall@1 x100": ("retrieval", "text_to_image", "recall@1"),
    "image to text, recall@1 x100": ("retrieval", "image_to_text", "recall@1"),
}
"""Part, task and measure of the numbers to watch, by what they are called."""

STAGES = {
    "download": "download.json",
    "features": "features.json",
    "train": "train/{seed}/metrics.json",
    "baselines": "baselines.json",
    "evaluate": "evaluate/{seed}.json",
    "summary": "summary.json",
    "index": "index.json",
}
"""The report of each stage, in the folder of reports; one a seed where the name says so."""


@dataclass(frozen=True)
class Took:
    """What is known of a stage's runs."""

    runs: int
    """How many there are to be: one, or one a seed."""
    made: int
    """Those whose report is there."""
    timed: int
    """Those of which the time is known: they were run here, not taken from a cache or from git."""
    seconds: float
    """That the timed ones took together."""


@dataclass(frozen=True)
class Results:
    """The numbers of a run, as far as there are any."""

    seeds: list[int]
    """Of the students that the scores are the mean of; none where there is no summary."""
    scores: dict[str, dict[str, float]]
    """By what the score is called and by system."""
    intervals: dict[str, tuple[float, float]]
    """The 95 % interval of the student's score, where there is one."""
    stages: dict[str, Took]
    missing: list[str]
    """What is to be run for the rest, one sentence each."""

    def as_json(self) -> dict[str, Any]:
        """The same in plain containers."""
        return asdict(self)


def read_results(reports: Path, seeds: Sequence[int]) -> Results:
    """Read what the stages left in the folder of reports.

    Args:
        reports: the folder.
        seeds: that are asked for now.

    Raises:
        InputError: a file that is there cannot be used.
    """
    found = _summarised(reports / "summary.json")
    table = pd.concat([_plot(reports, "summary"), _plot(reports, "baselines")])
    table = table.drop_duplicates(["system", *_ROW])
    rows = {name: table[(table[_ROW] == list(key)).all(axis=1)] for name, key in SCORES.items()}
    return Results(
        seeds=found,
        scores={name: _scores(one) for name, one in rows.items()},
        intervals={name: span for name, one in rows.items() for span in _interval(one)},
        stages={stage: _took(reports, name, seeds) for stage, name in STAGES.items()},
        missing=[*_missing(set(table["system"])), *_other_seeds(found, seeds)],
    )


_ROW = ["part", "task", "measure"]


def _summarised(path: Path) -> list[int]:
    """The seeds that the summary is over."""
    if not path.is_file():
        return []
    content = json.dumps(read_json(path, "summary"))
    return [one.seed for one in read_summary(content, str(path)).reports if one.seed is not None]


def _plot(reports: Path, stage: str) -> pd.DataFrame:
    path = reports / f"{stage}.csv"
    return read_plot(path, stage) if path.is_file() else pd.DataFrame(columns=["system", *_ROW])


def _scores(rows: pd.DataFrame) -> dict[str, float]:
    known = rows.dropna(subset="score") if "score" in rows else rows
    return {row["system"]: float(row["score"]) for row in known.to_dict("records")}


def _interval(rows: pd.DataFrame) -> list[tuple[float, float]]:
    student = rows[rows["system"] == "student"]
    known = student.dropna(subset=["low", "high"]) if len(student) else student
    return [(float(row["low"]), float(row["high"])) for row in known.to_dict("records")]


def _took(reports: Path, name: str, seeds: Sequence[int]) -> Took:
    of_seeds = [reports / name.format(seed=seed) for seed in seeds]
    paths = list(dict.fromkeys(of_seeds))
    made = [path for path in paths if path.is_file()]
    seconds = [took for path in made if (took := read_seconds(reports, path)) is not None]
    return Took(len(paths), len(made), len(seconds), round(sum(seconds, 0.0), 1))


def _missing(systems: set[str]) -> list[str]:
    lacking = [name for name in SYSTEMS if name not in systems]
    return [f"No scores yet of {', '.join(lacking)}: run `dvc repro`."] if lacking else []


def _other_seeds(found: Sequence[int], seeds: Sequence[int]) -> list[str]:
    if not found or list(found) == list(seeds):
        return []
    names = [", ".join(map(str, one)) for one in (found, seeds)]
    return [f"Scores are of seed {names[0]}; params.yaml names {names[1]}: run `dvc repro`."]
