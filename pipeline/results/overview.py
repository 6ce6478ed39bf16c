"""The outcome of a run: the student's scores beside the baselines', and the time of each stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.core.times import read_seconds
from pipeline.results.scores import COLUMNS, SCORE, STUDENT, read_scores

SYSTEMS = ("untrained", STUDENT, "teacher")
"""In the order of the tables: where the student started, the student, what it learned from."""

SCORES = {
    ("sts", "avg", "spearman"): "STS, Spearman x100",
    ("transfer", "avg", "accuracy"): "transfer, accuracy x100",
    ("retrieval", "text_to_image", "recall@1"): "text to image, recall@1 x100",
    ("retrieval", "image_to_text", "recall@1"): "image to text, recall@1 x100",
}
"""The numbers to watch: their titles by part, task and measure."""

STAGES = {
    "download": "download.json",
    "features": "features.json",
    "train": "train/{seed}/metrics.json",
    "baselines": "baselines.json",
    "evaluate": "evaluate/{seed}.json",
    "summary": "summary.json",
    "index": "index.json",
}
"""The report of each stage, in the folder of reports; one per seed where the name says so."""


@dataclass(frozen=True)
class StageRuns:
    """What is known of the runs of a stage."""

    runs: int
    """How many there should be: one, or one per seed."""
    made: int
    """Those whose report exists."""
    timed: int
    """Those whose time is known: they ran here and were not taken from a cache or from git."""
    seconds: float
    """The timed ones together."""


@dataclass(frozen=True)
class Results:
    """The numbers of a run, as far as there are any."""

    seeds: list[int]
    """Of the students that the scores are the mean of; empty without a summary."""
    scores: dict[str, dict[str, float]]
    """By title and system."""
    intervals: dict[str, tuple[float, float]]
    """The 95 % interval of the student's score, where there is one."""
    stages: dict[str, StageRuns]
    missing: list[str]
    """What to run for the rest, one sentence each."""


def read_results(reports: Path, seeds: Sequence[int]) -> Results:
    """Read what the stages left in the folder of reports, for the seeds of params.yaml.

    Raises:
        InputError: a file cannot be used.
    """
    files = {"summary": reports / "scores.csv", "baselines": reports / "baselines.csv"}
    found = [read_scores(path, stage) for stage, path in files.items() if path.is_file()]
    table = pd.concat([*found, pd.DataFrame(columns=COLUMNS, dtype=object)])
    known = [int(seed) for seed in table["seed"].dropna().unique()]
    shown = table[table["seed"].isna()].drop_duplicates(["system", *SCORE])
    missing = []
    if lacking := [name for name in SYSTEMS if name not in set(shown["system"])]:
        missing = [f"No scores yet of {', '.join(lacking)}: run `dvc repro`."]
    if known and known != list(seeds):
        old, new = (", ".join(map(str, some)) for some in (known, seeds))
        missing.append(f"Scores are of seed {old}; params.yaml names {new}: run `dvc repro`.")
    scores: dict[str, dict[str, float]] = {title: {} for title in SCORES.values()}
    intervals: dict[str, tuple[float, float]] = {}
    for row in shown.dropna(subset="value").to_dict("records"):
        if title := SCORES.get((row["part"], row["task"], row["measure"])):
            scores[title][row["system"]] = row["value"]
            if row["system"] == STUDENT and pd.notna(row["low"]):
                intervals[title] = (row["low"], row["high"])
    stages = {stage: _runs(reports, name, seeds) for stage, name in STAGES.items()}
    return Results(known, scores, intervals, stages, missing)


def _runs(reports: Path, name: str, seeds: Sequence[int]) -> StageRuns:
    paths = list(dict.fromkeys(reports / name.format(seed=seed) for seed in seeds))
    made = [path for path in paths if path.is_file()]
    seconds = [took for path in made if (took := read_seconds(reports, path)) is not None]
    return StageRuns(len(paths), len(made), len(seconds), round(sum(seconds, 0.0), 1))
