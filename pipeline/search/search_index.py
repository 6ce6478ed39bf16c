"""Search in an index that the `index` command built, for users of the library."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from pipeline.index.format import Target, Window
from pipeline.search.searcher import Searcher


def search_index(
    student: str | Path,
    index: str | Path,
    queries: Sequence[str],
    *,
    target: Target = "texts",
    k: int = 10,
    min_score: float = -1.0,
) -> pd.DataFrame:
    """The nearest texts or images to each query, from an index in files.

    Args:
        student: the student directory that the index was built with.
        index: the folder of the index.
        queries: texts to look for.
        target: whether to rank texts or images.
        k: results a query at most.
        min_score: the lowest cosine.

    Returns:
        A table with query, rank (from 1), score (cosine), kind, id, text, count, archive and
        member, best first for each query.

    Raises:
        MissingArtifactError: there is no such student or index.
        StaleArtifactError: another student made the index.
        InputError: a query or file cannot be used.
    """
    searcher = Searcher.open(Path(student), Path(index))
    found = searcher.search(queries, target=target, window=Window(k, min_score=min_score))
    answers = zip(queries, found, strict=True)
    return pd.DataFrame([{"query": text, **asdict(hit)} for text, hits in answers for hit in hits])
