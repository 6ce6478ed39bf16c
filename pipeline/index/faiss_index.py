"""The kinds of FAISS index: how each is trained, filled, tuned and what a query of it costs.

    flat      exact: reads every vector
    hnsw      a graph over the vectors, Malkov and Yashunin 2018
    ivf-sq8   clusters of vectors with 8 bits a dimension
    ivf-pq    clusters of product codes, 4 bits for 2 dimensions (FastScan), re-ranked with float16

All compare by inner product. What is built depends on the vectors, the kind and the seed alone,
so that equal ones give equal bytes on one machine.
"""

import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from jaxtyping import Float32, Int64

from pipeline.core.files import output_file
from pipeline.index.format import Vectors, unusable
from pipeline.params.index import Kind

_FAISS: Any = faiss
"""For what its type stubs leave out."""
_RECIPES: dict[Kind, str] = {
    "flat": "Flat",
    "hnsw": "HNSW32",
    "ivf-sq8": "IVF{clusters},SQ8",
    "ivf-pq": "IVF{clusters},PQ{codes}x4np,Refine(SQfp16)",
}
"""For FAISS' index_factory."""
_POINTS_A_CLUSTER = 64
"""Rows that k-means looks at for a cluster; FAISS asks for 39 to 256."""
_LEAST_SAMPLE = 1 << 16
"""For codes of 16 values a part; also what k-means on few clusters may see."""
_TUNED_FOR = 10
"""Rows that a query asks for while settings are measured."""
_MOST_RERANKED = 65_536
"""Rows re-ranked for one query, where more than ten are asked for."""
LEAST_ROWS = 256
"""Fewer are always searched exactly."""
_FEW_CLUSTERS = 64
"""So many may all be read; of more, an eighth: beyond that, exact search is as good."""


@dataclass(frozen=True)
class Setting:
    """FAISS' search parameters; 0 where a kind has none."""

    nprobe: int = 0
    """Clusters that are read (ivf)."""
    ef_search: int = 0
    """Candidates that are kept (hnsw)."""
    k_factor: int = 0
    """Rows that are re-ranked, as a multiple of k (ivf-pq)."""


def clusters_of(rows: int) -> int:
    """A power of two near 4 sqrt(rows), which balances reading centroids and reading clusters."""
    wanted = 4 * math.sqrt(rows)
    return int(2 ** round(math.log2(max(1.0, min(wanted, rows / 39)))))


def sample_size(rows: int) -> int:
    """Rows that training an index of so many reads."""
    return min(rows, max(_LEAST_SAMPLE, _POINTS_A_CLUSTER * clusters_of(rows)))


