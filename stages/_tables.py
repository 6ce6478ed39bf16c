"""How an evaluation ends: a report, and for people one table per part, one row per system."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from pipeline.evaluate.report import System, headline_name, plot_table, shortened, write_report
from pipeline.evaluate.score import Score
from stages._cli import note_times, wide_console


def finish(report: Path, systems: Sequence[System]) -> None:
    """Write the report of an evaluation and its time, and print it.

    The STS tasks of the first system come in detail, then all systems beside each other.
    """
    write_report(report, systems)
    note_times(report)
    found, first = plot_table(systems).dropna(subset="score"), systems[0].scores
    short = [{"dimensions": size, **tasks} for size, tasks in shortened(first).items()]
    recalls = _beside(found, "retrieval", ["task", "system"], "measure")
    recalls = recalls.sort_values("task", ascending=False, kind="stable")
    recalls["task"] = recalls["task"].str.replace("_", " ")
    names = {"task": "direction", "median_rank": "median rank", "ndcg@10": "nDCG@10"}
    tables = {
        "STS in detail: Spearman x100, Pearson x100": _sts_details(first),
        "STS of the first dimensions alone: Spearman x100": pd.DataFrame(short),
        "STS: Spearman x100 over all pairs of a task": _beside(found, "sts", ["system"], "task"),
        "Transfer: accuracy x100": _beside(found, "transfer", ["system"], "task"),
        "Retrieval on the pairs' test split: recall x100": recalls.rename(columns=names),
        "By mteb's evaluators, x100": pd.DataFrame(systems[0].about.get("mteb", [])),
    }
    console = wide_console(stderr=True)
    for title, rows in tables.items():
        if len(rows):
            table = Table(*map(str, rows), title=title, title_justify="left", box=None)
            for row in rows.to_numpy(object):
                table.add_row(*map(_show, row))
            console.print(table, "")


def _beside(found: pd.DataFrame, part: str, rows: list[str], columns: str) -> pd.DataFrame:
    """The scores of a part with a column for each task or measure, all in their order."""
    of_part = found[found["part"] == part]
    if of_part.empty:
        return of_part
    table = of_part.pivot_table("score", rows, columns, aggfunc="first", sort=False)
    return table[list(dict.fromkeys(of_part[columns]))].reset_index()


def _sts_details(scores: Sequence[Score]) -> pd.DataFrame:
    """One row per task: every aggregation, Pearson, the unseen pairs and the geometry."""
    rows = []
    for task in (s for s in scores if _is(s, "spearman", "all") and not s.unseen):
        found = [s for s in scores if (s.task, s.split) == (task.task, task.split)]
        unseen = next((s for s in found if s.unseen), None)
        rows.append(
            {
                "task": headline_name(task),
                "all [95 %]": _with_interval(task),
                "mean": _value(found, "spearman", "mean"),
                "wmean": _value(found, "spearman", "wmean"),
                "Pearson": _value(found, "pearson", "all"),
                "unseen [95 %]": _with_interval(unseen) if unseen else "-",
                "pairs": str(task.count),
                "dropped": str(task.count - unseen.count) if unseen else "-",
                "alignment": _value(found, "alignment", ""),
                "uniformity": _value(found, "uniformity", ""),
            }
        )
    return pd.DataFrame(rows)


def _is(score: Score, measure: str, aggregation: str) -> bool:
    of_whole = (measure, aggregation, "", None)
    return (score.measure, score.aggregation, score.subset, score.dimensions) == of_whole


def _value(scores: Sequence[Score], measure: str, aggregation: str) -> str:
    return next((_show(s.value) for s in scores if _is(s, measure, aggregation)), "")


def _with_interval(score: Score) -> str:
    if score.low is None:
        return _show(score.value)
    return f"{_show(score.value)} [{_show(score.low)}, {_show(score.high)}]"


def _show(value: Any) -> str:
    if isinstance(value, str | int):
        return str(value)
    return "-" if pd.isna(value) else f"{value:.2f}"
