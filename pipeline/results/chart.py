"""Charts of a results table: equal tables give equal bytes."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.core.files import atomic_file
from pipeline.results.compare import SeedStatistics
from pipeline.results.table import ResultTable

SIGNIFICANT = 0.05
"""Of p adjusted by Holm."""

_MARKS = {
    f"p, Holm < {SIGNIFICANT}": ("#0072b2", "D"),
    "larger than noise": ("#d55e00", "s"),
    "within noise": ("#777777", "o"),
}
"""Colour and shape by kind of result; these colours (Okabe and Ito) suit the colour-blind."""


def write_chart(
    out: Path, table: ResultTable, sweep: str | None, values: Mapping[str, float]
) -> None:
    """Write the chart of a table's primary score as SVG.

    Args:
        out: the SVG.
        table: what is drawn.
        sweep: the swept key; None: draw the differences to the baseline.
        values: of that key, by configuration.

    Raises:
        ResourceError: the file cannot be written.
    """
    # matplotlib draws the ids of SVG elements at random without a salt
    with mpl.rc_context({"svg.hashsalt": "kdmcse", "svg.fonttype": "path"}):
        figure = sweep_chart(table, sweep, values) if sweep else difference_chart(table)
        with atomic_file(out) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None})


def difference_chart(table: ResultTable) -> Figure:
    """One dot per tested configuration: the difference to the baseline with its 95 % interval."""
    tests = [(row, row.test, row.test.difference) for row in table.rows if row.test]
    points: dict[str, list[tuple[int, float, float]]] = {mark: [] for mark in _MARKS}
    for place, (row, test, difference) in enumerate(tests):
        if difference is not None:
            p = test.p_adjusted
            is_significant = p is not None and p < SIGNIFICANT
            mark = next(iter(_MARKS)) if is_significant else row.verdict or "within noise"
            points[mark].append((place, difference.mean, _half(difference)))
    figure, axes = _empty(height=1.2 + 0.32 * len(tests))
    for mark, found in points.items():
        if found:  # else it would stand in the legend
            at, means, bars = zip(*found, strict=True)
            colour, shape = _MARKS[mark]
            axes.errorbar(means, at, xerr=bars, fmt=shape, color=colour, capsize=3, label=mark)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(tests)), [row.name for row, *_ in tests])
    axes.set_ylim(len(tests) - 0.5, -0.5)
    axes.set_xlabel(f"{table.scores[0]} x100, difference to {table.baseline}; bars: 95 % interval")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def sweep_chart(table: ResultTable, sweep: str, values: Mapping[str, float]) -> Figure:
    """Mean of the primary score over the values of one key, with its 95 % interval."""
    rows = sorted((row for row in table.rows if row.name in values), key=lambda r: values[r.name])
    at, found = [values[row.name] for row in rows], [row.scores[table.scores[0]] for row in rows]
    means, bars = [one.mean for one in found], [_half(one) for one in found]
    (first, _), (second, _) = list(_MARKS.values())[:2]
    figure, axes = _empty(height=3.2)
    axes.errorbar(at, means, bars, color=first, marker="o", capsize=3, label="mean")
    base = [row.name for row in rows].index(table.baseline)
    label = f"baseline {table.baseline}"
    axes.plot(at[base], means[base], "D", color=second, label=label, zorder=3)
    axes.set_xlabel(sweep)
    axes.set_ylabel(f"{table.scores[0]} x100; bars: 95 % interval")
    axes.legend(frameon=False)
    return figure


def _empty(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _half(values: SeedStatistics) -> float:
    """Half the width of an interval, which lies evenly about its mean; 0 where there is none."""
    return 0.0 if values.interval is None else (values.interval[1] - values.interval[0]) / 2
