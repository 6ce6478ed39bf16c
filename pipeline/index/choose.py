"""The cheapest index that finds enough, by measurement.

Every kind is built on all rows and searched with held-out queries, `nprobe` or `ef_search` doubling
from trial to trial. Recall is the share of the k exact neighbours that it finds, where another row
of the same cosine is as good. Of the trials that reach `index.target_recall` within
`index.max_bytes`, the one whose queries read the fewest bytes is taken: unlike a time, that number
is the same in every run. Times are reported.
"""

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from jaxtyping import Float32, Int64

from pipeline.core.errors import InputError
from pipeline.core.progress import log
from pipeline.index import faiss_index, shards
from pipeline.index.embed import Parts
from pipeline.index.faiss_index import Setting
from pipeline.index.format import Space, Vectors
from pipeline.params.index import IndexParams, Kind

K = 10
"""Neighbours that recall is of."""
QUERIES = 1000
_ENOUGH = 0.9995
"""A sweep ends at this recall."""
_LARGEST_GRAPH = 200_000
"""Rows up to which a graph is tried: equal bytes need one thread, which takes 2 ms a row."""
_PATIENCE = 2
"""Doublings without a rise of recall that end a sweep."""
_RISE = 0.0005
"""Of recall that counts."""
_ALONE = 50
"""Queries that are timed one by one."""
_TIE = 1e-6
"""Cosines closer than this are equal."""


SETTING = [one.name for one in fields(Setting)]
SPEED = ["queries_per_second", "milliseconds"]
"""Columns of a trial's row."""


@dataclass(frozen=True)
class Trial:
    """One point of the curve; all but the speed is the same in every run."""

    kind: Kind
    setting: Setting
    recall: float
    cost: float
    """Bytes that a query reads."""
    queries_per_second: float
    """Many at once."""
    milliseconds: float
    """Median of queries that come alone."""
    bytes: int = 0
    """Of the file."""

    def row(self) -> dict[str, Any]:
        """As a row of a table."""
        names = ("recall", "cost", "bytes", *SPEED)
        measured = {name: getattr(self, name) for name in names}
        return {"kind": self.kind, **asdict(self.setting), **measured}


@dataclass(frozen=True)
class Probe:
    """Queries and the cosine of the last of their exact neighbours."""

    parts: Parts
    """The rows that are searched."""
    queries: Vectors
    own: Int64[np.ndarray, " queries"]
    """The row of each query, which is no answer to it; -1: it is not in the index."""

    @property
    def k(self) -> int:
        """Neighbours that recall is of: K, or all but one there are, and at least one."""
        return max(1, min(K, self.parts.rows - 1))

    @cached_property
    def kth(self) -> Float32[np.ndarray, " queries"]:
        """The cosine of the k-th exact neighbour, computed over all rows."""
        best = np.full((len(self.queries), 0), -np.inf, dtype=np.float32)
        first = 0
        for block in self.parts.blocks():
            exact = faiss_index.on_gpus(faiss.IndexFlatIP(block.shape[1]))
            exact.add(block)
            cosines, rows = exact.search(self.queries, min(self.k + 1, len(block)))
            cosines = np.where(rows + first == self.own[:, None], -np.inf, cosines)
            best = -np.sort(-np.concatenate([best, cosines], axis=1), axis=1)[:, : self.k]
            first += len(block)
        return np.asarray(best[:, -1], dtype=np.float32)

    def recall(self, rows: Int64[np.ndarray, "queries found"]) -> float:
        """The share of exact neighbours among the first k of the rows found, its own left out."""
        if self.parts.rows == 1:  # nothing to miss
            return 1.0
        found = [
            one[(one != own) & (one >= 0)][: self.k]
            for one, own in zip(rows, self.own, strict=True)
        ]
        which = np.repeat(np.arange(len(found)), [len(one) for one in found])
        vectors = self.parts.take(np.concatenate(found))
        cosines = np.einsum("ij,ij->i", vectors, self.queries[which])
        return float((cosines >= self.kth[which] - _TIE).sum() / (self.k * len(self.queries)))


def hold_out(spaces: Mapping[Space, Parts], space: Space, seed: int) -> Probe:
    """Queries as users ask a space: texts for texts, texts for pictures, pictures for texts.

    A text is not an answer to itself; the other queries are not in the index at all.
    """
    asked_by: dict[Space, Space] = {"texts": "texts", "grounded": "images", "images": "grounded"}
    source = asked_by[space] if asked_by[space] in spaces else space
    rows = spaces[source].draw(QUERIES, seed)
    own = rows if source == space else np.full_like(rows, -1)
    return Probe(spaces[space], spaces[source].take(rows), own)


