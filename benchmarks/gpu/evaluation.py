"""Evaluation of a BERT-base: encoding, as STS and transfer do, and the classifiers on the host."""

import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.gpu.measure import Bench, Values, median_seconds
from benchmarks.gpu.worlds import draw_sentences, save_bert
from pipeline.student.encoder import SentenceEncoder

LENGTHS = (5, 40)
PAIRS = 3_000
"""Of the STS task that is scored."""
SAMPLES = 2_000
"""Of the transfer task."""


def run(bench: Bench) -> None:
    """In float32, as the stage does."""
    with tempfile.TemporaryDirectory() as name:
        model = save_bert(Path(name), tiny=bench.tiny)
        encoder = SentenceEncoder.load(model, "cls").to(bench.device).eval()
    for batch in bench.of([16], [128, 512]):
        bench.take(
            f"sentences encoded, {batch} at a time",
            lambda batch=batch: encode(bench, encoder, batch),
            seconds=5,
        )
    needs = ["pandas", "scipy", "sklearn"]
    bench.take("an STS task of 3,000 pairs", lambda: sts(bench, encoder), needs=needs, seconds=5)
    bench.take("a transfer task of 2,000 samples", lambda: transfer(bench, encoder),
               needs=needs, seconds=10)  # fmt: skip


def encode(bench: Bench, encoder: SentenceEncoder, batch: int) -> Values:
    """Sentences a second, tokenising among it and alone."""
    texts = draw_sentences(bench.of(40, 10_000), LENGTHS, tiny=bench.tiny)
    tokenized = encoder.tokenize_all(texts)
    whole = median_seconds(lambda: encoder.encode(texts, batch_size=batch), bench.of(1, 2))
    device = median_seconds(
        lambda: encoder.encode_tokenized(tokenized, batch_size=batch), bench.of(1, 2)
    )
    return {
        "sentences_per_second": round(len(texts) / whole),
        "without_tokenizer": round(len(texts) / device),
    }


def sts(bench: Bench, encoder: SentenceEncoder) -> Values:
    """Seconds from sentences to Spearman with 1,000 bootstrap samples."""
    from pipeline.evaluate.correlation import Bootstrap, correlate
    from pipeline.evaluate.embeddings import row_cosines, unit_rows

    count = bench.of(20, PAIRS)
    texts = draw_sentences(2 * count, LENGTHS, tiny=bench.tiny)
    started = time.perf_counter()
    rows = unit_rows(encoder.encode(texts, batch_size=128))
    encoded = time.perf_counter()
    cosines = row_cosines(rows[:count], rows[count:])
    gold = np.random.default_rng(0).random(count)
    correlate(cosines, gold, Bootstrap(resamples=bench.of(10, 1000), seed=0))
    return {
        "encoding_s": round(encoded - started, 3),
        "scoring_s": round(time.perf_counter() - encoded, 3),
    }


def transfer(bench: Bench, encoder: SentenceEncoder) -> Values:
    """Seconds of encoding, and of SentEval's classifiers in ten-fold cross-validation."""
    import pandas as pd

    from pipeline.evaluate.embeddings import embed
    from pipeline.evaluate.transfer import score_transfer

    count = bench.of(40, SAMPLES)
    texts = draw_sentences(count, LENGTHS, tiny=bench.tiny)
    table = pd.DataFrame({"task": "MR", "split": "all", "sentence1": texts, "sentence2": None})
    table["label"] = np.arange(count) % 2
    started = time.perf_counter()
    embeddings = embed(encoder, [table["sentence1"]], batch_size=128)
    encoded = time.perf_counter()
    score_transfer(embeddings, table, seed=0)
    return {
        "encoding_s": round(encoded - started, 3),
        "classifiers_s": round(time.perf_counter() - encoded, 3),
    }
