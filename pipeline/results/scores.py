"""The tidy table of scores, `reports/scores.csv`, and the evaluation reports that fill it.

One row per number:

    configuration        what was run; `workspace`, as DVC calls it, in the file of a run
    seed                 of the training; empty: over all seeds, or a system without training
    system               student, untrained, teacher
    part, task, measure  what was measured
    value                x100, except median ranks
    low, high            95 % interval, over seeds where there are several, else by bootstrap
    count                pairs, samples or queries behind the number
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from glob import escape, glob
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.core.errors import InputError, MissingArtifactError, ParamsError
from pipeline.core.files import read_json, write_csv
from pipeline.params.block import dotted

SCORE = ["part", "task", "measure"]
"""The columns that identify a score."""
COLUMNS = ["configuration", "seed", "system", *SCORE, "value", "low", "high", "count"]
WORKSPACE = "workspace"
STUDENT = "student"
"""The trained system, whatever its folder is called."""

PARTS = ("sts", "transfer", "retrieval")
"""The blocks of a report that hold headline numbers."""
_COUNTS = ("pairs", "pairs_unseen")
"""Numbers of a block that are not scores."""
_LIMIT = 1e6
"""Scores are smaller; below it, float64 keeps far more digits than a report has."""
_TYPES = {
    "seed": (int, "a whole number"),
    "data": (dict, "an object"),
    "settings": (dict, "an object"),
}


@dataclass(frozen=True)
class Report:
    """The headline numbers of one evaluation report."""

    where: str
    """The file, or whatever else it was read from; errors name it."""
    seed: int | None
    """The training seed; None where the report records none."""
    measured_with: Mapping[str, Any]
    """Evaluator, settings and data fingerprints; empty where the report records none."""
    scores: Mapping[str, float]
    """By name, such as `sts.avg` or `retrieval.text_to_image.recall@1`."""

    def has(self, part: str) -> bool:
        """Whether there are scores of a part."""
        return any(name.startswith(f"{part}.") for name in self.scores)


@dataclass(frozen=True)
class Configuration:
    """The reports of one configuration, in the order of their file names."""

    name: str
    """The folder, file or pattern that names it on the command line."""
    reports: tuple[Report, ...]

    def table(self) -> pd.DataFrame:
        """One row a seed and one column a score; a report without a seed gets its place as one."""
        seeds = [place if r.seed is None else r.seed for place, r in enumerate(self.reports)]
        return pd.DataFrame([dict(report.scores) for report in self.reports], index=seeds)


def read_configuration(where: str) -> Configuration:
    """Read the reports of a folder (all its *.json), one file, or a glob pattern.

    Raises:
        ParamsError: there is no such file.
        InputError: a file is not an evaluation report.
    """
    path = Path(where)
    pattern = f"{escape(str(path))}/*.json" if path.is_dir() else where
    found = [where] if path.is_file() else glob(pattern, recursive=True)  # noqa: PTH207  # pathlib takes no absolute pattern
    paths = sorted(path for path in map(Path, found) if path.is_file())
    if not paths:
        raise ParamsError(
            f"there is no report at {where}.",
            "name a folder with *.json, a file or a quoted pattern, written by "
            "`python -m stages.evaluate --out`.",
        )
    return Configuration(where, tuple(parse_report(read_json(one), str(one)) for one in paths))


def parse_report(content: Mapping[str, Any], where: str) -> Report:
    """Check the JSON object of one evaluation report; errors call it `where`.

    Raises:
        InputError: it is not a report, or a score is not a finite number.
    """
    scores = dict(_scores(content, where))
    if not scores:
        raise InputError(
            f"{where} is not an evaluation report: it has no score in {', '.join(PARTS)}.",
            "name only files that `python -m stages.evaluate --out` wrote.",
        )
    about = _about(content, where)
    facts = {key: about[key] for key in ("evaluator", "data", "settings") if about.get(key)}
    return Report(where, about.get("seed"), dict(dotted(facts)), scores)


def read_summary(text: str, name: str) -> Configuration:
    """The reports in the JSON of a `reports/summary.json`, as those of one configuration.

    Raises:
        InputError: it is not a summary.
    """
    try:
        reports = [
            parse_report(
                one | {"systems": [{"about": one["about"]}]}, f"{name}, seed {one['seed']}"
            )
            for one in json.loads(text)["reports"]
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"the summary of {name} cannot be used: {type(error).__name__} {error}.",
            "run `python -m stages.summary`, or the experiment, again.",
        ) from None
    if not reports:
        raise InputError(f"the summary of {name} has no seed.", "run the experiment again.")
    return Configuration(name, tuple(reports))


def write_scores(path: Path, table: pd.DataFrame) -> None:
    """Write a table of scores; `seed` and `count` stay whole numbers beside empty cells."""
    write_csv(path, table[COLUMNS].astype({"seed": "Int64", "count": "Int64"}))


def read_scores(path: Path, made_by: str) -> pd.DataFrame:
    """Read a table of scores, or the CSV beside an evaluation report, which has fewer columns.

    Raises:
        MissingArtifactError: there is no such file.
        InputError: it cannot be used.
    """
    if not path.is_file():
        raise MissingArtifactError(path, made_by)
    fix = f"run `dvc repro -f {made_by}`."
    try:
        table = pd.read_csv(path).rename(columns={"score": "value"})
    except (ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}.", fix) from None
    if missing := [column for column in COLUMNS[2:] if column not in table]:
        raise InputError(f"{path} lacks the columns {', '.join(missing)}.", fix)
    return table.reindex(columns=COLUMNS)


def _scores(content: Mapping[str, Any], where: str) -> Iterator[tuple[str, float]]:
    for name, value in dotted({part: content[part] for part in PARTS if part in content}):
        if name in PARTS:
            raise _unusable(where, f"{name} is not an object")
        if name.rsplit(".", maxsplit=1)[-1] in _COUNTS:
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and abs(value) < _LIMIT):  # also false for NaN
            raise _unusable(where, f"{name} is {str(value)[:40]}, not a finite score")
        yield name, float(value)


def _about(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What the report says of the measurement of its first system."""
    match content.get("systems", [{"about": {}}]):
        case [{"about": dict(about)}, *_]:
            for key, (kind, words) in _TYPES.items():
                value = about.get(key)
                if value is not None and type(value) is not kind:  # a bool is an int
                    fault = f"systems[0].about.{key} is {str(value)[:40]}, not {words}"
                    raise _unusable(where, fault)
            return about
    raise _unusable(where, "systems[0].about is not an object")


def _unusable(where: str, fault: str) -> InputError:
    return InputError(f"{where}: {fault}.", "leave the file out, or score that model again.")
