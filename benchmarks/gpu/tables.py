"""The tables of docs/gpu.md, from the results."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.run import PARTS
from pipeline.core.errors import InputError
from pipeline.core.files import atomic_file

BEGIN, END = "<!-- results: filled by a command -->", "<!-- end of results -->"
_STATES = ("skipped", "failed")

Part = Mapping[str, Any]


def fill_page(page: Path, results: Path) -> None:
    """Put the tables between the marks of a page.

    Raises:
        InputError: there are no results, or the page has no marks.
        ResourceError: the page cannot be written.
    """
    if not results.is_file():
        raise InputError(
            f"{results} does not exist.", f"run `python -m benchmarks.gpu --out {results.parent}`."
        )
    try:
        tables = make_tables(json.loads(results.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{results} holds no results of the benchmark ({type(error).__name__}: {error}).",
            "run `python -m benchmarks.gpu --out DIR` again.",
        ) from None
    head, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise InputError(f"{page} lacks the marks of its tables.", "run `git checkout docs`.")
    with atomic_file(page) as temporary:
        temporary.write_text(f"{head}{BEGIN}\n\n{tables}\n{END}{tail}", encoding="utf-8")


def make_tables(results: Mapping[str, Any]) -> str:
    """Markdown: what it was measured on, and a table a part."""
    settings, machine = results["settings"], results["machine"]
    about = [f"Measured {settings['started']}, in {settings['minutes']:g} minutes at most"]
    about += [f"{name} {value}" for name, value in machine.items()]
    warning = ["**In small (`--tiny`): these rates mean nothing.**", ""] if settings["tiny"] else []
    lines = [*warning, "; ".join(about) + ".", ""]
    for name in sorted(results["parts"], key=list(PARTS).index):
        lines += [f"### {name}", "", *_part(results["parts"][name]), ""]
    return "\n".join(lines)


def _part(part: Part) -> Iterable[str]:
    status = part["status"]
    if status != "done":
        yield f"This part was not finished: {status}."
        yield ""
    measured = part["measured"]
    yield from _table([one for one in measured if not set(one) & set(_STATES)])
    for one in measured:
        for state in _STATES:
            if state in one:
                yield f"- {one['name']}: {state}: {one[state]}"


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    if not rows:
        return
    columns = list(dict.fromkeys(key for one in rows for key in one if key != "name"))
    yield f"| | {' | '.join(column.replace('_', ' ') for column in columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    for one in rows:
        yield f"| {one['name']} | {' | '.join(_cell(one.get(column)) for column in columns)} |"
    yield ""


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "/")
