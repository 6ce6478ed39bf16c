"""Statistics over the seeds of a configuration, and a paired test between two configurations.

A configuration is a set of evaluation reports, one a seed. All scores are x100, except median
ranks. What is computed and why: docs/statistics.md.
"""

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from glob import escape, glob
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from scipy.stats import sem, t, ttest_rel

from pipeline.core.errors import InputError, ParamsError
from pipeline.core.progress import log

BLOCKS = ("sts", "transfer", "retrieval")
"""The parts of a report that hold headline numbers."""

CONFIDENCE = 0.95

_COUNTS = frozenset({"pairs", "pairs_unseen"})
"""Numbers of a block that are no scores."""

_LARGEST = 1e6
"""No score is larger; below it, float64 keeps far more digits than a report has."""

_ROUNDING = {"transfer": 0.025}
_FINE_ROUNDING = 0.00025
"""Differences less than this apart may be equal, and their spread that of the rounding: accuracies
have two decimals, as in SentEval, which moves a difference by up to 0.01 either way; all other
scores have four."""


@dataclass(frozen=True)
class Report:
    """The headline numbers of one evaluation report."""

    where: str
    """The file, or what else it was read from; errors name it."""
    scores: dict[str, float]
    """By name, such as `sts.avg` or `retrieval.text_to_image.recall@1`."""
    seed: int | None
    """The training seed; None where the report records none."""
    measured_with: dict[str, Any]
    """Evaluator version and data fingerprints; empty where the report records none."""


@dataclass(frozen=True)
class Configuration:
    """The reports of one configuration, in the order of their file names."""

    name: str
    """The folder, file or pattern that names it on the command line."""
    reports: tuple[Report, ...]


@dataclass(frozen=True)
class Summary:
    """Mean and spread of one number over seeds, in the unit of the score."""

    n: int
    mean: float
    sd: float | None
    """Standard deviation with n - 1; None for one value."""
    interval: tuple[float, float] | None
    """95 % interval of the mean by Student's t; None where `note` says why."""
    note: str | None = None
    """Why there is no interval, and no p of a difference."""

    @property
    def standard_error(self) -> float | None:
        """Of the mean, sd / sqrt(n); None for one value."""
        return None if self.sd is None else self.sd / math.sqrt(self.n)


@dataclass(frozen=True)
class ComparedScore:
    """One score of a configuration, and of a second one where there is one."""

    score: str
    first: Summary
    second: Summary | None = None
    difference: Summary | None = None
    """First minus second, over pairs of equal seed."""
    p: float | None = None
    """Two-sided, of the paired t-test; None where `difference.note` says why."""
    p_adjusted: float | None = None
    """By Holm, over the task scores of the block; None for averages, which stand alone."""


def read_configuration(where: str) -> Configuration:
    """Read the reports of a configuration.

    Args:
        where: a folder (all its *.json), one file, or a glob pattern.

    Raises:
        ParamsError: there is no such file.
        InputError: a file is no evaluation report.
    """
    paths = _find(where)
    if not paths:
        raise ParamsError(
            f"there is no report at {where}.",
            "name a folder with *.json, a file or a quoted pattern, written by "
            "`python -m stages.evaluate --out`.",
        )
    return Configuration(where, tuple(read_report(path) for path in paths))


def read_report(path: Path) -> Report:
    """Read and check one evaluation report.

    Raises:
        InputError: it is no report, or a score is not a finite number.
    """
    return parse_report(_read_object(path), str(path))


def parse_report(content: Mapping[str, Any], where: str) -> Report:
    """Check the content of one evaluation report.

    Args:
        content: its JSON object.
        where: what errors call it.

    Raises:
        InputError: it is no report, or a score is not a finite number.
    """
    scores = dict(_flatten(where, _read_blocks(where, content)))
    if not scores:
        raise InputError(
            f"{where} is no evaluation report: no score in {', '.join(BLOCKS)}.",
            "name only files that `python -m stages.evaluate --out` wrote, if need be by a "
            "quoted pattern.",
        )
    about = _read_about(where, content)
    return Report(where, scores, _read_seed(where, about), _read_measured_with(where, about))


