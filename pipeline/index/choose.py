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
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class Speed:
    """How fast queries were answered this time."""

    queries_per_second: float
    """Many at once."""
    milliseconds: float
    """Median of queries that come alone."""


@dataclass(frozen=True)
class Trial:
    """One point of the curve."""

    kind: Kind
    setting: Setting
    recall: float
    cost: float
    """Bytes that a query reads."""
    speed: Speed
    """In this run; all else is the same in every run."""
    bytes: int = 0
    """Of the file."""


@dataclass(frozen=True)
class Probe:
    """Queries and the cosine of the last of their exact neighbours.

    Attributes:
        parts: the rows that are searched.
        queries: vectors that the index may or may not hold.
        own: the row of each query in the index, which does not count as an answer to it; -1: it is
            not in the index.
    """

    parts: Parts
    queries: Vectors
    own: Int64[np.ndarray, " queries"]

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
        """The share of exact neighbours among the first k of the rows found.

        1 where there is nothing to miss; a query's own row does not count.
        """
        if self.parts.rows < 2:  # noqa: PLR2004  # nothing to miss
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
    """Build the kinds in question, and keep the file of the cheapest that finds enough.

    Args:
        space: names the file.
        probe: rows and queries.
        params: the index block.
        folder: where `<space>.faiss` goes.

    Returns:
        All that was tried; the first is what was taken.

    Raises:
        InputError: nothing reaches `index.target_recall` within `index.max_bytes`.
    """
    trials: list[Trial] = []
    for kind in kinds_to_try(params, probe.parts.rows):
        log.info("trying a %s index of %s %s", kind, f"{probe.parts.rows:,}", space)
        trials += _try_kind(kind, probe, params, folder / f"{space}-{kind}")
    good = [one for one in trials if _finds_enough(one, params) and _is_small(one, params)]
    if not good:
        raise _nothing_is_good(space, trials, params)
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
    trials = [
        one
        for settings in faiss_index.settings_of(kind, index)
        for one in sweep(kind, index, settings, probe)
    ]
    found = [one for one in trials if _finds_enough(one, params)] or trials
    faiss_index.apply(kind, index, min(found, key=lambda one: one.cost).setting)
    faiss_index.write(index, path)
    size = path.stat().st_size
    return [replace(one, bytes=size) for one in trials]


def sweep(kind: Kind, index: Any, settings: Sequence[Setting], probe: Probe) -> Iterator[Trial]:
    """Measure one setting after another until recall no longer rises."""
    recalls: list[float] = []
    for setting in settings:
        trial = measure(kind, index, setting, probe)
        recalls.append(trial.recall)
        yield trial
        if recalls[-1] >= _ENOUGH or _rose_by(recalls[-1 - _PATIENCE :]) < _RISE:
            return


def measure(kind: Kind, index: Any, setting: Setting, probe: Probe) -> Trial:
    """Search with one setting; the index keeps it."""
    faiss_index.apply(kind, index, setting)
    start = time.perf_counter()
    k = min(probe.k + 1, index.ntotal)  # one more, as a query may find itself
    rows, compared = faiss_index.search_counted(kind, index, probe.queries, k)
    rate = len(probe.queries) / (time.perf_counter() - start)
    cost = faiss_index.bytes_a_query(kind, index, setting, compared, probe.k)
    speed = Speed(round(rate, 1), round(_time_alone(index, probe), 4))
    return Trial(kind, setting, probe.recall(rows), cost, speed)


def _rose_by(recalls: Sequence[float]) -> float:
    """What the last doublings added; much, if there were too few to tell."""
    return recalls[-1] - recalls[0] if len(recalls) > _PATIENCE else 1.0


def _time_alone(index: Any, probe: Probe) -> float:
    """The median milliseconds of queries that come alone."""
    alone = []
    for query in probe.queries[:_ALONE, None]:
        start = time.perf_counter()
        index.search(query, probe.k)
        alone.append(time.perf_counter() - start)
    return 1000 * statistics.median(alone)


def _finds_enough(trial: Trial, params: IndexParams) -> bool:
    return trial.kind == "flat" or trial.recall >= params.target_recall


def _is_small(trial: Trial, params: IndexParams) -> bool:
    return params.max_bytes is None or trial.bytes <= params.max_bytes


def _nothing_is_good(space: Space, trials: Sequence[Trial], params: IndexParams) -> InputError:
    most = max(one.recall for one in trials)
    least = min((one.bytes for one in trials if _finds_enough(one, params)), default=None)
    if least is None:
        return InputError(
            f"no index of {space} reaches index.target_recall {params.target_recall}: "
            f"the best finds {most:.4f}.",
            "lower index.target_recall, or set index.kind to flat.",
        )
    return InputError(
        f"no index of {space} reaches index.target_recall {params.target_recall} within "
        f"index.max_bytes {params.max_bytes:,}: that takes {least:,}.",
        "raise index.max_bytes or lower index.target_recall.",
    )
