"""Statistics over the seeds of a configuration, and a paired test between two configurations.

A configuration is a set of evaluation reports, one per seed. All scores are x100, except median
ranks. What is computed and why: docs/statistics.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float64
from scipy.stats import sem, t, ttest_rel

from pipeline.core.errors import InputError
from pipeline.core.progress import log
from pipeline.results.scores import PARTS, Configuration, Report

CONFIDENCE = 0.95

_ROUNDING = {"transfer": 0.025}
_FINE_ROUNDING = 0.00025
"""Differences less than this apart may be equal, and their spread that of the rounding: accuracies
have two decimals, as in SentEval, which moves a difference by up to 0.01 either way; all other
scores have four."""


@dataclass(frozen=True)
class SeedStatistics:
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

    def shown(self) -> tuple[str, str]:
        """Standard deviation and interval with two decimals; `-` for none."""
        ends = [] if self.interval is None else [f"{end:.2f}" for end in self.interval]
        return "-" if self.sd is None else f"{self.sd:.2f}", ", ".join(ends) or "-"


@dataclass(frozen=True)
class ComparedScore:
    """One score of a configuration, and of a second one where there is one."""

    score: str
    first: SeedStatistics
    second: SeedStatistics | None = None
    difference: SeedStatistics | None = None
    """First minus second, over pairs of equal seed."""
    p: float | None = None
    """Two-sided, of the paired t-test; None where `difference.note` says why."""
    p_adjusted: float | None = None
    """By Holm, over the task scores of the part; None for averages, which stand alone."""


def compare(first: Configuration, second: Configuration | None = None) -> list[ComparedScore]:
    """Summarise one configuration, or test the first against the second, of the same seeds.

    Returns:
        One entry per score, in the order of the first report.

    Raises:
        InputError: the reports were not measured alike, or cannot be paired.
    """
    sides = [first] if second is None else [first, second]
    reports = [report for side in sides for report in side.reports]
    _check_same_scores(reports)
    check_comparable(sides)
    if len(reports) > 1 and not reports[0].measured_with:
        log.warning("no report records its data and evaluator; they are taken to be the same")
    if second is None:
        return [ComparedScore(name, found) for name, found in over_seeds(first).items()]
    tests = {test.score: test for test in paired_tests(first, second)}
    if len(first.reports) == 1:
        raise InputError(
            f"{first.name} and {second.name} make one pair of reports; a test needs two or more.",
            "train and score both configurations with more seeds.",
        )
    for part in PARTS:
        tasks = [name for name in tests if name.startswith(f"{part}.") and not is_average(name)]
        tests |= zip(tasks, adjust([tests[name] for name in tasks]), strict=True)
    return list(tests.values())


def check_comparable(sides: Sequence[Configuration]) -> None:
    """Refuse configurations whose numbers cannot be compared.

    The data of a part that only one of two reports has scores of may differ.

    Raises:
        InputError: two reports have another evaluator, other settings or other data; or two of one
            configuration have other scores or the same seed.
    """
    for side in sides:
        _check_same_scores(side.reports)
        seeds = [report.seed for report in side.reports if report.seed is not None]
        if twice := [seed for seed in seeds if seeds.count(seed) > 1]:
            files = ", ".join(r.where for r in side.reports if r.seed == twice[0])
            what = f"{side.name} has seed {twice[0]} {seeds.count(twice[0])} times: {files}."
            raise InputError(what, "keep one report per seed.")
    _check_measured_alike([report for side in sides for report in side.reports])


def over_seeds(side: Configuration) -> dict[str, SeedStatistics]:
    """Mean and spread of every score of a configuration, by name."""
    table = side.table()
    names = side.reports[0].scores
    return {name: summarise(table[name].to_numpy(), rounding_of(name)) for name in names}


def paired_tests(first: Configuration, second: Configuration) -> list[ComparedScore]:
    """Test the scores that two configurations share, paired by seed.

    Where no report has a seed, they are paired in the order of file names, with a warning.

    Returns:
        `p_adjusted` is left to `adjust`.

    Raises:
        InputError: the seeds differ or are missing in some, or a report belongs to both.
    """
    files = [{Path(report.where).resolve() for report in side.reports} for side in (first, second)]
    if both := files[0] & files[1]:
        raise InputError(
            f"{min(both)} belongs to both configurations.",
            "name two configurations without overlap.",
        )
    reports = [*first.reports, *second.reports]
    unknown = [report for report in reports if report.seed is None]
    if unknown and len(unknown) < len(reports):
        raise InputError(
            f"{unknown[0].where} records no seed, while other reports do.",
            "score that model again, or leave the file out.",
        )
    (_check_order if unknown else _check_seeds)(first, second)
    left = first.table()
    right, tests = second.table().reindex(left.index), []
    for name in (name for name in first.reports[0].scores if name in right):
        mine, yours, rounding = left[name].to_numpy(), right[name].to_numpy(), rounding_of(name)
        one, two, gain = (summarise(values, rounding) for values in (mine, yours, mine - yours))
        tests.append(ComparedScore(name, one, two, gain, paired_p(mine, yours, rounding)))
    return tests


def adjust(family: Sequence[ComparedScore]) -> list[ComparedScore]:
    """The tests of a family, with p adjusted by Holm."""
    adjusted = holm([test.p for test in family])
    return [replace(test, p_adjusted=p) for test, p in zip(family, adjusted, strict=True)]


def rounding_of(score: str) -> float:
    """Differences of a score, or of those of a part, less than this apart may be equal."""
    return _ROUNDING.get(score.partition(".")[0], _FINE_ROUNDING)


def summarise(
    values: Float64[np.ndarray, " seeds"], rounding: float = _FINE_ROUNDING
) -> SeedStatistics:
    """Mean, standard deviation and 95 % interval of the mean, mean +- t(n - 1) * sd / sqrt(n)."""
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return SeedStatistics(n, mean, sd=None, interval=None, note="one value has no spread")
    sd = float(np.std(values, ddof=1))
    if np.ptp(values) < rounding:
        note = "all values are equal, up to rounding: t is not defined"
        return SeedStatistics(n, mean, sd, interval=None, note=note)
    low, high = t.interval(CONFIDENCE, n - 1, loc=mean, scale=sem(values))
    return SeedStatistics(n, mean, sd, interval=(float(low), float(high)))


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
    p = np.array(p_values, dtype=np.float64)  # NaN for None, which sorts last
    order = np.argsort(p)
    steps = (len(p) - np.arange(len(p))) * p[order]
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(steps))
    return [None if np.isnan(value) else float(value) for value in adjusted]


def is_average(score: str) -> bool:
    """Whether a score is an average of others: `avg`, `avg_unseen`."""
    return score.rsplit(".", maxsplit=1)[-1].split("_", maxsplit=1)[0] == "avg"


def _check_same_scores(reports: Sequence[Report]) -> None:
    lacks = pd.DataFrame([report.scores for report in reports]).isna()
    for place in lacks.index[lacks.any(axis=1)]:
        missing = list(lacks.columns[lacks.loc[place]])
        has = next(report.where for report in reports if missing[0] in report.scores)
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""  # noqa: PLR2004
        raise InputError(
            f"{reports[place].where} lacks {', '.join(missing[:3])}{more}, which {has} has.",
            "score all models on the same tasks.",
        )


def _check_measured_alike(reports: Sequence[Report]) -> None:
    facts = pd.DataFrame([report.measured_with for report in reports], dtype=object)
    for key in sorted(map(str, facts)):
        part = key.removeprefix("data.")
        scored = pd.Series([part not in PARTS or report.has(part) for report in reports])
        for known in (facts[key][scored].fillna("not recorded"), facts[key][~scored].dropna()):
            for place in known.index[known != known.iloc[0]] if len(known) else []:
                first, other = (reports[at].where for at in (known.index[0], place))
                raise InputError(
                    f"{first} and {other} were not measured alike: {key} differs "
                    f"({str(known.iloc[0])[:12]} and {str(known[place])[:12]}).",
                    "score the models again, with one evaluator on the same data.",
                )


def _check_seeds(first: Configuration, second: Configuration) -> None:
    mine, yours = ({r.seed for r in side.reports if r.seed is not None} for side in (first, second))
    alone = [
        f"only {side.name} has seed {', '.join(map(str, sorted(seeds)))}"
        for side, seeds in ((first, mine - yours), (second, yours - mine))
        if seeds
    ]
    if alone:
        raise InputError(
            f"the seeds differ: {'; '.join(alone)}.",
            "train and score both configurations with the same seeds, or leave reports out.",
        )


def _check_order(first: Configuration, second: Configuration) -> None:
    if len(first.reports) != len(second.reports):
        raise InputError(
            f"{first.name} has {len(first.reports)} reports and {second.name} "
            f"{len(second.reports)}, and no report records a seed to pair them by.",
            "give both the same number of reports.",
        )
    pairs = zip(first.reports, second.reports, strict=True)
    shown = ", ".join(f"{mine.where} with {yours.where}" for mine, yours in pairs)
    log.warning("no report records its seed; paired in the order of file names: %s", shown)
