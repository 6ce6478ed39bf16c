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
    Configuration,
    Report,
    Summary,
    check_configuration,
    check_measured_alike,
    compare_score,
    holm,
    match_reports,
    read_configuration,
    summarise_score,
)

AVERAGES = (
    "sts.avg",
    "sts.avg_unseen",
    "retrieval.text_to_image.recall@1",
    "retrieval.image_to_text.recall@1",
)
"""The scores of a table that names none."""

NOISE_ERRORS = 2
"""A difference of more standard errors than this is called larger than noise."""

Verdict = Literal["larger than noise", "within noise"]


@dataclass(frozen=True)
class Row:
    """One configuration."""

    name: str
    seeds: tuple[int | None, ...]
    scores: Mapping[str, Summary]
    """The scores of the table that it has."""
    test: ComparedScore | None = None
    """Of the primary score against the baseline; None for the baseline and for configurations
    outside the grid. `p_adjusted` is by Holm over all tested rows."""

    @property
    def verdict(self) -> Verdict | None:
        """The difference against its standard error; None where there is no spread to hold."""
        difference = self.test.difference if self.test else None
        if difference is None or difference.interval is None:
            return None
        error = difference.standard_error or 0.0
        return (
            "larger than noise" if abs(difference.mean) > NOISE_ERRORS * error else "within noise"
        )


@dataclass(frozen=True)
class ResultTable:
    """Rows in the order of the grid."""

    baseline: str
    scores: tuple[str, ...]
    """The columns; the first is the primary score."""
    rows: tuple[Row, ...]

    @property
    def primary(self) -> str:
        """The score that is tested."""
        return self.scores[0]


def read_folder(folder: Path) -> dict[str, Configuration]:
    """The configurations of a folder that holds a sub-folder of reports for each, by name.

    Raises:
        ParamsError: there is none.
        InputError: a file is no report.
    """
    names = sorted({path.parent.name for path in folder.glob("*/*.json")})
    if not names:
        raise ParamsError(
            f"there is no report in {folder}.",
            "name the folder that holds CONFIGURATION/SEED.json, as benchmarks.run_grid writes.",
        )
    return {name: replace(read_configuration(str(folder / name)), name=name) for name in names}


def in_order(
    found: Mapping[str, Configuration], names: Sequence[str], baseline: str, *, partial: bool
) -> list[Configuration]:
    """The configurations of a grid, in its order.

    Args:
        found: what there is, by name.
        names: the grid's.
        baseline: which must be there in any case.
        partial: leave out what is missing.

    Raises:
        InputError: naming all that are missing.
    """
    missing = [name for name in names if name not in found]
    if baseline in missing or (missing and not partial):
        raise InputError(
            f"there are no results of {', '.join(missing)}.",
            "run them with `python -m stages.grid`, or leave them out with --partial, which needs "
            f"the baseline {baseline} nevertheless.",
        )
    return [found[name] for name in names if name in found]


def make_table(
    tested: Sequence[Configuration],
    baseline: str,
    *,
    patterns: Sequence[str] = (),
    others: Sequence[Configuration] = (),
    partial: bool = False,
) -> ResultTable:
    """Summarise configurations, and test the primary score of each against the baseline's.

    Args:
        tested: configurations with the baseline among them, in the order of the rows.
        baseline: the name of one of them.
        patterns: scores by name or pattern, such as `sts.*`; empty: the averages.
        others: configurations to show above them without a test.
        partial: test on the seeds that both have, instead of refusing other seeds.

    Raises:
        ParamsError: a pattern fits no score.
        InputError: reports were not measured alike, cannot be paired, or lack the primary score.
    """
    sides = [*others, *tested]
    for side in sides:
        check_configuration(side)
    check_measured_alike([report for side in sides for report in side.reports])
    scores = select_scores(patterns, sides)
    _check_primary(scores[0], sides)
    against = next(side for side in tested if side.name == baseline)
    tests = {
        side.name: _test(scores[0], side, against, partial=partial)
        for side in tested
        if side is not against
    }
    adjusted = _adjust({name: test for name, test in tests.items() if test is not None})
    rows = tuple(_row(side, scores, adjusted.get(side.name)) for side in sides)
    return ResultTable(baseline, scores, rows)


def select_scores(
    patterns: Sequence[str], configurations: Sequence[Configuration]
) -> tuple[str, ...]:
    """The scores that patterns name, in the order of the patterns.

    Raises:
        ParamsError: a pattern fits no score of any configuration.
    """
    known = list(dict.fromkeys(name for side in configurations for name in side.reports[0].scores))
    fitting = {pattern: fnmatch.filter(known, pattern) for pattern in (patterns or AVERAGES)}
    unknown = [pattern for pattern, names in fitting.items() if not names]
    chosen = tuple(dict.fromkeys(name for names in fitting.values() for name in names))
    if not chosen or (patterns and unknown):
        raise ParamsError(
            f"no report has a score {', '.join(unknown)}.", f"choose from {', '.join(known)}."
        )
    return chosen


