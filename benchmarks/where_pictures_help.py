"""Where a method helps: its difference to another by kind of text, as a table and a plot.

    python -m benchmarks.where_pictures_help runs/family simcse best --out docs/tables/where

It reads the reports of `benchmarks.run_grid`, every sub-set of the STS tasks (Spearman x100) and
every transfer task where there are any (accuracy x100), and pairs the two configurations by seed.
The interval is that of the mean over seeds (Student's t, 95 %).
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import t as student_t

from pipeline.core.files import atomic_file, write_csv

KINDS = {
    "captions": ("MSRvid", "images", "main-captions", "SICK"),
    "news": ("MSRpar", "SMTnews", "headlines", "deft-news", "main-news", "surprise.SMTnews"),
    "tweets": ("tweet-news",),
    "forums": ("deft-forum", "main-forums", "answers-forums", "belief"),
    "questions and answers": ("answers-students", "answer-answer", "question-question"),
    "definitions": ("OnWN", "FNWN", "surprise.OnWN"),
    "edited and translated text": ("SMTeuroparl", "plagiarism", "postediting"),
}
"""Kinds of text, each with the sub-sets of it; MSRvid and SICK are sentences about pictures too."""


def main() -> None:
    """Write OUT.md, OUT.csv and OUT.svg."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reports", type=Path)
    parser.add_argument("baseline")
    parser.add_argument("method")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    baseline, method = (
        _read(arguments.reports / name) for name in (arguments.baseline, arguments.method)
    )
    table = compare(baseline, method)
    with atomic_file(arguments.out.with_suffix(".md")) as temporary:
        temporary.write_text(_markdown(table), encoding="utf-8")
    write_csv(arguments.out.with_suffix(".csv"), table, float_format="%.6g")
    with mpl.rc_context({"svg.hashsalt": "kdmcse", "svg.fonttype": "path"}):
        figure = _draw(table, f"{arguments.method} against {arguments.baseline}")
        with atomic_file(arguments.out.with_suffix(".svg")) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None})
    print(_markdown(table), end="")


def compare(baseline: pd.DataFrame, method: pd.DataFrame) -> pd.DataFrame:
    """The differences by kind of text and sub-set, those of a kind first its mean.

    Args:
        baseline: set, seed and value.
        method: likewise, with the same seeds.

    Returns:
        kind, set, baseline, difference, low and high, all x100, and seeds.
    """
    both = baseline.merge(method, on=["kind", "set", "seed"], suffixes=("", "_of_method"))
    both["difference"] = both["value_of_method"] - both["value"]
    means = both.groupby(["kind", "seed"], as_index=False)[["value", "difference"]].mean()
    rows = pd.concat([means.assign(set="mean"), both])
    found = rows.groupby(["kind", "set"])["difference"].agg(["mean", "sem", "count"])
    half = found["sem"] * student_t.ppf(0.975, (found["count"] - 1).clip(lower=1))
    table = pd.DataFrame(
        {
            "baseline": rows.groupby(["kind", "set"])["value"].mean(),
            "difference": found["mean"],
            "low": found["mean"] - half,
            "high": found["mean"] + half,
            "seeds": found["count"],
        }
    ).reset_index()
    table["order"] = table["kind"].map({kind: n for n, kind in enumerate([*KINDS, "transfer"])})
    table["first"] = table["set"] != "mean"
    return table.sort_values(["order", "first", "set"]).drop(columns=["order", "first"])


def _read(folder: Path) -> pd.DataFrame:
    """The scores by set of all reports of a configuration."""
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise SystemExit(f"{folder} has no reports: run benchmarks.run_grid first")
    rows = [
        (kind, f"{score['task']} {score['subset']}".strip(), int(path.stem), score["value"])
        for path in paths
        for score in json.loads(path.read_text(encoding="utf-8"))["systems"][0]["scores"]
        if score["split"] != "dev" and (kind := _kind(score))
    ]
    return pd.DataFrame(rows, columns=["kind", "set", "seed", "value"])


def _kind(score: dict[str, Any]) -> str | None:
    """The kind of text of a score that is drawn; None for all others."""
    if score["part"] == "transfer":
        return "transfer" if score["measure"] == "accuracy" and score["task"] != "avg" else None
    if score["measure"] != "spearman" or not score["subset"]:
        return None
    return next(kind for kind, names in KINDS.items() if score["subset"] in names)


def _markdown(table: pd.DataFrame) -> str:
    lines = ["| kind of text | set | baseline | difference | 95 % |", "|---|---|---|---|---|"]
    for row in table.itertuples():
        cells = [row.kind, row.set, f"{row.baseline:.2f}", f"{row.difference:+.2f}"]
        interval = f"{row.low:+.2f}, {row.high:+.2f}" if row.seeds > 1 else "-"
        lines.append(f"| {' | '.join([*cells, interval])} |")
    return "\n".join(lines) + "\n"


def _draw(table: pd.DataFrame, title: str) -> Figure:
    """One dot a set, the mean of a kind larger."""
    figure = Figure(figsize=(7, 1 + 0.2 * len(table)), layout="constrained")
    axes = figure.add_subplot()
    for place, row in enumerate(table.itertuples()):
        is_mean = row.set == "mean"
        axes.errorbar(
            row.difference,
            place,
            xerr=[[row.difference - row.low], [row.high - row.difference]]
            if row.seeds > 1
            else None,
            color="#d55e00" if is_mean else "#777777",
            marker="D" if is_mean else "o",
            markersize=6 if is_mean else 4,
        )
    axes.axvline(0, color="black", linewidth=0.8)
    names = [row.kind if row.set == "mean" else row.set for row in table.itertuples()]
    axes.set_yticks(range(len(table)), names)
    axes.invert_yaxis()
    axes.set_xlabel("difference, x100")
    axes.set_title(title)
    return figure


if __name__ == "__main__":
    main()
