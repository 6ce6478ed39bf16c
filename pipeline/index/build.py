"""From a corpus and its student to an index; format.py says what is written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from pipeline.core.files import atomic_folder
from pipeline.download.records import write_table
from pipeline.index.choose import SETTING, SPEED, choose_index, hold_out
from pipeline.index.documents import Items
from pipeline.index.embed import Parts
from pipeline.index.format import ROWS, TARGET_OF, Space, write_manifest
from pipeline.index.queries import export_queries
from pipeline.params.index import IndexParams


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
    corpus: str,
    items: Items,
    spaces: Mapping[Space, Parts],
    params: IndexParams,
    kept: Path,
) -> Built:
    """Choose an index for every space, and write the folder.

    Args:
        folder: where the index goes.
        model: the student that embedded the items.
        corpus: fingerprint of the pairs.
        items: what the rows are.
        spaces: their vectors.
        params: the index block.
        kept: where the exported student is kept.

    Raises:
        InputError: no index reaches the recall within the bytes.
        ResourceError: the disk is full, or the place cannot be written.
    """
    tables: dict[str, pd.DataFrame] = {
        TARGET_OF[space]: getattr(items, TARGET_OF[space]) for space in spaces
    }
    trials: list[dict[str, Any]] = []
    with atomic_folder(folder) as made:
        for space in spaces:
            probe = hold_out(spaces, space, params.seed)
            for number, trial in enumerate(choose_index(space, probe, params, made)):
                trials.append({"space": space, "taken": number == 0, **trial.row()})
        for target, rows in tables.items():
            write_table(made / f"{target}.parquet", rows, ROWS)
        exported = export_queries(model, kept, made)
        counts = {space: parts.rows for space, parts in spaces.items()}
        write_manifest(made, model, corpus, counts, exported=exported)
        # Here, as another run may replace the folder as soon as it has its final name.
        size = sum(path.stat().st_size for path in made.iterdir())
    measured = pd.DataFrame(trials)
    curve = measured.drop(columns=SPEED)
    taken = curve[curve["taken"]].drop(columns="taken").set_index("space")
    metrics: dict[str, Any] = {"bytes": size, "spaces": taken.to_dict("index")}
    for target, rows in tables.items():
        metrics[target] = {"rows": len(rows), "of": int(rows["count"].sum())}
    by_space = measured.set_index("space")[["kind", *SETTING, *SPEED]].groupby("space")
    times = {str(space): table.to_dict("records") for space, table in by_space}
    return Built(metrics, curve, times)
