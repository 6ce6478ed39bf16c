"""From a corpus and its student to an index; see layout.py for what is written."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from pipeline.core.errors import InputError
from pipeline.core.files import atomic_folder
from pipeline.download.records import Pairs, write_table
from pipeline.index.choose import Trial, choose_index, hold_out
from pipeline.index.documents import Items
from pipeline.index.embed import Parts
from pipeline.index.format import ROWS, SCHEMA, TARGET_OF, Space, write_manifest
from pipeline.index.queries import export_queries
from pipeline.params.index import IndexParams
from pipeline.student.directory import hash_student

_Trials = dict[Space, list[Trial]]
"""What was tried for each file of vectors; the first is what was taken."""


class Built(NamedTuple):
    """What a build tells of itself."""

    metrics: dict[str, Any]
    """Rows, what they stand for, bytes, and of each space what was taken and finds."""
    curve: pd.DataFrame
    """Every trial as a row, with its space and whether it was taken."""
    times: dict[str, Any]
    """What differs from run to run: of each space every trial with its speed, best first."""


def build_index(
    folder: Path,
    model: Path,
    pairs: Pairs,
    items: Items,
    spaces: Mapping[Space, Parts],
    params: IndexParams,
    kept: Path,
) -> Built:
    """Choose an index for every space, and write the folder.

    Args:
        folder: where the index goes.
        model: the student that embedded the items.
        pairs: where captions and images are from.
        items: what the rows are.
        spaces: their vectors.
        params: the index block.
        kept: where the exported student is kept.

    Returns:
        What was built, measured.

    Raises:
        InputError: there is nothing to index, or no index reaches the recall within the bytes.
        ResourceError: the disk is full, or the place cannot be written.
    """
    if not spaces:
        raise InputError("there is nothing to index.", "add captions to index.items.")
    with atomic_folder(folder) as target:
        trials = {
            space: choose_index(space, hold_out(spaces, space, params.seed), params, target)
            for space in spaces
        }
        write_rows(target, items, spaces)
        exported = export_queries(model, kept, target)
        write_manifest(target, describe(model, pairs, spaces, exported=exported))
        # Before it has its final name, under which another run may replace it at any moment.
        return Built(_measure(target, items, trials), _curve(trials), _times(trials))


def write_rows(folder: Path, items: Items, spaces: Mapping[Space, Parts]) -> None:
    """Write what the rows of each space are."""
    tables: dict[str, pd.DataFrame] = {"texts": items.texts, "images": items.images}
    for target in {TARGET_OF[space] for space in spaces}:
        write_table(folder / f"{target}.parquet", tables[target], ROWS)


def describe(
    model: Path, pairs: Pairs, spaces: Mapping[Space, Parts], *, exported: bool
) -> dict[str, Any]:
    """The manifest."""
    return {
        "schema": SCHEMA,
        "model": hash_student(model),
        "corpus": pairs.fingerprint(),
        "spaces": list(spaces),
        "rows": {space: len(parts) for space, parts in spaces.items()},
        "exported": exported,
    }


def _measure(folder: Path, items: Items, trials: _Trials) -> dict[str, Any]:
    tables = {"texts": items.texts, "images": items.images}
    counted = {TARGET_OF[space]: tables[TARGET_OF[space]] for space in trials}
    rows = {
        name: {"rows": len(one), "of": int(one["count"].sum())} for name, one in counted.items()
    }
    return {
        **{str(name): count for name, count in rows.items()},
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "spaces": {space: _lasting(tried[0]) for space, tried in trials.items()},
    }


def _curve(trials: _Trials) -> pd.DataFrame:
    rows = [
        {"space": space, "taken": number == 0, **_lasting(one)}
        for space, tried in trials.items()
        for number, one in enumerate(tried)
    ]
    return pd.DataFrame(rows)


def _times(trials: _Trials) -> dict[str, Any]:
    return {
        space: [{**asdict(one.setting), "kind": one.kind, **asdict(one.speed)} for one in tried]
        for space, tried in trials.items()
    }


def _lasting(trial: Trial) -> dict[str, Any]:
    """A trial without its speed."""
    return {name: value for name, value in asdict(trial).items() if name != "speed"}
