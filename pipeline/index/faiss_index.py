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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from jaxtyping import Float32, Int64

from pipeline.core.files import output_file
from pipeline.index.format import Vectors, unusable
from pipeline.params.index import Kind

_IP = faiss.METRIC_INNER_PRODUCT
_FAISS: Any = faiss
"""For what its type stubs leave out."""
_LINKS = 32
"""Of a row of HNSW, twice as many in its lowest layer."""
_CONSTRUCTION = 64
"""Candidates looked at when a row joins HNSW."""
_POINTS_A_CLUSTER = 64
"""Rows that k-means looks at for a cluster; FAISS asks for 39 to 256."""
_ITERATIONS = 10
"""Of k-means."""
_LEAST_SAMPLE = 1 << 16
"""For codes of 16 values a part; also what k-means on few clusters may see."""
_TUNED_FOR = 10
"""Rows that a query asks for while settings are measured."""
_DEPTH = 4
"""The clusters that are read hold this many times the rows asked for."""
_MOST_RERANKED = 65_536
"""Rows re-ranked for one query, where more than ten are asked for."""
LEAST_ROWS = 256
"""Fewer are always searched exactly."""
_FEW_CLUSTERS = 64
"""So many may all be read; of more, an eighth: beyond that, exact search is as good."""


@dataclass(frozen=True)
class Setting:
    """FAISS' search parameters; 0 where a kind has none.

    Attributes:
        nprobe: clusters that are read (ivf).
        ef_search: candidates that are kept (hnsw).
        k_factor: rows that are re-ranked, as a multiple of k (ivf-pq).
    """

    nprobe: int = 0
    ef_search: int = 0
    k_factor: int = 0


def clusters_of(rows: int) -> int:
    """A power of two near 4 sqrt(rows), which balances reading centroids and reading clusters."""
    wanted = 4 * math.sqrt(rows)
    return int(2 ** round(math.log2(max(1.0, min(wanted, rows / 39)))))


def train(kind: Kind, sample: Vectors, rows: int, seed: int) -> Any:
    """An index of a kind that knows its clusters and codes, without rows.

    Args:
        kind: which.
        sample: rows to learn from.
        rows: how many the index will have.
        seed: of k-means.
    """
    dim = sample.shape[1]
    if kind == "flat":
        return faiss.IndexFlatIP(dim)
    if kind == "hnsw":
        graph: Any = faiss.IndexHNSWFlat(dim, _LINKS, _IP)
        graph.hnsw.efConstruction = _CONSTRUCTION
        return graph
    index = _clusters(kind, dim, clusters_of(rows), sample, seed)
    if kind == "ivf-sq8":
        return index
    precise: Any = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, _IP)
    precise.train(sample[:1])
    ranked: Any = faiss.IndexRefine(index, precise)
    ranked.own_fields = ranked.own_refine_index = True
    index.this.disown()
    precise.this.disown()
    return ranked


def finish(kind: Kind, index: Any) -> Any:
    """The index as it is saved, once all rows are in: product codes are laid out for FastScan.

    Only then, as lists in that layout cannot be merged.
    """
    if kind != "ivf-pq":
        return index
    plain: Any = faiss.downcast_index(index.base_index)
    fast: Any = faiss.IndexIVFPQFastScan(plain)
    plain.own_fields = False  # the clusters are the other's now
    fast.own_fields = True
    index.base_index = fast
    fast.this.disown()
    plain.thisown = True  # freed here
    return index