def compare(first: Configuration, second: Configuration | None = None) -> list[ComparedScore]:
    """Summarise one configuration, or test the first against the second.

    Args:
        first: at least one report.
        second: reports of the same seeds.

    Returns:
        One entry a score, in the order of the first report.

    Raises:
        InputError: the reports were not measured alike, or cannot be paired.
    """
    sides = [first] if second is None else [first, second]
    _check_comparable([report for side in sides for report in side.reports])
    for side in sides:
        _check_seeds_once(side)
    names = list(first.reports[0].scores)
    if second is None:
        return [ComparedScore(name, summarise_score(name, first.reports)) for name in names]
    pairs = pair_reports(first, second)
    return _test(names, [pair[0] for pair in pairs], [pair[1] for pair in pairs])


def pair_reports(first: Configuration, second: Configuration) -> list[tuple[Report, Report]]:
    """Pair the reports of two configurations by seed, or by file name where none has a seed.

    Raises:
        InputError: the seeds differ or are missing in some, or there are fewer than two pairs.
    """
    pairs = match_reports(first, second)
    if len(pairs) < 2:  # noqa: PLR2004
        raise InputError(
            f"{first.name} and {second.name} make one pair of reports; a test needs two or more.",
            "train and score both configurations with more seeds.",
        )
    return pairs


def match_reports(first: Configuration, second: Configuration) -> list[tuple[Report, Report]]:
    """As `pair_reports`, but one pair is enough.

    Raises:
        InputError: the seeds differ or are missing in some.
    """
    both = [*first.reports, *second.reports]
    _check_no_file_twice(both)
    unknown = [report for report in both if report.seed is None]
    if unknown and len(unknown) < len(both):
        raise InputError(
            f"{unknown[0].where} records no seed, while other reports do.",
            "score that model again, or leave the file out.",
        )
    return _pair_in_order(first, second) if unknown else _pair_by_seed(first, second)


def compare_score(score: str, first: Sequence[Report], second: Sequence[Report]) -> ComparedScore:
    """Test one score of paired reports; `p_adjusted` is left to the caller, who knows the family.

    Args:
        score: which, by name.
        first: reports of a configuration.
        second: the same number of another, in the order of their partners.
    """
    mine, yours = values_of(first, score), values_of(second, score)
    rounding = rounding_of(score)
    return ComparedScore(
        score=score,
        first=summarise(mine, rounding),
        second=summarise(yours, rounding),
        difference=summarise(mine - yours, rounding),
        p=paired_p(mine, yours, rounding),
    )


def summarise_score(score: str, reports: Sequence[Report]) -> Summary:
    """Mean and spread of one score over reports that all have it."""
    return summarise(values_of(reports, score), rounding_of(score))


def values_of(reports: Sequence[Report], score: str) -> Float64[np.ndarray, " seeds"]:
    """One score of several reports, in their order."""
    return np.array([report.scores[score] for report in reports], dtype=np.float64)


def rounding_of(score: str) -> float:
    """Differences of a score that are less than this apart may be equal, in its unit."""
    return _ROUNDING.get(score.partition(".")[0], _FINE_ROUNDING)


def summarise(values: Float64[np.ndarray, " seeds"], rounding: float = _FINE_ROUNDING) -> Summary:
    """Mean, standard deviation and 95 % interval of the mean, mean +- t(n - 1) * sd / sqrt(n)."""
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return Summary(n, mean, sd=None, interval=None, note="one value has no spread")
    sd = float(np.std(values, ddof=1))
    if np.ptp(values) < rounding:
        return Summary(
            n,
            mean,
            sd,
            interval=None,
            note="all values are equal, up to rounding: t is not defined",
        )
    low, high = t.interval(CONFIDENCE, n - 1, loc=mean, scale=sem(values))
    return Summary(n, mean, sd, interval=(float(low), float(high)))


