"""Our index against exact search, sentence-transformers and autofaiss, side by side in one run.

    python benchmarks/search_speed.py --json
        {"flickr30k": {"rows": ..., "systems": {"ours": {"recall": ..., "over_exact": ...}, ...}},
         "clustered": {...}}

`flickr30k` is the 155,070 captions as the model embeds them, asked for by a thousand captions of
Flickr8k; `clustered` is a million vectors of the same width around random centres, asked for by a
thousand others around them. No query is in an index. Every system searches the same vectors for
the 10 nearest, once with all queries together and once query by query; systems take turns, and a
ratio is the median over the rounds of the ratio within a round. Recall counts rows of the cosine of
the tenth exact neighbour as found. Embedding queries is left out.

`ours` is what `index.kind: auto` takes; `exact` is faiss.IndexFlatIP. autofaiss runs if it is
installed: pip install --no-deps autofaiss embedding_reader fire termcolor.
"""

import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import faiss
import numpy as np
import torch
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.core.device import keep_freed_memory
from pipeline.download.karpathy import read_karpathy
from pipeline.index import embed
from pipeline.index.choose import K, Probe, choose_index, hold_out
from pipeline.index.embed import Parts
from pipeline.index.format import Vectors, normalise
from pipeline.params.block import load_params
from pipeline.params.schema import Params
from pipeline.student.encoder import SentenceEncoder

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
QUERIES = 1000
ALONE = 100
"""Queries that are timed one by one, a round."""
A_CLUSTER = 100
"""Synthetic rows around one centre, on average."""
SPREAD = 0.8
"""Length of the noise of a synthetic row, where that of its centre is 1."""

Search = Callable[[Vectors], np.ndarray]
"""Rows of the K nearest vectors of each query."""


@dataclass
class System:
    """One way to search."""

    search: Search
    build_s: float
    bytes: int
    what: str


def main(
    as_json: Annotated[bool, typer.Option("--json", help="Print on one line.")] = False,
    corpora: Annotated[str, typer.Option(help="Comma-separated.")] = "flickr30k,clustered",
    rounds: int = 5,
    rows: Annotated[int, typer.Option(help="Synthetic vectors.")] = 1_000_000,
    model: Path = SHARED / "models" / "minilm-l3",
    work: Annotated[Path | None, typer.Option(help="Where vectors are kept.")] = None,
) -> None:
    """Compare recall, throughput and latency."""
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as temporary:
        folder = work or Path(temporary)
        makers: dict[str, Callable[[], tuple[Parts, Vectors]]] = {
            "flickr30k": lambda: _captions(folder, model),
            "clustered": lambda: _clustered(folder, rows, SentenceEncoder.load(model, "mean").dim),
        }
        result = {name: _compare(*makers[name](), rounds) for name in corpora.split(",")}
    about = {"cpu_threads": faiss.omp_get_max_threads(), "gpus": faiss.get_num_gpus()}
    print(json.dumps(about | result, indent=None if as_json else 2))


def _captions(folder: Path, model: Path) -> tuple[Parts, Vectors]:
    """All captions of Flickr30k, and some of Flickr8k that are not among them."""
    archive = SHARED / "mirror" / "caption_datasets.zip"
    encoder = SentenceEncoder.load(model, "mean")
    texts = _read_captions(archive, "flickr30k")
    rows = folder / f"flickr30k-{model.name}"
    if not rows.is_dir():
        _save(rows, encoder.encode(texts, batch_size=128, show_progress=True))
    others = sorted(set(_read_captions(archive, "flickr8k")) - set(texts))
    drawn = np.random.default_rng(0).choice(others, QUERIES, replace=False)
    return _open(rows), normalise(encoder.encode(drawn.tolist(), batch_size=128))


def _read_captions(archive: Path, name: str) -> list[str]:
    _, captions = read_karpathy(archive, name, [])
    return list(captions["caption"])


