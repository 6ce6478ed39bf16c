"""How an evaluation is shown to people: one table a part, one row a system."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.evaluate.report import HEADLINES, System, headline, headline_name, shortened
from pipeline.evaluate.scores import Score

_PIPE_WIDTH = 160
"""Columns where no terminal has its own."""


def wide_console(*, stderr: bool = False) -> Console:
    """A console for tables; what they show is never read as markup."""
    console = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    console.width = console.width if console.is_terminal else _PIPE_WIDTH
    return console


def print_systems(systems: Sequence[System]) -> None:
    """The STS tasks of the first system in detail, then all systems beside each other."""
    headlines = {system.name: headline(system.scores) for system in systems}
    tables = [
        _sts_details(systems[0].scores),
        _matryoshka(systems[0].scores),
        _by_task("STS: Spearman x100 over all pairs of a task", "sts", headlines),
        _by_task("Transfer: accuracy x100", "transfer", headlines),
        _retrieval(headlines),
    ]
    console = wide_console(stderr=True)
    for table in tables:
        if table.row_count:
            console.print(table, "")


def _matryoshka(scores: Sequence[Score]) -> Table:
    """One row a number of dimensions, one column a task."""
    found = shortened(scores)
    tasks = list(dict.fromkeys(task for numbers in found.values() for task in numbers))
    table = _table("STS of the first dimensions alone: Spearman x100", "dimensions", *tasks)
    for dimensions, numbers in found.items():
        table.add_row(dimensions, *(_show(numbers.get(task)) for task in tasks))
    return table


_COUNTS = ("pairs", "pairs_unseen")


def _by_task(title: str, part: str, headlines: Mapping[str, Any]) -> Table:
    """One row a system, one column a task."""
    found = {name: numbers[part] for name, numbers in headlines.items() if part in numbers}
    tasks = list(dict.fromkeys(task for numbers in found.values() for task in numbers))
    columns = [task for task in tasks if task not in _COUNTS]
    table = _table(title, "system", *columns)
    for name, numbers in found.items():
        table.add_row(name, *(_show(numbers.get(task)) for task in columns))
    return table


def _retrieval(headlines: Mapping[str, Any]) -> Table:
    """One row a system and direction, one column a measure."""
    columns = [measure.replace("_", " ") for measure in HEADLINES["retrieval"]]
    title = "Retrieval on the pairs' test split: recall x100"
    table = _table(title, "direction", "system", *columns)
    rows = [
        (direction, name, measured)
        for name, numbers in headlines.items()
        for direction, measured in numbers.get("retrieval", {}).items()
    ]
    for direction, name, measured in sorted(rows, key=lambda row: row[0], reverse=True):
        table.add_row(direction.replace("_", " "), name, *map(_show, measured.values()))
    return table


def _sts_details(scores: Sequence[Score]) -> Table:
    """One row a task: every aggregation, Pearson, the unseen pairs and the geometry."""
    columns = "task|all [95 %]|mean|wmean|Pearson|unseen [95 %]|pairs|dropped|alignment|uniformity"
    table = _table("STS in detail: Spearman x100, Pearson x100", *columns.split("|"))
    for task in (s for s in scores if _is(s, "spearman", "all") and not s.unseen):
        found = [s for s in scores if (s.task, s.split) == (task.task, task.split)]
        unseen = next((s for s in found if s.unseen), None)
        table.add_row(
            headline_name(task),
            _with_interval(task),
            *(_value(found, "spearman", aggregation) for aggregation in ("mean", "wmean")),
            _value(found, "pearson", "all"),
            _with_interval(unseen) if unseen else "-",
            str(task.count),
            str(task.count - unseen.count) if unseen else "-",
            *(_value(found, measure, "") for measure in ("alignment", "uniformity")),
        )
    return table


def _table(title: str, *columns: str) -> Table:
    return Table(*columns, title=title, title_justify="left", box=None)


def _is(score: Score, measure: str, aggregation: str) -> bool:
    of_whole = (measure, aggregation, "", None)
    return (score.measure, score.aggregation, score.subset, score.dimensions) == of_whole


def _value(scores: Sequence[Score], measure: str, aggregation: str) -> str:
    return next((_show(s.value) for s in scores if _is(s, measure, aggregation)), "")


def _with_interval(score: Score) -> str:
    if score.low is None:
        return _show(score.value)
    return f"{_show(score.value)} [{_show(score.low)}, {_show(score.high)}]"


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
