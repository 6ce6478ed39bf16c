"""The summary over the training seeds: what `stages.summary` writes and `stages.table` reads.

    seeds                      their number
    train, sts, transfer,      the numbers to watch, means over seeds, with `_sd` where there are
    retrieval                  several
    scores                     a list: n, mean, sd and 95 % interval of every score
    reports                    a list: seed, `about`, training metrics and all scores of every seed

DVC ignores lists in metrics, so its tables stay readable. Parts that the evaluation left out are
left out. `scores.csv` beside it has the same numbers and the baselines as one tidy table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.core.errors import InputError
from pipeline.core.files import read_json, write_json
from pipeline.results.compare import ComparedScore, SeedStatistics, compare, rounding_of, summarise
from pipeline.results.scores import (
    PARTS,
    SCORE,
    STUDENT,
    WORKSPACE,
    Configuration,
    Report,
    parse_report,
    read_scores,
    write_scores,
)

METRICS = (
    "sts.avg",
    "sts.avg_unseen",
    "transfer.avg",
    "retrieval.text_to_image.recall@1",
    "retrieval.image_to_text.recall@1",
)
"""The scores that are DVC metrics."""

_DIGITS = 4  # as in the reports


@dataclass(frozen=True)
class SeedRun:
    """What training and evaluation wrote for one seed."""

    seed: int
    train: Mapping[str, Any]
    """The training metrics."""
    content: Mapping[str, Any]
    """The evaluation report as JSON."""
    report: Report
    """The same, checked."""
    scores: pd.DataFrame
    """The scores of all systems of the report."""


def read_run(train: Path, evaluations: Path, seed: int) -> SeedRun:
    """Read `<seed>/metrics.json` of training, and `<seed>.json` and `.csv` of the evaluation.

    Raises:
        MissingArtifactError: a file is not there.
        InputError: a file cannot be used, or is that of another seed.
    """
    path = evaluations / f"{seed}.json"
    content = read_json(path, "evaluate")
    report = parse_report(content, str(path))
    if report.seed != seed:
        raise InputError(
            f"{path} is the report of seed {report.seed}, not {seed}.", "run `dvc repro evaluate`."
        )
    metrics = read_json(train / str(seed) / "metrics.json", "train")
    scores = read_scores(path.with_suffix(".csv"), "evaluate").assign(configuration=WORKSPACE)
    is_student = scores["system"] == content["systems"][0]["name"]
    scores.loc[is_student, "seed"] = seed
    scores.loc[is_student, "system"] = STUDENT
    return SeedRun(seed, metrics, content, report, scores)


def write_summary(out: Path, runs: Sequence[SeedRun]) -> list[ComparedScore]:
    """Write the summary as JSON, and all scores as `scores.csv` beside it.

    Returns:
        The summary of every score.

    Raises:
        InputError: the seeds were not measured alike.
        ResourceError: the files cannot be written.
    """
    scores = compare(Configuration(str(out), tuple(run.report for run in runs)))
    content: dict[str, Any] = {"seeds": len(runs), "train": _train_metrics(runs)}
    for score in scores:
        if score.score in METRICS:
            *blocks, last = score.score.split(".")
            block = content
            for name in blocks:
                block = block.setdefault(name, {})
            block |= _with_sd(last, score.first)
    content["scores"] = [{"score": score.score, **_row(score.first)} for score in scores]
    content["reports"] = [
        {
            "seed": run.seed,
            "about": run.content["systems"][0]["about"],
            "train": run.train,
            **{part: run.content[part] for part in PARTS if part in run.content},
        }
        for run in runs
    ]
    write_json(out, content)
    found = pd.concat([run.scores for run in runs])
    seeds = found[found["seed"].notna()]
    mean = pd.DataFrame([_over_seeds(rows) for _, rows in seeds.groupby(SCORE, sort=False)])
    others = found[found["seed"].isna()].drop_duplicates(["system", *SCORE])
    write_scores(out.with_name("scores.csv"), pd.concat([mean, others, seeds], ignore_index=True))
    return scores


def _over_seeds(score: pd.DataFrame) -> dict[Any, Any]:
    """One row: the mean and its interval; a single seed keeps its bootstrap interval."""
    row: dict[Any, Any] = score.iloc[0].to_dict() | {"seed": None}
    if len(score) > 1:
        values = score["value"].to_numpy(np.float64)  # NaN where it is undefined, as its mean then
        found = _row(summarise(values, rounding_of(row["part"])))
        row |= {"value": found["mean"], "low": found["low"], "high": found["high"]}
    return row


def _train_metrics(runs: Sequence[SeedRun]) -> dict[str, Any]:
    """Means of the training metrics that are DVC metrics; only `dev_best` has a spread."""
    found: dict[str, Any] = {}
    for key in ("dev_best", "masked_share"):
        if all(key in run.train for run in runs):
            values = summarise(np.array([run.train[key] for run in runs], dtype=np.float64))
            found |= _with_sd(key, values)
    return {key: value for key, value in found.items() if key != "masked_share_sd"}


def _with_sd(key: str, values: SeedStatistics) -> dict[str, Any]:
    row = _row(values)
    return {key: row["mean"]} | ({} if row["sd"] is None else {f"{key}_sd": row["sd"]})


def _row(values: SeedStatistics) -> dict[str, Any]:
    low, high = values.interval or (None, None)
    numbers = {"mean": values.mean, "sd": values.sd, "low": low, "high": high}
    return {"n": values.n} | {
        key: None if number is None else round(number, _DIGITS) for key, number in numbers.items()
    }
