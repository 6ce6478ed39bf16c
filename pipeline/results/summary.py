"""The summary over the training seeds: what `stages.summary` writes and `stages.table` reads.

    seeds                      how many
    train, sts, transfer,      the numbers to watch, means over seeds, with `_sd` where there are
    retrieval                  several
    scores                     a list: n, mean, sd and 95 % interval of every score
    reports                    a list: seed, `about`, training metrics and all scores of every seed

Lists are no metrics to DVC, so that its tables stay readable. Parts that the evaluation left out
are left out.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.core.errors import InputError, MissingArtifactError
from pipeline.core.files import atomic_file, write_json
from pipeline.results.compare import (
    BLOCKS,
    ComparedScore,
    Configuration,
    Report,
    Summary,
    compare,
    parse_report,
    rounding_of,
    summarise,
)

METRICS = (
    "sts.avg",
    "sts.avg_unseen",
    "transfer.avg",
    "retrieval.text_to_image.recall@1",
    "retrieval.image_to_text.recall@1",
)
"""The scores that are DVC metrics."""

TRAIN_METRICS = ("dev_best", "masked_share")
"""The training metrics that are DVC metrics, as means; only `dev_best` has a spread beside it."""

STUDENT = "student"
"""What plots call the system that was trained, whatever its folder is called."""

_ROW = ["part", "task", "measure"]
_DIGITS = 4
"""As in the reports."""


@dataclass(frozen=True)
class SeedRun:
    """What training and evaluation wrote of one seed."""

    seed: int
    train: Mapping[str, Any]
    """The training metrics."""
    content: Mapping[str, Any]
    """The evaluation report as JSON."""
    report: Report
    """The same, checked."""
    plot: pd.DataFrame
    """The report's plot table; the systems' first is the student."""


def read_run(train: Path, evaluations: Path, seed: int) -> SeedRun:
    """Read what one seed left.

    Args:
        train: the folder with `<seed>/metrics.json`.
        evaluations: the folder with `<seed>.json` and `<seed>.csv`.
        seed: of the training run.

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
    return SeedRun(seed, metrics, content, report, read_plot(path.with_suffix(".csv"), "evaluate"))


def write_summary(out: Path, runs: Sequence[SeedRun]) -> list[ComparedScore]:
    """Write the summary as JSON, and beside it as CSV for plots.

    Returns:
        The summary of every score.

    Raises:
        InputError: the seeds were not measured alike.
        ResourceError: the place cannot be written.
    """
    scores = compare(Configuration(str(out), tuple(run.report for run in runs)))
    write_json(out, summary(runs, scores))
    with atomic_file(out.with_suffix(".csv")) as temporary:
        plot_rows(runs).to_csv(temporary, index=False)
    return scores


def summary(runs: Sequence[SeedRun], scores: Sequence[ComparedScore]) -> dict[str, Any]:
    """The content of the summary, for the summaries of all scores."""
    content: dict[str, Any] = {"seeds": len(runs), "train": _train_metrics(runs)}
    for score in scores:
        if score.score in METRICS:
            _put(content, score.score.split("."), score.first)
    content["scores"] = [_as_json(score) for score in scores]
    content["reports"] = [_seed_report(run) for run in runs]
    return content


def plot_rows(runs: Sequence[SeedRun]) -> pd.DataFrame:
    """One row a headline number and system, with the columns of an evaluation's plot table.

    The student's score is the mean over seeds, with the interval of that mean; the score and the
    bootstrap interval of the evaluation where there is one seed. The other systems do not depend
    on the seed.
    """
    name = runs[0].content["systems"][0]["name"]
    mine = pd.concat([run.plot[run.plot["system"] == _student(run)] for run in runs])
    mine = mine.assign(system=STUDENT)
    if len(runs) > 1:
        mine = pd.DataFrame([_plot_row(group) for _, group in mine.groupby(_ROW, sort=False)])
    others = runs[0].plot[runs[0].plot["system"] != name]
    return pd.DataFrame([*mine.to_dict("records"), *others.to_dict("records")])


