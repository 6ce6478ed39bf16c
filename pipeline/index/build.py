"""From a corpus and its student to an index; format.py says what is written."""

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
from pipeline.index.format import ROWS, SCHEMA, TARGET_OF, Space, Target, write_manifest
from pipeline.index.queries import export_queries
from pipeline.params.index import IndexParams
from pipeline.student.directory import hash_student


class Built(NamedTuple):
    """The reports of a build."""

    metrics: dict[str, Any]
    """Rows, what they stand for, bytes, and for each space the index taken and its recall."""
    curve: pd.DataFrame
    """Every trial as a row, with its space and whether it was taken."""
    times: dict[str, Any]
    """What differs from run to run: for each space every trial with its speed, best first."""


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

    Raises:
        InputError: there is nothing to index, or no index reaches the recall within the bytes.
        ResourceError: the disk is full, or the place cannot be written.
    """
    if not spaces:
        raise InputError("there is nothing to index.", "add captions to index.items.")
    tables: dict[Target, pd.DataFrame] = {"texts": items.texts, "images": items.images}
    tables = {TARGET_OF[space]: tables[TARGET_OF[space]] for space in spaces}
    with atomic_folder(folder) as target:
        trials = {
            space: choose_index(space, hold_out(spaces, space, params.seed), params, target)
            for space in spaces
        }
        for name, rows in tables.items():
            write_table(target / f"{name}.parquet", rows, ROWS)
        exported = export_queries(model, kept, target)
        write_manifest(target, describe(model, pairs, spaces, exported=exported))
        # Here, as another run may replace the folder as soon as it has its final name.
        size = sum(path.stat().st_size for path in target.iterdir())
    counts: dict[str, Any] = {
        name: {"rows": len(one), "of": int(one["count"].sum())} for name, one in tables.items()
    }
    taken = {space: _without_speed(tried[0]) for space, tried in trials.items()}
    curve = [
        {"space": space, "taken": number == 0, **_without_speed(one)}
        for space, tried in trials.items()
        for number, one in enumerate(tried)
    ]
    times: dict[str, Any] = {
        space: [{**asdict(one.setting), "kind": one.kind, **asdict(one.speed)} for one in tried]
        for space, tried in trials.items()
    }
    metrics: dict[str, Any] = {**counts, "bytes": size, "spaces": taken}
    return Built(metrics, pd.DataFrame(curve), times)


def describe(
    model: Path, pairs: Pairs, spaces: Mapping[Space, Parts], *, exported: bool
) -> dict[str, Any]:
    """The manifest."""
    return {
        "schema": SCHEMA,
        "model": hash_student(model),
        "corpus": pairs.fingerprint(),
        "spaces": list(spaces),
        "rows": {space: parts.rows for space, parts in spaces.items()},
        "exported": exported,
    }


def _without_speed(trial: Trial) -> dict[str, Any]:
    return {
        "kind": trial.kind,
        **asdict(trial.setting),
        "recall": trial.recall,
        "cost": trial.cost,
        "bytes": trial.bytes,
    }
