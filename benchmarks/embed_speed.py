"""Texts to vectors in a file: `stages.embed` against the index builder and sentence-transformers.

    python benchmarks/embed_speed.py ../shared/mirror/wiki1m_for_simcse.txt --rows 20000 --json

Prints texts a second, the median over the rounds, and of each round the time of the others over
ours to .npy, with its range. All have the same weights, texts and batch size, in one process, in
turn; the index builder writes the parts that an index is made from, and no index.
"""

import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.core.device import choose_device, keep_freed_memory
from pipeline.index.documents import Items
from pipeline.index.embed import embed_items
from pipeline.search.vectors import TextEmbedder, in_parts, read_texts, write_text_vectors
from pipeline.student.encoder import GroundingHeads, SentenceEncoder, Student

SHARED = Path(__file__).resolve().parents[2] / "shared"
BATCH = 128
OURS = "embed .npy"


def main(
    texts: Path,
    model: Path = SHARED / "models/minilm-l3",
    rows: Annotated[int, typer.Option(help="Texts to embed: the first lines.")] = 20_000,
    rounds: int = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print on one line.")] = False,
) -> None:
    """Time all of them."""
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        systems = _systems(Path(folder), texts, model, rows)
        seconds: dict[str, list[float]] = {name: [] for name in systems}
        for _ in range(rounds + 1):  # the first warms up
            for name, run in systems.items():
                begun = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - begun)
    result: dict[str, Any] = {}
    for name, (_, *times) in seconds.items():
        ratios = [one / ours for one, ours in zip(times, seconds[OURS][1:], strict=True)]
        spread = [round(of(ratios), 2) for of in (statistics.median, min, max)]
        result[name] = {"rate": round(rows / statistics.median(times)), "over_ours": spread}
    print(json.dumps(result, indent=None if as_json else 2))


def _systems(folder: Path, texts: Path, model: Path, rows: int) -> dict[str, Callable[[], object]]:
    from sentence_transformers import SentenceTransformer

    with texts.open(encoding="utf-8") as stream:
        lines = [line.rstrip("\n") for line in itertools.islice(stream, rows)]
    (folder / "texts.txt").write_text("\n".join(lines), encoding="utf-8")
    encoder = SentenceEncoder.load(model, "mean").to(choose_device()).eval()
    student = Student(encoder, GroundingHeads(encoder.dim, 4, 4), "simcse")
    items = Items(pd.DataFrame({"text": lines}), pd.DataFrame(), np.empty(0, np.int64))
    features: Any = SimpleNamespace(digest="none")
    peer = SentenceTransformer(str(model), device=str(choose_device()))
    number = itertools.count()  # another key or folder each time: nothing is found

    def embed(ending: str) -> None:
        with (folder / "texts.txt").open("rb") as stream:
            parts = in_parts(read_texts(stream, "texts.txt"), "texts.txt")
            embedder = TextEmbedder(student, batch_size=BATCH)
            write_text_vectors(folder / f"v{ending}", parts, embedder, str(next(number)), folder)

    def build() -> None:
        kept = folder / str(next(number))
        embed_items(kept, student, "", items, features, BATCH)

    def theirs() -> None:
        np.save(folder / "peer.npy", peer.encode(lines, batch_size=BATCH))

    found = {f"embed {ending}": lambda ending=ending: embed(ending) for ending in ENDINGS}
    return found | {"index builder": build, "sentence-transformers": theirs}


ENDINGS = (".npy", ".parquet", ".jsonl")

if __name__ == "__main__":
    typer.run(main)
