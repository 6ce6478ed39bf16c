"""Search over a million vectors: FAISS on the GPU, and torch's exact search beside it."""

import time
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.measure import Bench, Values, median_seconds

K = 10
QUERIES = 1_000
LISTS, PROBES = 4_096, 64


def run(bench: Bench) -> None:
    """Exact and IVF."""
    rows, dim = bench.of((2_000, 16), (1_000_000, 768))
    torch.manual_seed(0)
    centres = torch.randn(max(1, rows // 100), dim, device=bench.device)
    vectors, queries = (draw_around(centres, count) for count in (rows, bench.of(50, QUERIES)))
    exact: list[Any] = []
    bench.take("exact, by torch", lambda: by_torch(bench, vectors, queries, exact), seconds=5)
    for name, recipe in (("exact, by FAISS", "Flat"), ("IVF, by FAISS", ivf_of(bench))):
        bench.take(
            name,
            lambda recipe=recipe: by_faiss(bench, recipe, vectors, queries, exact),
            needs=["faiss"],
            seconds=10,
        )


def ivf_of(bench: Bench) -> str:
    """The recipe of an inverted file."""
    return f"IVF{bench.of(16, LISTS)},Flat"


def by_torch(bench: Bench, vectors: np.ndarray, queries: np.ndarray, exact: list[Any]) -> Values:
    """One matrix product and the largest of every row; its rows are what recall is held against."""
    table, asked = (torch.from_numpy(one).to(bench.device) for one in (vectors, queries))

    def search() -> torch.Tensor:
        parts = [(part @ table.T).topk(K).indices for part in asked.split(250)]
        return torch.cat(parts)

    exact.append(search().cpu().numpy())
    seconds = median_seconds(search, 3)
    return {"queries_per_second": round(len(queries) / seconds, 1)}


def by_faiss(
    bench: Bench, recipe: str, vectors: np.ndarray, queries: np.ndarray, exact: list[Any]
) -> Values:
    """An index of FAISS, on the GPU where this wheel finds one."""
    import faiss

    index = faiss.index_factory(vectors.shape[1], recipe, faiss.METRIC_INNER_PRODUCT)
    gpus = getattr(faiss, "get_num_gpus", lambda: 0)()
    if gpus:
        resources = faiss.StandardGpuResources()
        index = faiss.index_cpu_to_gpu(resources, 0, index)
    elif bench.device.type == "cuda":
        raise RuntimeError("this faiss finds no GPU")

    started = time.perf_counter()
    index.train(vectors)
    index.add(vectors)
    seconds = time.perf_counter() - started
    if hasattr(index, "nprobe"):
        index.nprobe = bench.of(4, PROBES)
    found = index.search(queries, K)[1]
    rate = len(queries) / median_seconds(lambda: index.search(queries, K), 3)
    recall = np.mean([len(set(a) & set(b)) / K for a, b in zip(found, exact[0], strict=True)])
    return {
        "on": "gpu" if gpus else "cpu",
        "build_s": round(seconds, 2),
        "queries_per_second": round(rate, 1),
        "recall": round(float(recall), 4),
    }


def draw_around(centres: torch.Tensor, count: int) -> np.ndarray:
    """Vectors of length 1 around centres, drawn on the device."""
    chosen = centres[torch.randint(len(centres), (count,), device=centres.device)]
    noisy = chosen + 0.8 * torch.randn_like(chosen)
    return torch.nn.functional.normalize(noisy, dim=1).cpu().numpy()