def paired_p(
    first: Float64[np.ndarray, " seeds"],
    second: Float64[np.ndarray, " seeds"],
    rounding: float = _FINE_ROUNDING,
) -> float | None:
    """Two-sided p of the paired t-test; None where all differences are equal.

    Equal differences make t = mean / 0. The p = 0 that follows would claim more than any number
    of seeds can show.
    """
    if np.ptp(first - second) < rounding:
        return None
    return float(ttest_rel(first, second).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment (Scandinavian Journal of Statistics 6, 1979, 65-70).

    The i-th smallest of m becomes the largest of (m - j + 1) * p_j over j <= i, at most 1. A None
    stays None and counts in m, which errs on the careful side.
    """
    adjusted: list[float | None] = [None] * len(p_values)
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        adjusted[index] = largest
    return adjusted


def check_measured_alike(reports: Sequence[Report]) -> None:
    """Refuse reports of another evaluator, other settings or other data.

    The data of a part that only one of two reports has scores of is not compared.

    Raises:
        InputError: naming two reports and what differs.
    """
    for one, other in itertools.combinations(reports, 2):
        _check_same_measure(one, other)


def check_configuration(side: Configuration) -> None:
    """Refuse a configuration whose reports are not alike, or of which two have one seed.

    Raises:
        InputError: naming the reports.
    """
    for other in side.reports[1:]:
        _check_same_scores(side.reports[0], other)
    check_measured_alike(side.reports)
    _check_seeds_once(side)


def is_average(score: str) -> bool:
    """Whether a score is an average of others: `avg`, `avg_unseen`."""
    return score.rsplit(".", maxsplit=1)[-1].split("_", maxsplit=1)[0] == "avg"


def describe(*sides: Configuration, scores: Sequence[ComparedScore]) -> dict[str, Any]:
    """The comparison as JSON: `configurations` with their files, and `scores` by name."""
    return {
        "configurations": [
            {
                "name": side.name,
                "reports": [{"file": r.where, "seed": r.seed} for r in side.reports],
            }
            for side in sides
        ],
        "scores": {score.score: asdict(score) for score in scores},
    }


def _test(
    names: Sequence[str], first: Sequence[Report], second: Sequence[Report]
) -> list[ComparedScore]:
    tests = [compare_score(name, first, second) for name in names]
    adjusted = _adjust_by_block({test.score: test.p for test in tests})
    return [replace(test, p_adjusted=adjusted.get(test.score)) for test in tests]


def _adjust_by_block(p_values: Mapping[str, float | None]) -> dict[str, float | None]:
    adjusted: dict[str, float | None] = {}
    for block in BLOCKS:
        family = [s for s in p_values if s.startswith(f"{block}.") and not is_average(s)]
        adjusted |= zip(family, holm([p_values[score] for score in family]), strict=True)
    return adjusted


def _find(where: str) -> list[Path]:
    if Path(where).is_file():
        return [Path(where)]
    pattern = f"{escape(str(Path(where)))}/*.json" if Path(where).is_dir() else where
    found = glob(pattern, recursive=True)  # noqa: PTH207  # pathlib takes no absolute pattern
    return sorted(path for path in map(Path, found) if path.is_file())


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path} cannot be read as JSON: {reason}.", "leave it out, or write it again."
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object.", "leave it out, or write it again.")
    return content


def _read_blocks(where: str, content: Mapping[str, Any]) -> dict[str, Any]:
    blocks = {name: content[name] for name in BLOCKS if name in content}
    for name, block in blocks.items():
        if not isinstance(block, dict):
            raise InputError(f"{where}: {name} is no object.", "score that model again.")
    return blocks


def _flatten(where: str, block: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    for key, value in block.items():
        if isinstance(value, dict):
            yield from _flatten(where, value, f"{above}{key}.")
        elif key not in _COUNTS:
            yield f"{above}{key}", _read_number(where, f"{above}{key}", value)


def _read_number(where: str, name: str, value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and abs(value) < _LARGEST:  # NaN is below nothing
        return float(value)
    raise InputError(
        f"{where}: {name} is {str(value)[:40]}, not a finite score.",
        "leave the file out, or score that model again.",
    )


def _read_about(where: str, content: Mapping[str, Any]) -> dict[str, Any]:
    if "systems" not in content:
        return {}
    match content["systems"]:
        case [{"about": dict(about)}, *_]:
            return about
    raise InputError(
        f"{where}: systems[0].about is no object.", "leave the file out, or score the model again."
    )


def _read_seed(where: str, about: Mapping[str, Any]) -> int | None:
    seed = about.get("seed")
    if seed is None or type(seed) is int:  # a bool is an int, but no seed
        return seed
    raise InputError(
        f"{where}: systems[0].about.seed is {str(seed)[:40]}, not a whole number or null.",
        "leave the file out, or score the model again.",
    )


def _read_measured_with(where: str, about: Mapping[str, Any]) -> dict[str, Any]:
    found = {"evaluator": about["evaluator"]} if "evaluator" in about else {}
    for group in ("data", "settings"):
        facts = about.get(group) or {}
        if not isinstance(facts, dict):
            raise InputError(
                f"{where}: systems[0].about.{group} is no object.",
                "leave the file out, or score the model again.",
            )
        found |= {f"{group}.{name}": value for name, value in facts.items()}
    return found


def _check_comparable(reports: Sequence[Report]) -> None:
    for other in reports[1:]:
        _check_same_scores(reports[0], other)
    check_measured_alike(reports)
    if len(reports) > 1 and not reports[0].measured_with:
        log.warning("no report records its data and evaluator; they are taken to be the same")


def _check_same_scores(one: Report, other: Report) -> None:
    for has, lacks in ((one, other), (other, one)):
        missing = [score for score in has.scores if score not in lacks.scores]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""  # noqa: PLR2004
            raise InputError(
                f"{lacks.where} lacks {', '.join(missing[:3])}{more}, which {has.where} has.",
                "score all models on the same tasks.",
            )


def _check_same_measure(one: Report, other: Report) -> None:
    keys = one.measured_with.keys() | other.measured_with.keys()
    both = (one.measured_with.keys() & other.measured_with.keys()) - {
        f"data.{part}" for part in BLOCKS if _has(one, part) != _has(other, part)
    }
    unscored = {f"data.{part}" for part in BLOCKS if not (_has(one, part) and _has(other, part))}
    for key in sorted((keys - unscored) | both):
        values = [report.measured_with.get(key, "not recorded") for report in (one, other)]
        if values[0] != values[1]:
            raise InputError(
                f"{one.where} and {other.where} were not measured alike: {key} differs "
                f"({str(values[0])[:12]} and {str(values[1])[:12]}).",
                "score the models again, with one evaluator on the same data.",
            )


def _has(report: Report, part: str) -> bool:
    return any(score.startswith(f"{part}.") for score in report.scores)


def _check_seeds_once(side: Configuration) -> None:
    counts = Counter(report.seed for report in side.reports if report.seed is not None)
    seed, times = counts.most_common(1)[0] if counts else (None, 1)
    if times > 1:
        files = ", ".join(report.where for report in side.reports if report.seed == seed)
        raise InputError(
            f"{side.name} has seed {seed} {times} times: {files}.",
            "leave one report a seed.",
        )


def _check_no_file_twice(reports: Sequence[Report]) -> None:
    path, times = Counter(Path(report.where).resolve() for report in reports).most_common(1)[0]
    if times > 1:
        raise InputError(
            f"{path} belongs to both configurations.", "name two configurations without overlap."
        )


def _pair_by_seed(first: Configuration, second: Configuration) -> list[tuple[Report, Report]]:
    mine = {report.seed: report for report in first.reports}
    yours = {report.seed: report for report in second.reports}
    alone = [
        f"only {side.name} has seed {', '.join(str(seed) for seed in seeds)}"
        for side, seeds in ((first, mine.keys() - yours), (second, yours.keys() - mine))
        if seeds
    ]
    if alone:
        raise InputError(
            f"the seeds differ: {'; '.join(alone)}.",
            "train and score both configurations with the same seeds, or leave reports out.",
        )
    return [(mine[report.seed], yours[report.seed]) for report in first.reports]


def _pair_in_order(first: Configuration, second: Configuration) -> list[tuple[Report, Report]]:
    if len(first.reports) != len(second.reports):
        raise InputError(
            f"{first.name} has {len(first.reports)} reports and {second.name} "
            f"{len(second.reports)}, and no report records a seed to pair them by.",
            "give both the same number of reports.",
        )
    pairs = list(zip(first.reports, second.reports, strict=True))
    shown = ", ".join(f"{mine.where} with {yours.where}" for mine, yours in pairs)
    log.warning("no report records its seed; paired in the order of file names: %s", shown)
    return pairs
