"""Charts of a results table: equal tables give equal bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.core.files import atomic_file
from pipeline.results.compare import Summary
from pipeline.results.table import ResultTable, Row

SIGNIFICANT = 0.05
"""Of p adjusted by Holm."""

_HASH_SALT = "kdmcse"
"""What the ids of SVG elements are made from; matplotlib draws one at random otherwise."""


@dataclass(frozen=True)
class _Mark:
    """How a kind of result is drawn; the kinds differ in colour and in shape."""

    label: str
    colour: str
    shape: str


_MARKS = (
    _Mark(f"p, Holm < {SIGNIFICANT}", "#0072b2", "D"),
    _Mark("larger than noise", "#d55e00", "s"),
    _Mark("within noise", "#777777", "o"),
)
"""Colours that also the colour-blind tell apart (Okabe and Ito)."""


def write_chart(
    out: Path, table: ResultTable, sweep: str | None, values: Mapping[str, float]
) -> None:
    """Write the chart of a table as SVG: over the values of a sweep, or differences by row.

    Args:
        out: the SVG.
        table: what to draw; its primary score is drawn.
        sweep: the swept key; None: draw the differences to the baseline.
        values: of that key, by configuration.

    Raises:
        ResourceError: the place cannot be written.
    """
    with mpl.rc_context({"svg.hashsalt": _HASH_SALT, "svg.fonttype": "path"}):
        figure = sweep_chart(table, sweep, values) if sweep else difference_chart(table)
        with atomic_file(out) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None})


def difference_chart(table: ResultTable) -> Figure:
    """A dot a tested configuration: the difference to the baseline with its 95 % interval."""
    rows = [row for row in table.rows if row.test is not None]
    figure, axes = _empty(height=1.2 + 0.32 * len(rows))
    for mark in _MARKS:
        _draw_differences(axes, mark, rows)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f"{table.primary} x100, difference to {table.baseline}; bars: 95 % interval")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def sweep_chart(table: ResultTable, sweep: str, values: Mapping[str, float]) -> Figure:
    """Mean of the primary score over the values of one key, with its 95 % interval."""
    rows = sorted((row for row in table.rows if row.name in values), key=lambda r: values[r.name])
    means = [row.scores[table.primary] for row in rows]
    at = [values[row.name] for row in rows]
    figure, axes = _empty(height=3.2)
    bars = [_half(mean) for mean in means]
    heights = [mean.mean for mean in means]
    axes.errorbar(at, heights, bars, color=_MARKS[0].colour, marker="o", capsize=3, label="mean")
    base = [
        (x, mean.mean)
        for x, mean, row in zip(at, means, rows, strict=True)
        if row.name == table.baseline
    ]
    label = f"baseline {table.baseline}"
    axes.plot(*zip(*base, strict=True), "D", color=_MARKS[1].colour, label=label, zorder=3)
    axes.set_xlabel(sweep)
    axes.set_ylabel(f"{table.primary} x100; bars: 95 % interval")
    axes.legend(frameon=False)
    return figure


def _empty(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _draw_differences(axes: Axes, mark: _Mark, rows: Sequence[Row]) -> None:
    """The rows of one kind; a kind without rows gets no entry in the legend."""
    found = [
        (place, row.test.difference)
        for place, row in enumerate(rows)
        if _mark(row) is mark and row.test and row.test.difference
    ]
    if not found:
        return
    axes.errorbar(
        [difference.mean for _, difference in found],
        [place for place, _ in found],
        xerr=[_half(difference) for _, difference in found],
        linestyle="none",
        color=mark.colour,
        marker=mark.shape,
        capsize=3,
        label=mark.label,
    )


def _mark(row: Row) -> _Mark:
    p = row.test.p_adjusted if row.test else None
    if p is not None and p < SIGNIFICANT:
        return _MARKS[0]
    return _MARKS[1] if row.verdict == "larger than noise" else _MARKS[2]


def _half(values: Summary) -> float:
    """Half the width of an interval, which lies evenly about its mean; 0 where there is none."""
    return 0.0 if values.interval is None else (values.interval[1] - values.interval[0]) / 2