def _clusters(kind: Kind, dim: int, clusters: int, sample: Vectors, seed: int) -> Any:
    """Clusters around the centroids of spherical k-means, which runs on GPUs if there are any."""
    seed &= 0x7FFFFFFF  # FAISS takes an int of C
    means = faiss.Clustering(dim, clusters)
    means.seed = seed
    means.niter = _ITERATIONS
    means.max_points_per_centroid = _POINTS_A_CLUSTER
    means.spherical = True
    means.train(sample, on_gpus(faiss.IndexFlatIP(dim)))
    coarse: Any = faiss.IndexFlatIP(dim)
    coarse.add(faiss.vector_to_array(means.centroids).reshape(clusters, -1))
    index: Any
    if kind == "ivf-sq8":
        bits = faiss.ScalarQuantizer.QT_8bit
        index = faiss.IndexIVFScalarQuantizer(coarse, dim, clusters, bits, _IP, True)
    else:  # codes of two dimensions each, where the width can be halved
        codes = next(parts for parts in range(dim // 2, 0, -1) if dim % parts == 0)
        index = faiss.IndexIVFPQ(coarse, dim, clusters, codes, 4, _IP)
        index.by_residual = False
        index.pq.cp.seed = seed
    index.own_fields = True
    coarse.this.disown()
    index.quantizer_trains_alone = 1  # the centroids are there already
    index.train(sample)
    return index


def sample_size(rows: int) -> int:
    """Rows that training an index of so many reads."""
    return min(rows, max(_LEAST_SAMPLE, _POINTS_A_CLUSTER * clusters_of(rows)))


def on_gpus(index: Any) -> Any:
    """A copy of an index on all GPUs, to compute with; itself where there are none."""
    if not hasattr(faiss, "get_num_gpus") or faiss.get_num_gpus() == 0:
        return index
    return faiss.index_cpu_to_all_gpus(index)


def fill(index: Any, kind: Kind, blocks: Iterable[Vectors]) -> None:
    """Add rows, in order; to a graph by one thread, as its links depend on who comes first."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1 if kind == "hnsw" else before)
    try:
        for block in blocks:
            index.add(block)
    finally:
        faiss.omp_set_num_threads(before)


def merge(index: Any, shard: Any) -> None:
    """Move the rows of a shard behind those of an index that was trained alike."""
    if isinstance(index, faiss.IndexRefine):
        for mine, theirs in (
            (index.base_index, shard.base_index),
            (index.refine_index, shard.refine_index),
        ):
            merge(faiss.downcast_index(mine), faiss.downcast_index(theirs))
        index.ntotal = index.base_index.ntotal
        return
    index.merge_from(shard, index.ntotal if isinstance(index, faiss.IndexIVF) else 0)


def settings_of(kind: Kind, index: Any) -> list[list[Setting]]:
    """What to try, in sweeps; each setting of a sweep costs twice the one before."""
    if kind == "flat":
        return [[Setting()]]
    if kind == "hnsw":
        return [[Setting(ef_search=1 << power) for power in range(4, 11)]]
    clusters = _inverted(index).nlist
    most = min(clusters, max(_FEW_CLUSTERS, clusters // 8))
    probes = [1 << power for power in range(most.bit_length())]
    factors = (0,) if kind == "ivf-sq8" else (4, 16, 64)
    return [[Setting(nprobe=nprobe, k_factor=factor) for nprobe in probes] for factor in factors]


def apply(kind: Kind, index: Any, setting: Setting) -> None:
    """Make searches use a setting; it is saved with the index."""
    if kind == "hnsw":
        index.hnsw.efSearch = setting.ef_search
    elif kind != "flat":
        _inverted(index).nprobe = setting.nprobe
    if setting.k_factor:
        index.k_factor = setting.k_factor


def _inverted(index: Any) -> Any:
    """The clusters below a re-ranked index, or the index itself."""
    return faiss.downcast_index(index.base_index) if hasattr(index, "base_index") else index


def search_counted(
    kind: Kind, index: Any, queries: Vectors, k: int
) -> tuple[Int64[np.ndarray, "queries found"], float]:
    """The rows found for each query, and how many rows FAISS compared a query with.

    Rows that are re-ranked are not counted.
    """
    counted = _FAISS.cvar
    counts = counted.hnsw_stats if kind == "hnsw" else counted.indexIVF_stats
    counts.reset()
    rows = index.search(queries, k)[1]
    compared = index.ntotal if kind == "flat" else counts.ndis / len(queries)
    return rows, float(compared)


def bytes_a_query(kind: Kind, index: Any, setting: Setting, compared: float, k: int) -> float:
    """Bytes of vectors that one query reads: its cost, the same in every run.

    Args:
        kind: of the index.
        index: whose vectors.
        setting: as applied.
        compared: rows that a query is compared with.
        k: rows that it asks for.
    """
    width = 4 * index.d
    if kind in {"flat", "hnsw"}:
        return float(compared * width)
    clusters = _inverted(index)
    again = setting.k_factor * k * 2 * index.d
    return float(clusters.nlist * width + compared * clusters.code_size + again)


def search(
    index: Any, queries: Vectors, k: int
) -> tuple[Float32[np.ndarray, "queries found"], Int64[np.ndarray, "queries found"]]:
    """Cosines and rows of the k nearest rows, best first; -1 where none is left.

    The saved setting is for ten rows. For more, `nprobe` and `ef_search` grow, so that the clusters
    that are read hold several times k rows and as many candidates are kept.
    """
    found: Any = index.search(queries, k, params=None if k <= _TUNED_FOR else _deeper(index, k))
    return found[0], found[1]


def _deeper(index: Any, k: int) -> Any:
    if isinstance(index, faiss.IndexHNSW):
        return _FAISS.SearchParametersHNSW(efSearch=max(index.hnsw.efSearch, 2 * k))
    clusters = _inverted(index)
    if not isinstance(clusters, faiss.IndexIVF):
        return None
    wanted = math.ceil(_DEPTH * k * clusters.nlist / max(1, clusters.ntotal))
    probe = _FAISS.SearchParametersIVF(nprobe=min(clusters.nlist, max(clusters.nprobe, wanted)))
    if clusters is index:
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
