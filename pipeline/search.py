"""From a query to hits; returns values, prints nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64

from pipeline.encoder import Student, load_student
from pipeline.errors import InputError
from pipeline.index import Index, Kind, Vectors, open_index

MAX_QUERY_CHARACTERS = 10_000


@dataclass(frozen=True)
class Hit:
    """One result."""

    rank: int
    """From 1, best first."""
    score: float
    """Cosine of query and result, -1 to 1."""
    caption: str
    """The caption, or the first caption of the image."""
    image: str
    """Member of the image archive."""
    archive: str
    """File name of the archive."""
    id: int
    """caption_id or image_id."""


@dataclass(frozen=True)
class Searcher:
    """A student and its index, loaded once for many queries."""

    student: Student
    index: Index

    @classmethod
    def open(cls, model: Path, index: Path) -> "Searcher":
        """Load both, and refuse an index that another student built.

        On the CPU: for single queries a GPU costs more to start than it saves.
        """
        return cls(load_student(model, torch.device("cpu")), open_index(index, model))

    def search(self, queries: Sequence[str], *, kind: Kind, k: int) -> list[list[Hit]]:
        """The k best captions or images for each query.

        Args:
            queries: texts.
            kind: `caption` compares sentence embeddings; `image` compares through the grounding
                heads.
            k: hits a query, at least 1; fewer where the index is smaller.

        Raises:
            InputError: a query is empty or longer than 10,000 characters, or k is below 1.
        """
        for query in queries:
            _check_query(query)
        if k < 1:
            raise InputError(f"k is {k}.", "ask for at least 1 result.")
        scores, rows = self.index.search(kind, self._embed(queries, kind), k)
        return [self._hits(kind, *found) for found in zip(scores, rows, strict=True)]

    def _embed(self, queries: Sequence[str], kind: Kind) -> Vectors:
        vectors = self.student.encoder.encode(queries, batch_size=64)
        if kind == "caption" or not self.student.sees_images:
            return vectors
        return self.student.ground_sentences(vectors)

    def _hits(
        self, kind: Kind, scores: Float32[np.ndarray, " k"], rows: Int64[np.ndarray, " k"]
    ) -> list[Hit]:
        found = self.index.rows_of(kind).iloc[rows].to_dict("records")
        return [
            Hit(rank, float(score), row["text"], row["member"], row["archive"], row["id"])
            for rank, (score, row) in enumerate(zip(scores, found, strict=True), start=1)
        ]


def _check_query(query: str) -> None:
    if not query.strip():
        raise InputError("the query is empty.", 'search for something, such as "a red circle".')
    if len(query) > MAX_QUERY_CHARACTERS:
        raise InputError(
            f"the query has {len(query):,} characters, more than {MAX_QUERY_CHARACTERS:,}.",
            "shorten it.",
        )
