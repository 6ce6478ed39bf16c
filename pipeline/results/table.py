"""A table over configurations: means and spreads, and each tested against the baseline.

The first score is the primary one: the only one that is tested. What is computed and why:
docs/statistics.md.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from pipeline.core.errors import InputError, ParamsError
from pipeline.results.compare import (
    ComparedScore,
    SeedStatistics,
    adjust,
    check_comparable,
    over_seeds,
    paired_tests,
)
from pipeline.results.scores import Configuration, read_configuration

AVERAGES = (
    "sts.avg",
    "sts.avg_unseen",
    "retrieval.text_to_image.recall@1",
    "retrieval.image_to_text.recall@1",
)
"""The scores of a table that names none."""

NOISE_ERRORS = 2
"""A difference of more standard errors than this is called larger than noise."""


@dataclass(frozen=True)
class Row:
    """One configuration."""

    name: str
    seeds: tuple[int | None, ...]
    scores: Mapping[str, SeedStatistics]
    """The scores of the table that it has."""
    test: ComparedScore | None = None
    """Of the primary score against the baseline; None for the baseline and for configurations
    outside the grid. `p_adjusted` is by Holm over all tested rows."""

    @property
    def verdict(self) -> Literal["larger than noise", "within noise"] | None:
        """The difference against its standard error; None where it has no spread."""
        difference = self.test.difference if self.test else None
        if difference is None or difference.interval is None:
            return None
        noise = NOISE_ERRORS * (difference.standard_error or 0.0)
        return "larger than noise" if abs(difference.mean) > noise else "within noise"


@dataclass(frozen=True)
class ResultTable:
    """Rows in the order of the grid."""

    baseline: str
    scores: tuple[str, ...]
    """The columns; the first is the primary score, the one that is tested."""
    rows: tuple[Row, ...]


def read_folder(folder: Path) -> dict[str, Configuration]:
    """The configurations of a folder that holds a sub-folder of reports for each, by name.

    Raises:
        ParamsError: there is none.
        InputError: a file is not a report.
    """
    names = sorted({path.parent.name for path in folder.glob("*/*.json")})
    if not names:
        raise ParamsError(
            f"there is no report in {folder}.",
            "name the folder that holds CONFIGURATION/SEED.json, as benchmarks.run_grid writes.",
        )
    return {name: replace(read_configuration(str(folder / name)), name=name) for name in names}


def make_table(
    found: Mapping[str, Configuration],
    names: Sequence[str],
    baseline: str,
    *,
    patterns: Sequence[str] = (),
    partial: bool = False,
) -> ResultTable:
    """Summarise configurations, and test the primary score of each against the baseline's.

    Args:
        found: the configurations by name; those outside the grid come first and are not tested.
        names: those of the grid, in the order of the rows.
        baseline: one of them.
        patterns: scores by name or pattern, such as `sts.*`; empty: the averages.
        partial: leave out configurations that are missing, and test on the seeds that both sides
            have, instead of refusing the one and the other.

    Raises:
        ParamsError: a pattern matches no score.
        InputError: configurations are missing, their reports were not measured alike, cannot be
            paired, or lack the primary score.
    """
    missing = [name for name in names if name not in found]
    if baseline in missing or (missing and not partial):
        raise InputError(
            f"there are no results of {', '.join(missing)}.",
            "run them with `python -m stages.grid`, or leave them out with --partial, which needs "
            f"the baseline {baseline} nevertheless.",
        )
    tested = [found[name] for name in names if name in found]
    sides = [*(side for name, side in found.items() if name not in names), *tested]
    check_comparable(sides)
    scores = _select_scores(patterns, sides)
    if lacking := [side.name for side in sides if scores[0] not in side.reports[0].scores]:
        raise InputError(
            f"{', '.join(lacking)} lack {scores[0]}, the first score of the table.",
            "name another first --score, or score all configurations on the same tasks.",
        )
    others = [side for side in tested if side.name != baseline]
    raw = [(side.name, _test(scores[0], side, found[baseline], partial)) for side in others]
    pairs = [(name, test) for name, test in raw if test is not None]
    adjusted = adjust([test for _, test in pairs])
    tests = {name: test for (name, _), test in zip(pairs, adjusted, strict=True)}
    rows = []
    for side in sides:
        known, seeds = over_seeds(side), tuple(report.seed for report in side.reports)
        kept = {score: known[score] for score in scores if score in known}
        rows.append(Row(side.name, seeds, kept, tests.get(side.name)))
    return ResultTable(baseline, scores, tuple(rows))


def _select_scores(patterns: Sequence[str], sides: Sequence[Configuration]) -> tuple[str, ...]:
    """The scores that patterns name, in the order of the patterns."""
    known = list(dict.fromkeys(name for side in sides for name in side.reports[0].scores))
    matching = {pattern: fnmatch.filter(known, pattern) for pattern in (patterns or AVERAGES)}
    unknown = [pattern for pattern, names in matching.items() if not names]
    chosen = tuple(dict.fromkeys(name for names in matching.values() for name in names))
    if not chosen or (patterns and unknown):
        raise ParamsError(
            f"no report has a score {', '.join(unknown)}.", f"choose from {', '.join(known)}."
        )
    return chosen


def _test(
    primary: str, side: Configuration, baseline: Configuration, partial: bool
) -> ComparedScore | None:
    """The test of the primary score; None where there is no common seed."""
    if partial:
        seeds = {r.seed for r in side.reports} & {r.seed for r in baseline.reports}
        side, baseline = (
            replace(one, reports=tuple(r for r in one.reports if r.seed in seeds))
            for one in (side, baseline)
        )
    if not side.reports:
        return None
    return next(test for test in paired_tests(side, baseline) if test.score == primary)


def caption(table: ResultTable) -> str:
    """One line: what the numbers of the table are."""
    seeds = next(row.seeds for row in table.rows if row.name == table.baseline)
    spread = (
        f"x100 over seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))} (n = {len(seeds)}, "
        "or as column n says); ± is the standard deviation over seeds (n - 1)."
    )
    tests = [row.test for row in table.rows if row.test is not None]
    if not tests:
        return f"Mean {spread}"
    pairs = sorted({test.first.n for test in tests})
    return (
        f"Mean {spread} Difference: `{table.scores[0]}` minus that of the baseline "
        f"`{table.baseline}`, paired by seed (n = {', '.join(map(str, pairs))}), with its 95 % "
        "interval by Student's t, its standard error (SE), p of the paired t-test, and p adjusted "
        f"by Holm over {len(tests)} configurations. `larger than noise`: |difference| > "
        f"{NOISE_ERRORS} SE; else `within noise`. -: there is none."
    )


def markdown(table: ResultTable) -> str:
    """The table as Markdown, below its caption."""
    found = numbers(table)
    cells = found[["configuration", "n"]].astype(str)
    for score in table.scores:
        sd = _format(found[f"{score}.sd"], " ± {:.2f}", "")
        cells[score] = (_format(found[score], "{:.2f}", "") + sd).replace("", "-")
    if any(row.test for row in table.rows):
        low, high = (_format(found[end], "{:+.2f}") for end in ("low", "high"))
        cells["difference"] = _format(found["difference"], "{:+.2f}")
        cells["95 %"] = (low + ", " + high).replace("-, -", "-")
        cells["SE"] = _format(found["se"], "{:.2f}")
        cells["p"] = _format(found["p"], "{:.2g}")
        cells["p, Holm"] = _format(found["p_holm"], "{:.2g}")
        cells["verdict"] = found["verdict"].fillna("-")
        cells.loc[cells["configuration"] == table.baseline, "verdict"] = "baseline"
    lines = [list(cells), ["---"] * len(cells.columns), *cells.to_numpy(str)]
    escaped = ([str(cell).replace("|", "\\|") for cell in line] for line in lines)
    body = "\n".join(f"| {' | '.join(line)} |" for line in escaped)
    return f"{caption(table)}\n\n{body}\n"


def numbers(table: ResultTable) -> pd.DataFrame:
    """The table for machines: every number in a column of its own."""
    rows: list[dict[str, Any]] = []
    for row in table.rows:
        cells: dict[str, Any] = {"configuration": row.name, "n": len(row.seeds)}
        for score in table.scores:
            values = row.scores.get(score)
            cells |= {score: values and values.mean, f"{score}.sd": values and values.sd}
        test, difference = row.test, row.test and row.test.difference
        low, high = (difference and difference.interval) or (None, None)
        cells |= {"difference": difference and difference.mean, "low": low, "high": high}
        cells |= {"se": difference and difference.standard_error, "p": test and test.p}
        rows.append(cells | {"p_holm": test and test.p_adjusted, "verdict": row.verdict})
    columns = {c: "float" for c in rows[0] if c not in {"configuration", "n", "verdict"}}
    return pd.DataFrame(rows).astype(columns)


def describe(table: ResultTable) -> dict[str, Any]:
    """The table as JSON: `caption`, `baseline`, `scores`, and `rows` with every digit."""
    rows = [asdict(row) | {"verdict": row.verdict} for row in table.rows]
    facts = {"caption": caption(table), "baseline": table.baseline, "scores": table.scores}
    return facts | {"rows": rows}


def _format(values: "pd.Series[float]", form: str, missing: str = "-") -> "pd.Series[str]":
    return values.map(form.format, na_action="ignore").astype(object).fillna(missing)