def choose_index(space: Space, probe: Probe, params: IndexParams, folder: Path) -> list[Trial]:
    """Build the kinds in question, and keep the cheapest that finds enough as `<space>.faiss`.

    Returns:
        All that was tried; the first is what was taken.

    Raises:
        InputError: nothing reaches `index.target_recall` within `index.max_bytes`.
    """
    trials: list[Trial] = []
    for kind in kinds_to_try(params, probe.parts.rows):
        log.info("trying a %s index of %s %s", kind, f"{probe.parts.rows:,}", space)
        trials += _try_kind(kind, probe, params, folder / f"{space}-{kind}")
    enough = [one for one in trials if _finds_enough(one, params)]
    good = [one for one in enough if params.max_bytes is None or one.bytes <= params.max_bytes]
    if not good:
        what = f"no index of {space} reaches index.target_recall {params.target_recall}"
        if not enough:
            most = max(one.recall for one in trials)
            fix = "lower index.target_recall, or set index.kind to flat."
            raise InputError(f"{what}: the best finds {most:.4f}.", fix)
        least = min(one.bytes for one in enough)
        raise InputError(
            f"{what} within index.max_bytes {params.max_bytes:,}: that takes {least:,}.",
            "raise index.max_bytes or lower index.target_recall.",
        )
    best = min(good, key=lambda one: one.cost)
    (folder / f"{space}-{best.kind}").rename(folder / f"{space}.faiss")
    for path in folder.glob(f"{space}-*"):
        path.unlink()
    return [best, *(one for one in trials if one is not best)]


def kinds_to_try(params: IndexParams, rows: int) -> Sequence[Kind]:
    """The kinds that are built for so many rows, in order."""
    if rows < faiss_index.LEAST_ROWS or (params.kind == "auto" and rows <= params.exact_until):
        return ["flat"]
    if params.kind != "auto":
        return [params.kind]
    of_any_size: list[Kind] = ["flat", "ivf-sq8", "ivf-pq"]
    return of_any_size if rows > _LARGEST_GRAPH else [*of_any_size, "hnsw"]


def _try_kind(kind: Kind, probe: Probe, params: IndexParams, path: Path) -> list[Trial]:
    """Build one kind, measure it, and write it with the cheapest setting that finds enough."""
    index = shards.filled(kind, probe.parts, params.seed)
    sweeps = faiss_index.settings_of(index)
    trials = [one for settings in sweeps for one in sweep(kind, index, settings, probe)]
    found = [one for one in trials if _finds_enough(one, params)] or trials
    faiss_index.apply(index, min(found, key=lambda one: one.cost).setting)
    faiss_index.write(index, path)
    size = path.stat().st_size
    return [replace(one, bytes=size) for one in trials]


def _finds_enough(trial: Trial, params: IndexParams) -> bool:
    return trial.kind == "flat" or trial.recall >= params.target_recall


def sweep(kind: Kind, index: Any, settings: Sequence[Setting], probe: Probe) -> Iterator[Trial]:
    """Measure one setting after another until recall no longer rises."""
    recalls: list[float] = []
    for setting in settings:
        trial = measure(kind, index, setting, probe)
        yield trial
        recalls.append(trial.recall)
        rises = len(recalls) <= _PATIENCE or recalls[-1] - recalls[-1 - _PATIENCE] >= _RISE
        if trial.recall >= _ENOUGH or not rises:
            return


def measure(kind: Kind, index: Any, setting: Setting, probe: Probe) -> Trial:
    """Search with one setting, all queries at once and some alone; the index keeps the setting."""
    faiss_index.apply(index, setting)
    start = time.perf_counter()
    rows, cost = faiss_index.search_counted(index, probe.queries, probe.k)
    rate = len(probe.queries) / (time.perf_counter() - start)
    alone = []
    for query in probe.queries[:_ALONE, None]:
        start = time.perf_counter()
        index.search(query, probe.k)
        alone.append(time.perf_counter() - start)
    milliseconds = round(1000 * statistics.median(alone), 4)
    return Trial(kind, setting, probe.recall(rows), cost, round(rate, 1), milliseconds)