def read_summary(text: str, name: str) -> Configuration:
    """The reports of a summary, as those of one configuration.

    Args:
        text: what `write_summary` wrote.
        name: of the configuration.

    Raises:
        InputError: it is no summary.
    """
    try:
        reports = json.loads(text)["reports"]
        contents = [(one["seed"], _as_report(one)) for one in reports]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"the summary of {name} is none: {type(error).__name__} {error}.",
            "run `python -m stages.summary`, or the experiment, again.",
        ) from None
    if not contents:
        raise InputError(f"the summary of {name} has no seed.", "run the experiment again.")
    read = [parse_report(content, f"{name}, seed {seed}") for seed, content in contents]
    return Configuration(name, tuple(read))


def _train_metrics(runs: Sequence[SeedRun]) -> dict[str, float]:
    found: dict[str, float] = {}
    for key in TRAIN_METRICS:
        if all(key in run.train for run in runs):
            values = summarise(np.array([run.train[key] for run in runs], dtype=np.float64))
            found |= _with_sd(key, values) if key == "dev_best" else {key: _rounded(values.mean)}
    return found


def _put(content: dict[str, Any], keys: Sequence[str], values: Summary) -> None:
    *blocks, last = keys
    for block in blocks:
        content = content.setdefault(block, {})
    content |= _with_sd(last, values)


def _with_sd(key: str, values: Summary) -> dict[str, float]:
    sd = {} if values.sd is None else {f"{key}_sd": _rounded(values.sd)}
    return {key: _rounded(values.mean), **sd}


def _as_json(score: ComparedScore) -> dict[str, Any]:
    values = score.first
    low, high = values.interval or (None, None)
    return {
        "score": score.score,
        "n": values.n,
        "mean": _rounded(values.mean),
        "sd": None if values.sd is None else _rounded(values.sd),
        "low": None if low is None else _rounded(low),
        "high": None if high is None else _rounded(high),
    }


def _seed_report(run: SeedRun) -> dict[str, Any]:
    about = run.content["systems"][0]["about"]
    return {"seed": run.seed, "about": about, "train": dict(run.train), **_blocks(run.content)}


def _as_report(one: Mapping[str, Any]) -> dict[str, Any]:
    return {**_blocks(one), "systems": [{"about": one["about"]}]}


def _blocks(content: Mapping[str, Any]) -> dict[str, Any]:
    return {block: content[block] for block in BLOCKS if block in content}


def _student(run: SeedRun) -> str:
    return str(run.content["systems"][0]["name"])


def _plot_row(group: pd.DataFrame) -> dict[str, Any]:
    """One score of the student over seeds; an undefined one stays undefined."""
    values = group["score"].to_numpy(dtype=np.float64)
    over_seeds = summarise(values, rounding_of(f"{group['part'].iloc[0]}."))
    low, high = over_seeds.interval or (math.nan, math.nan)
    numbers: Iterable[float] = (over_seeds.mean, low, high)
    rounded = dict(zip(("score", "low", "high"), map(_rounded, numbers), strict=True))
    return {str(key): value for key, value in group.iloc[0].items()} | rounded


def read_json(path: Path, made_by: str) -> dict[str, Any]:
    """The JSON object that a stage wrote.

    Raises:
        MissingArtifactError: there is no such file.
        InputError: it holds no JSON object.
    """
    if not path.is_file():
        raise MissingArtifactError(path, made_by)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read as JSON: {error}.", f"run `dvc repro -f {made_by}`."
        ) from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object.", f"run `dvc repro -f {made_by}`.")
    return content


def read_plot(path: Path, made_by: str) -> pd.DataFrame:
    """The plot table of an evaluation, or of the summary, that a stage wrote.

    Raises:
        MissingArtifactError: there is no such file.
        InputError: it cannot be used.
    """
    if not path.is_file():
        raise MissingArtifactError(path, made_by)
    try:
        table = pd.read_csv(path)
    except (ValueError, OSError) as error:
        raise InputError(
            f"{path} cannot be read: {error}.", f"run `dvc repro -f {made_by}`."
        ) from None
    if missing := {"system", *_ROW, "score", "low", "high"} - set(table.columns):
        raise InputError(
            f"{path} lacks the columns {', '.join(sorted(missing))}.",
            f"run `dvc repro -f {made_by}`.",
        )
    return table


def _rounded(value: float) -> float:
    return round(value, _DIGITS)