def train(kind: Kind, sample: Vectors, rows: int, seed: int) -> Any:
    """An index for so many rows that has learnt its clusters and codes from a sample.

    K-means runs on GPUs if there are any.
    """
    dim = sample.shape[1]
    # Codes of two dimensions each, where the width can be halved.
    codes = next((parts for parts in range(dim // 2, 0, -1) if dim % parts == 0), 1)
    recipe = _RECIPES[kind].format(clusters=clusters_of(rows), codes=codes)
    index: Any = faiss.index_factory(dim, recipe, faiss.METRIC_INNER_PRODUCT)
    if kind == "hnsw":
        index.hnsw.efConstruction = 64  # candidates looked at when a row joins
    if kind in {"flat", "hnsw"}:
        return index
    clusters: Any = faiss.downcast_index(index.base_index) if kind == "ivf-pq" else index
    means = clusters.cp
    means.seed = seed & 0x7FFFFFFF  # FAISS takes an int of C
    means.niter, means.max_points_per_centroid = 10, _POINTS_A_CLUSTER
    if kind == "ivf-pq":
        clusters.by_residual = False
        clusters.pq.cp.seed = means.seed
    searcher = on_gpus(faiss.IndexFlatIP(dim))
    clusters.clustering_index = searcher
    index.train(sample)
    clusters.clustering_index = None  # is freed here
    return index


def on_gpus(index: Any) -> Any:
    """A copy of an index on all GPUs, to compute with; itself where there are none."""
    if not hasattr(faiss, "get_num_gpus") or faiss.get_num_gpus() == 0:
        return index
    return faiss.index_cpu_to_all_gpus(index)


def fill(index: Any, blocks: Iterable[Vectors]) -> None:
    """Add rows, in order; to a graph by one thread, as its links depend on who comes first."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1 if _is_graph(index) else before)
    try:
        for block in blocks:
            index.add(block)
    finally:
        faiss.omp_set_num_threads(before)


def merge(index: Any, shard: Any) -> None:
    """Move the rows of a shard behind those of an index that was trained alike."""
    if isinstance(index, faiss.IndexRefine):
        for part in ("base_index", "refine_index"):
            merge(*(faiss.downcast_index(getattr(one, part)) for one in (index, shard)))
        index.ntotal = index.base_index.ntotal
        return
    index.merge_from(shard, index.ntotal if isinstance(index, faiss.IndexIVF) else 0)


def finish(index: Any) -> Any:
    """The index as it is saved, once all rows are in: product codes are laid out for FastScan.

    Only then, as lists in that layout cannot be merged.
    """
    if not isinstance(index, faiss.IndexRefine):
        return index
    plain: Any = faiss.downcast_index(index.base_index)
    fast: Any = faiss.IndexIVFPQFastScan(plain)
    plain.own_fields = False  # the clusters are the other's now
    fast.own_fields = True
    index.base_index = fast
    fast.this.disown()
    plain.thisown = True  # freed here
    return index


def settings_of(index: Any) -> list[list[Setting]]:
    """What to try, in sweeps; each setting of a sweep costs twice the one before."""
    if _is_graph(index):
        return [[Setting(ef_search=1 << power) for power in range(4, 11)]]
    if (ivf := _FAISS.try_extract_index_ivf(index)) is None:
        return [[Setting()]]
    most = min(ivf.nlist, max(_FEW_CLUSTERS, ivf.nlist // 8))
    probes = [1 << power for power in range(most.bit_length())]
    factors = (4, 16, 64) if isinstance(index, faiss.IndexRefine) else (0,)
    return [[Setting(nprobe=nprobe, k_factor=factor) for nprobe in probes] for factor in factors]


def apply(index: Any, setting: Setting) -> None:
    """Make searches use a setting; it is saved with the index."""
    names = ("nprobe", "efSearch", "k_factor_rf")
    for name, value in zip(names, astuple(setting), strict=True):
        if value:
            _FAISS.ParameterSpace().set_index_parameter(index, name, value)


def search_counted(
    index: Any, queries: Vectors, k: int
) -> tuple[Int64[np.ndarray, "queries found"], float]:
    """The k + 1 nearest rows of each query, which may find itself, and its cost.

    The cost is the bytes of vectors that one query for k rows reads, the same in every run.
    """
    counts = _FAISS.cvar.hnsw_stats if _is_graph(index) else _FAISS.cvar.indexIVF_stats
    counts.reset()
    rows = index.search(queries, min(k + 1, index.ntotal))[1]
    compared = counts.ndis / len(queries)
    width = 4 * index.d
    if (ivf := _FAISS.try_extract_index_ivf(index)) is None:
        return rows, float((compared if _is_graph(index) else index.ntotal) * width)
    again = index.k_factor * k * 2 * index.d if isinstance(index, faiss.IndexRefine) else 0
    return rows, float(ivf.nlist * width + compared * ivf.code_size + again)


def _is_graph(index: Any) -> bool:
    return isinstance(index, faiss.IndexHNSW)


def search(
    index: Any, queries: Vectors, k: int
) -> tuple[Float32[np.ndarray, "queries found"], Int64[np.ndarray, "queries found"]]:
    """Cosines and rows of the k nearest rows, best first; -1 where none is left.

    The saved setting is for ten rows. For more, `nprobe` and `ef_search` grow, so that the clusters
    that are read hold four times k rows, and twice as many candidates are kept.
    """
    found: Any = index.search(queries, k, params=None if k <= _TUNED_FOR else _deeper(index, k))
    return found[0], found[1]


def _deeper(index: Any, k: int) -> Any:
    if _is_graph(index):
        return _FAISS.SearchParametersHNSW(efSearch=max(index.hnsw.efSearch, 2 * k))
    if (ivf := _FAISS.try_extract_index_ivf(index)) is None:
        return None
    wanted = math.ceil(4 * k * ivf.nlist / max(1, ivf.ntotal))
    probe = _FAISS.SearchParametersIVF(nprobe=min(ivf.nlist, max(ivf.nprobe, wanted)))
    if not isinstance(index, faiss.IndexRefine):
        return probe
    factor = max(1.0, min(index.k_factor, _MOST_RERANKED / k))
    return _FAISS.IndexRefineSearchParameters(k_factor=factor, base_index_params=probe)


def write(index: Any, path: Path) -> None:
    """Write an index; FAISS itself does not notice if the last bytes do not fit on the disk.

    Raises:
        OSError: the system's, such as a full disk.
    """
    with output_file(path) as stream:
        faiss.write_index(index, _FAISS.PyCallbackIOWriter(stream.write, 1 << 20))


def read(path: Path) -> Any:
    """Open an index, mapped where FAISS can: all but the codes of ivf-pq, which are read.

    Raises:
        InputError: it is missing, or FAISS refuses it.
    """
    with unusable(path):
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
