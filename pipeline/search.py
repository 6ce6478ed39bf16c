"""From queries, texts or pictures, to hits; returns values, prints nothing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float32, Int64

from pipeline.encoder import Student, load_student
from pipeline.errors import InputError
from pipeline.index import Index, Kind, Space, Vectors, open_index

if TYPE_CHECKING:
    from pipeline.features.teacher import Teacher

MAX_QUERY_CHARACTERS = 10_000
MAX_IMAGE_BYTES = 64 * 1024**2
_BATCH = 64


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
class Answer:
    """What one query found."""

    query: str
    hits: list[Hit]


@dataclass(frozen=True)
class Window:
    """Which of the ranked results are wanted.

    Attributes:
        k: results at most, at least 1.
        offset: results left out before them.
        min_score: the lowest cosine.

    Raises:
        InputError: k or offset is too small, or the score is no cosine.
    """

    k: int = 10
    offset: int = 0
    min_score: float = -1.0

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"k is {self.k}.", "ask for at least 1 result.")
        if self.offset < 0:
            raise InputError(f"the offset is {self.offset}.", "use 0 or more.")
        if not math.fabs(self.min_score) <= 1:
            raise InputError(f"the lowest score is {self.min_score}.", "use a cosine, -1 to 1.")


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

    def search(
        self, queries: Sequence[str], *, kind: Kind, window: Window = Window()
    ) -> list[list[Hit]]:
        """The best captions or images for each text.

        Args:
            queries: texts.
            kind: `caption` compares sentence embeddings; `image` compares through the grounding
                heads.
            window: which of them.

        Raises:
            InputError: a query is empty or longer than 10,000 characters, or the index holds no
                images.
        """
        for query in queries:
            check_query(query)
        vectors = self.student.encoder.encode(queries, batch_size=_BATCH)
        if kind == "caption":
            return self._find("captions", kind, vectors, window)
        return self._find("images", kind, self._ground(vectors), window)

    def search_by_image(
        self, picture: bytes, teacher: "Teacher", *, kind: Kind, window: Window = Window()
    ) -> list[Hit]:
        """The best captions, or the most similar images, for a picture, through the heads.

        Args:
            picture: a file's bytes.
            teacher: the one whose features the heads were trained on.
            kind: what to rank.
            window: which of them.

        Raises:
            InputError: the picture cannot be used, or the index holds no images.
            StaleArtifactError: the teacher is another one.
            ModelError: the student was trained without pictures.
        """
        self.student.require_teacher(teacher.identity.weights)
        vector = self.student.ground_images(_features(picture, teacher))
        return self._find("grounded" if kind == "caption" else "images", kind, vector, window)[0]

    def _ground(self, vectors: Vectors) -> Float32[np.ndarray, "rows grounding"]:
        return self.student.ground_sentences(vectors) if self.student.sees_images else vectors

    def _find(self, space: Space, kind: Kind, vectors: Vectors, window: Window) -> list[list[Hit]]:
        scores, rows = self.index.search(space, vectors, window.offset + window.k)
        first = window.offset
        return [
            self._hits(kind, window, *found)
            for found in zip(scores[:, first:], rows[:, first:], strict=True)
        ]

    def _hits(
        self,
        kind: Kind,
        window: Window,
        scores: Float32[np.ndarray, " found"],
        rows: Int64[np.ndarray, " found"],
    ) -> list[Hit]:
        enough = scores >= window.min_score
        found = self.index.rows[kind].iloc[rows[enough]].to_dict("records")
        return [
            Hit(rank, float(score), row["text"], row["member"], row["archive"], row["id"])
            for rank, (score, row) in enumerate(
                zip(scores[enough], found, strict=True), start=window.offset + 1
            )
        ]


def read_picture(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        InputError: it is not there, no file, or larger than 64 MiB.
        ResourceError: it cannot be read.
    """
    from pipeline.download.archives import reports_unreadable

    if not path.is_file():
        raise InputError(f"{path} is no file.", "name a picture.")
    with reports_unreadable(path):
        if path.stat().st_size > MAX_IMAGE_BYTES:
            raise InputError(f"{path} is larger than 64 MiB.", "use a smaller picture.")
        return path.read_bytes()


def _features(picture: bytes, teacher: "Teacher") -> Float32[np.ndarray, "1 teacher"]:
    from pipeline.features.images import Rejection

    pixels = teacher.decode(picture)
    if isinstance(pixels, Rejection):
        raise InputError(
            f"the picture cannot be used ({pixels.reason}): {pixels.detail}", "use another one."
        )
    features: Any = teacher.encode_images(pixels[None]).numpy()
    return features  # type: ignore[no-any-return]


def check_query(query: str) -> None:
    """Refuse a text that cannot be searched for.

    Raises:
        InputError: it is empty or longer than 10,000 characters.
    """
    if not query.strip():
        raise InputError("the query is empty.", 'search for something, such as "a red circle".')
    if len(query) > MAX_QUERY_CHARACTERS:
        raise InputError(
            f"the query has {len(query):,} characters, more than {MAX_QUERY_CHARACTERS:,}.",
            "shorten it.",
        )


def read_queries(content: bytes, source: str) -> list[str]:
    """One query a line, UTF-8; empty lines are left out.

    Args:
        content: of a file or stdin.
        source: its name, for errors.

    Raises:
        InputError: it is no text, holds no query, or a line is too long.
    """
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{source} is no UTF-8 text (byte {error.start:,}).", "give one query a line."
        ) from None
    queries = {number: line for number, line in enumerate(lines, start=1) if line.strip()}
    for number, query in queries.items():
        try:
            check_query(query)
        except InputError as error:
            raise InputError(f"{source}, line {number}: {error.what}", error.fix) from None
    if not queries:
        raise InputError(f"{source} holds no query.", "give one query a line.")
    return list(queries.values())
