"""From queries, which are texts or pictures, to hits."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.errors import InputError, StaleArtifactError
from pipeline.core.plaintext import MARK, is_blank, read_lines
from pipeline.index.format import (
    Hit,
    Index,
    Space,
    Target,
    Vectors,
    VectorSpace,
    Window,
    read_manifest,
    require_space,
)
from pipeline.index.queries import ExportedQueries, Queries, StudentQueries

if TYPE_CHECKING:
    from pipeline.features.teacher import Teacher
    from pipeline.student.encoder import Student

WINDOW = Window()
"""The first ten."""
MAX_QUERY_CHARACTERS = 10_000


@dataclass(frozen=True)
class Answer:
    """The hits of one query."""

    query: str
    hits: list[Hit]


@dataclass(frozen=True)
class Searcher:
    """A student and its index, opened once for many queries; safe in threads."""

    model: Path
    index: Index
    queries: Queries
    corpus: str
    """Fingerprint of the pairs that the index was built from."""

    @classmethod
    def open(cls, model: Path, folder: Path, vectors: Index | None = None) -> "Searcher":
        """Open an index and its student's queries, on the CPU, without torch if it is exported.

        Args:
            model: the student.
            folder: its index.
            vectors: the rows, if they are not in the folder.

        Raises:
            MissingArtifactError: there is no index.
            StaleArtifactError: another student made it, or another version of the project.
            InputError: there is no such student, or a file is damaged, refused by its library or
                does not fit the others.
        """
        manifest = read_manifest(folder, model)
        if vectors is None:
            from pipeline.index.reader import FileIndex

            vectors = FileIndex.open(folder, manifest["spaces"])
        queries: Queries
        if manifest.get("exported") and find_spec("onnxruntime"):
            queries = ExportedQueries.open(folder)
        else:
            queries = StudentQueries(_load_student(model))
        return cls(model, vectors, queries, str(manifest.get("corpus")))

    def search(
        self, queries: Sequence[str], *, target: Target, window: Window = WINDOW
    ) -> list[list[Hit]]:
        """The best texts (by sentence embedding) or images (through the heads) for each query.

        Raises:
            InputError: as `check_query`, or the index holds no such rows.
        """
        for query in queries:
            check_query(query)
        return self.index.search(target, self._embed(queries, target), window)

    def embed(self, texts: Sequence[str], space: VectorSpace) -> Vectors:
        """One vector a text; those of the shared space are L2-normalised.

        Raises:
            InputError: as `check_query`, naming the text, or the student has no shared space.
        """
        for number, text in enumerate(texts):
            try:
                check_query(text)
            except InputError as error:
                raise InputError(f"texts.{number}: {error.what}", error.fix) from None
        if space == "text":
            return self._embed(texts, "texts")
        require_space("images" if "images" in self.index.spaces else "grounded", self.index.spaces)
        return self._embed(texts, "images")

    def _embed(self, texts: Sequence[str], target: Target) -> Vectors:
        return self.queries.embed([text.replace(MARK, "") for text in texts], target)

    def search_by_image(
        self, picture: bytes, teacher: "Teacher", *, target: Target, window: Window = WINDOW
    ) -> list[Hit]:
        """The best texts, or the most similar images, for a picture's file, through the heads.

        Raises:
            InputError: as `embed_image`, or the index holds no such rows.
            StaleArtifactError, ModelError: as `embed_image`.
        """
        vector = self.embed_image(picture, teacher)
        return self.index.search(grounded_space(target), vector, window)[0]

    def embed_image(self, picture: bytes, teacher: "Teacher") -> Vectors:
        """The vector of a picture's file in the shared space, as a table of one row.

        Raises:
            InputError: the picture cannot be used.
            StaleArtifactError: the heads were trained on features of another teacher.
            ModelError: the student was trained without pictures.
        """
        from pipeline.download.packed_images import Rejection

        self._student.require_teacher(teacher.identity.weights)
        pixels = teacher.decode(picture)
        if isinstance(pixels, Rejection):
            raise InputError(
                f"the picture cannot be used ({pixels.reason}): {pixels.detail}", "use another one."
            )
        return self._student.ground_images(teacher.encode_images(pixels[None]).numpy())

    @cached_property
    def _student(self) -> "Student":
        return _load_student(self.model)


def grounded_space(target: Target) -> Space:
    """The vectors that a picture is compared with."""
    return "grounded" if target == "texts" else target


def _load_student(model: Path) -> "Student":
    import torch

    from pipeline.student.encoder import Student

    return Student.load(model, torch.device("cpu"))


def require_corpus(pairs: Path, corpus: str) -> None:
    """Refuse a folder of other pairs than an index was built from, by their fingerprint.

    Raises:
        MissingArtifactError: there are no pairs.
        StaleArtifactError: the index was built from others.
    """
    from pipeline.download.records import read_pairs

    if read_pairs(pairs).fingerprint() != corpus:
        raise StaleArtifactError(
            f"the index was built from other pairs than {pairs}.", "run `dvc repro index`."
        )


def check_query(query: str) -> None:
    """Refuse a text that cannot be searched for.

    Raises:
        InputError: it is empty, not a text, or longer than 10,000 characters.
    """
    if is_blank(query):
        raise InputError("the query is empty.", 'search for something, such as "a red circle".')
    if not query.isascii() and query.encode("utf-8", "replace").decode() != query:
        raise InputError("the query is not UTF-8 text.", "type it again.")
    if "\0" in query:
        raise InputError("the query holds NUL, which no text does.", "type it again.")
    if len(query) > MAX_QUERY_CHARACTERS:
        what = f"the query has {len(query):,} characters, more than {MAX_QUERY_CHARACTERS:,}."
        raise InputError(what, "shorten it.")


def read_queries(content: bytes, source: str) -> list[str]:
    """One query a line (plaintext.py says what a line is); blank lines are left out.

    Raises:
        InputError: naming the source: it is not a text, holds no query, or a line is too long.
    """
    lines = read_lines(io.BytesIO(content), source)
    queries = {number: line.rstrip("\n") for number, line in lines if not is_blank(line)}
    for number, query in queries.items():
        try:
            check_query(query)
        except InputError as error:
            raise InputError(f"{source}, line {number}: {error.what}", error.fix) from None
    if not queries:
        raise InputError(f"{source} holds no query.", "give one query a line.")
    return list(queries.values())