def caption(table: ResultTable) -> str:
    """One line: what the numbers of the table are."""
    tests = [row.test for row in table.rows if row.test is not None]
    spread = f"x100 over {_seeds(table)}; ± is the standard deviation over seeds (n - 1)."
    if not tests:
        return f"Mean {spread}"
    pairs = sorted({test.difference.n for test in tests if test.difference})
    return (
        f"Mean {spread} Difference: `{table.primary}` minus that of the baseline "
        f"`{table.baseline}`, paired by seed (n = {', '.join(map(str, pairs))}), with its 95 % "
        "interval by Student's t, its standard error (SE), p of the paired t-test, and p adjusted "
        f"by Holm over {len(tests)} configurations. `larger than noise`: |difference| > "
        f"{NOISE_ERRORS} SE; else `within noise`. -: there is none."
    )


def markdown(table: ResultTable) -> str:
    """The table as Markdown, below its caption."""
    rows = [_cells(table, row) for row in table.rows]
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *(list(row.values()) for row in rows)]
    body = "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )
    return f"{caption(table)}\n\n{body}\n"


def numbers(table: ResultTable) -> pd.DataFrame:
    """The table for machines: every number in a column of its own."""
    return pd.DataFrame([_numbers(table, row) for row in table.rows])


def describe(table: ResultTable) -> dict[str, Any]:
    """The table as JSON: `caption`, `baseline`, `scores`, and `rows` with every digit."""
    rows = [asdict(row) | {"verdict": row.verdict} for row in table.rows]
    return {
        "caption": caption(table),
        "baseline": table.baseline,
        "scores": list(table.scores),
        "rows": rows,
    }


def _check_primary(primary: str, sides: Sequence[Configuration]) -> None:
    if lacking := [side.name for side in sides if primary not in side.reports[0].scores]:
        raise InputError(
            f"{', '.join(lacking)} lack {primary}, the first score of the table.",
            "name another first --score, or score all configurations on the same tasks.",
        )


def _test(
    primary: str, side: Configuration, baseline: Configuration, *, partial: bool
) -> ComparedScore | None:
    if partial:
        side, baseline = _on_common_seeds(side, baseline), _on_common_seeds(baseline, side)
    if not side.reports:
        return None
    mine, yours = zip(*match_reports(side, baseline), strict=True)
    return compare_score(primary, mine, yours)


def _on_common_seeds(side: Configuration, other: Configuration) -> Configuration:
    seeds = {report.seed for report in other.reports}
    return replace(side, reports=tuple(r for r in side.reports if r.seed in seeds))


def _adjust(tests: Mapping[str, ComparedScore]) -> dict[str, ComparedScore]:
    adjusted = holm([test.p for test in tests.values()])
    return {
        name: replace(test, p_adjusted=p)
        for (name, test), p in zip(tests.items(), adjusted, strict=True)
    }


def _row(side: Configuration, scores: Sequence[str], test: ComparedScore | None) -> Row:
    reports: tuple[Report, ...] = side.reports
    found = {
        score: summarise_score(score, reports) for score in scores if score in reports[0].scores
    }
    return Row(side.name, tuple(report.seed for report in reports), found, test)


def _seeds(table: ResultTable) -> str:
    rows = {row.name: row.seeds for row in table.rows}
    seeds = rows[table.baseline]
    named = "seed" if len(seeds) == 1 else "seeds"
    return f"{named} {', '.join(map(str, seeds))} (n = {len(seeds)}, or as column n says)"


def _cells(table: ResultTable, row: Row) -> dict[str, str]:
    scores = {score: _show(row.scores.get(score)) for score in table.scores}
    cells = {"configuration": row.name, "n": str(len(row.seeds)), **scores}
    return cells | (_test_cells(table, row) if any(r.test for r in table.rows) else {})


def _test_cells(table: ResultTable, row: Row) -> dict[str, str]:
    found = _test_numbers(row.test)
    interval = "-" if found["low"] is None else f"{found['low']:+.2f}, {found['high']:+.2f}"
    verdict = "baseline" if row.name == table.baseline else row.verdict
    return {
        "difference": _fixed(found["difference"], "+.2f"),
        "95 %": interval,
        "SE": _fixed(found["se"], ".2f"),
        "p": _fixed(found["p"], ".2g"),
        "p, Holm": _fixed(found["p_holm"], ".2g"),
        "verdict": verdict or "-",
    }


def _test_numbers(test: ComparedScore | None) -> dict[str, float | None]:
    if test is None or test.difference is None:
        return dict.fromkeys(("difference", "low", "high", "se", "p", "p_holm"))
    low, high = test.difference.interval or (None, None)
    return {
        "difference": test.difference.mean,
        "low": low,
        "high": high,
        "se": test.difference.standard_error,
        "p": test.p,
        "p_holm": test.p_adjusted,
    }


def _show(values: Summary | None) -> str:
    if values is None:
        return "-"
    return f"{values.mean:.2f}" + ("" if values.sd is None else f" ± {values.sd:.2f}")


def _fixed(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _numbers(table: ResultTable, row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {"configuration": row.name, "n": len(row.seeds)}
    for score in table.scores:
        values = row.scores.get(score)
        found[score] = values.mean if values else None
        found[f"{score}.sd"] = values.sd if values else None
    return found | _test_numbers(row.test) | {"verdict": row.verdict}