def _clustered(folder: Path, rows: int, dim: int) -> tuple[Parts, Vectors]:
    drawn = np.random.default_rng(0)
    centres = drawn.standard_normal((max(1, rows // A_CLUSTER), dim), dtype=np.float32)

    def around(count: int) -> Vectors:
        noise = drawn.standard_normal((count, dim), dtype=np.float32)
        return normalise(centres[drawn.integers(0, len(centres), count)] + SPREAD * noise)

    place = folder / f"clustered-{rows}-{dim}"
    _save(place, around(rows))
    return _open(place), around(QUERIES)


def _save(folder: Path, vectors: Vectors) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, start in enumerate(range(0, len(vectors), embed.ROWS_A_PART)):
        np.save(folder / f"{part:05d}.npy", vectors[start : start + embed.ROWS_A_PART])


def _open(folder: Path) -> Parts:
    files = sorted(folder.glob("*.npy"))
    return Parts(files, sum(len(np.load(file, mmap_mode="r")) for file in files))


def _compare(parts: Parts, queries: Vectors, rounds: int) -> dict[str, Any]:
    probe = Probe(parts, queries, np.full(len(queries), -1))
    vectors = np.concatenate(list(parts.blocks()))
    systems = {name: make(parts, vectors) for name, make in _makers().items()}
    recalls = {name: probe.recall(one.search(queries)) for name, one in systems.items()}
    timed = [_time_all(systems, queries) for _ in range(rounds)]
    return {
        "rows": parts.rows,
        "dim": parts.dim,
        "rounds": rounds,
        "systems": {
            name: {
                "what": one.what,
                f"recall@{K}": round(recalls[name], 4),
                "build_s": round(one.build_s, 1),
                "bytes": one.bytes,
                **_summarise(name, timed),
            }
            for name, one in systems.items()
        },
    }


def _makers() -> dict[str, Callable[[Parts, Vectors], System]]:
    makers = {"exact": _exact, "ours": _ours, "semantic_search": _semantic_search}
    if importlib.util.find_spec("autofaiss") is not None:
        makers["autofaiss"] = _autofaiss
    return makers


def _exact(parts: Parts, vectors: Vectors) -> System:
    start = time.perf_counter()
    index = faiss.IndexFlatIP(parts.dim)
    index.add(vectors)
    return _faiss_system(index, time.perf_counter() - start, vectors.nbytes, "IndexFlatIP")


def _ours(parts: Parts, vectors: Vectors) -> System:  # noqa: ARG001  # ours reads the parts
    params = load_params(ROOT / "params.yaml", Params).index
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        probe = hold_out({"texts": parts}, "texts", params.seed)
        best = choose_index("texts", probe, params, Path(folder))[0]
        index = faiss.read_index(str(Path(folder) / "texts.faiss"))
    taken = f"{best.kind}, {best.setting}"
    return _faiss_system(index, time.perf_counter() - start, best.bytes, taken)


def _semantic_search(parts: Parts, vectors: Vectors) -> System:
    from sentence_transformers.util import semantic_search

    corpus = torch.from_numpy(vectors)

    def search(queries: Vectors) -> np.ndarray:
        found = semantic_search(torch.from_numpy(queries), corpus, top_k=K)
        return np.array([[hit["corpus_id"] for hit in one] for one in found])

    del parts
    return System(search, 0.0, vectors.nbytes, "sentence_transformers.util.semantic_search")


def _autofaiss(parts: Parts, vectors: Vectors) -> System:
    from autofaiss import build_index

    start = time.perf_counter()
    index, about = build_index(
        vectors,
        save_on_disk=False,
        metric_type="ip",
        max_index_memory_usage="8G",
        current_memory_available="12G",
        nb_cores=faiss.omp_get_max_threads(),
        verbose=40,
    )
    del parts
    seconds = time.perf_counter() - start
    return _faiss_system(index, seconds, int(about["size in bytes"]), str(about["index_key"]))


def _faiss_system(index: Any, seconds: float, size: int, what: str) -> System:
    return System(lambda queries: index.search(queries, K)[1], seconds, size, what)


def _time_all(systems: Mapping[str, System], queries: Vectors) -> dict[str, tuple[float, float]]:
    """Of each system: queries a second together, and the median milliseconds of one alone."""
    return {
        name: (_throughput(one, queries), _latency(one, queries)) for name, one in systems.items()
    }


def _throughput(system: System, queries: Vectors) -> float:
    start, searched = time.perf_counter(), 0
    while time.perf_counter() - start < 1:
        system.search(queries)
        searched += len(queries)
    return searched / (time.perf_counter() - start)


def _latency(system: System, queries: Vectors) -> float:
    alone = []
    for row in range(ALONE):
        start = time.perf_counter()
        system.search(queries[row : row + 1])
        alone.append(time.perf_counter() - start)
    return 1000 * statistics.median(alone)


def _summarise(name: str, timed: Sequence[Mapping[str, tuple[float, float]]]) -> dict[str, Any]:
    rates = [one[name][0] for one in timed]
    alone = [one[name][1] for one in timed]
    return {
        "queries_per_second": _spread(rates),
        "over_exact": _spread([one[name][0] / one["exact"][0] for one in timed]),
        "single_ms": _spread(alone),
        "single_over_exact": _spread([one["exact"][1] / one[name][1] for one in timed]),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    median = statistics.median(values)
    return {"median": round(median, 3), "low": round(min(values), 3), "high": round(max(values), 3)}


if __name__ == "__main__":
    typer.run(main)
