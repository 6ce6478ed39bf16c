"""Charts of a results table: equal tables give equal bytes."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.core.files import atomic_file
from pipeline.results.compare import SeedStatistics
from pipeline.results.table import ResultTable, Row

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
    """Write the chart of a table as SVG: over the values of a sweep, or differences by row.

    Args:
        out: the SVG.
        table: its primary score is drawn.
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
    rows = [row for row in table.rows if row.test is not None]
    figure, axes = _empty(height=1.2 + 0.32 * len(rows))
    for mark, (colour, shape) in _MARKS.items():
        found = {
            place: row.test.difference
            for place, row in enumerate(rows)
            if row.test and row.test.difference and _mark(row) == mark
        }
        if found:  # else it would stand in the legend
            axes.errorbar(
                [difference.mean for difference in found.values()],
                list(found),
                xerr=[_half(difference) for difference in found.values()],
                linestyle="none",
                color=colour,
                marker=shape,
                capsize=3,
                label=mark,
            )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f"{table.scores[0]} x100, difference to {table.baseline}; bars: 95 % interval")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def sweep_chart(table: ResultTable, sweep: str, values: Mapping[str, float]) -> Figure:
    """Mean of the primary score over the values of one key, with its 95 % interval."""
    rows = sorted((row for row in table.rows if row.name in values), key=lambda r: values[r.name])
    points = [(values[row.name], row.scores[table.scores[0]]) for row in rows]
    at, means = [x for x, _ in points], [mean.mean for _, mean in points]
    (first, _), (second, _) = list(_MARKS.values())[:2]
    figure, axes = _empty(height=3.2)
    bars = [_half(mean) for _, mean in points]
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


def _mark(row: Row) -> str:
    p = row.test.p_adjusted if row.test else None
    if p is not None and p < SIGNIFICANT:
        return next(iter(_MARKS))
    return row.verdict or "within noise"


def _half(values: SeedStatistics) -> float:
    """Half the width of an interval, which lies evenly about its mean; 0 where there is none."""
    return 0.0 if values.interval is None else (values.interval[1] - values.interval[0]) / 2
