"""CONTRACT of the index: a folder that `index` writes and `search` reads.

    texts.faiss      sentence embeddings of the texts, L2-normalised, inner product
    grounded.faiss   the same texts in the space shared with the teacher, L2-normalised
    images.faiss     images in that space, L2-normalised
    texts.parquet    what each row of texts.faiss and grounded.faiss is
    images.parquet   what each row of images.faiss is
    query.onnx       the student for queries, weights included, where it could be exported
    tokenizer.json   the student's, beside it
    manifest.json    schema, model hash, corpus fingerprint, spaces, numbers of rows, exported
    checksums.json   sha256 of all of them; files of up to 256 MiB are verified when they are opened

Scores are cosines. A text that occurs several times, or an image with the same features as another
one, is one row with its `count`; `id`, `archive` and `member` are those of the first. An image's
`text` is its first caption. `kind` is caption, sentence, text (a line of the user's own file, whose
`id` is its number from 1) or image. The index of a text-only student has only texts.faiss and
texts.parquet. A GPU index is never saved: the files open anywhere.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from pipeline.core.checksums import CHECKSUMS, verify_checksums, write_checksums
from pipeline.core.device import ran_out_of_memory
from pipeline.core.errors import InputError, PipelineError, StaleArtifactError
from pipeline.core.files import read_json, write_json
from pipeline.core.redact import first_line
from pipeline.student.directory import hash_student

SCHEMA = 4
Target = Literal["texts", "images"]
"""What is ranked."""
Space = Literal["texts", "grounded", "images"]
"""A file of vectors."""
VectorSpace = Literal["text", "shared"]
"""As users see it: that of sentence embeddings, or the one that texts and pictures share."""
TARGET_OF: dict[Space, Target] = {"texts": "texts", "grounded": "texts", "images": "images"}
Vectors = Float32[np.ndarray, "rows dim"]
QUERY = "query.onnx"
TOKENIZER = "tokenizer.json"
REBUILD = (
    "run `dvc repro -f index`; for an index elsewhere, "
    "`python -m stages.index --model MODEL --out INDEX`."
)
MANIFEST = "manifest.json"
_READ_AT_ONCE = 1 << 28
"""Larger files, in bytes, are mapped: opening them must not mean reading, and verifying, them."""

ROWS = pa.schema(
    {"kind": "string", "id": "int64", "text": "string", "count": "int64"}
    | dict.fromkeys(("archive", "member"), "string")
)
"""Of a table; `Hit` explains them."""


@dataclass(frozen=True)
class Hit:
    """One result."""

    rank: int
    """From 1, best first."""
    score: float
    """Cosine of query and result, -1 to 1."""
    kind: Literal["caption", "sentence", "text", "image"]
    id: int
    """caption_id, row of the sentence, line of the own text, or image_id."""
    text: str
    """The text, or the first caption of the image."""
    count: int
    """How often it occurs."""
    archive: str
    """File name of the image's archive; empty where there is no image."""
    member: str
    """The image's name in it."""


@dataclass(frozen=True)
class Window:
    """Which of the ranked results are wanted.

    Raises:
        InputError: k is below 1, offset below 0, or the score is not a cosine.
    """

    k: int = 10
    """Results at most."""
    offset: int = 0
    """Results left out before them."""
    min_score: float = -1.0
    """The lowest cosine."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"k is {self.k}.", "ask for at least 1 result.")
        if self.offset < 0:
            raise InputError(f"the offset is {self.offset}.", "use 0 or more.")
        if not -1 <= self.min_score <= 1:
            raise InputError(f"the lowest score is {self.min_score}.", "use a cosine, -1 to 1.")


@runtime_checkable
class Index(Protocol):
    """What a search needs of an index, in files or in Milvus."""

    @property
    def spaces(self) -> Collection[Space]:
        """The vectors it holds."""

    def search(self, space: Space, queries: Vectors, window: Window) -> list[list[Hit]]:
        """The nearest rows to each query, best first.

        Queries are one a row, of any length above 0.

        Raises:
            InputError: the index holds no such vectors, or they are of another width.
        """


def require_space(space: Space, held: Collection[Space]) -> None:
    """Refuse a search in vectors that the index does not hold, saying how to add them."""
    if space in held:
        return
    if space == "images" and "grounded" in held:
        raise InputError("the index holds no images.", "add images to index.items and rebuild it.")
    if "texts" not in held:
        raise InputError("the index holds no texts.", "add captions to index.items and rebuild it.")
    wanted = "images" if space == "images" else "texts for pictures"
    raise InputError(
        f"the index holds no {wanted}: its student was trained without pictures.",
        "run `dvc exp run -S train.objective=kdmcse`.",
    )


def normalise(vectors: Vectors) -> Vectors:
    """L2-normalised copy, so that inner products are cosines."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(norms, 1e-12), dtype=np.float32)


def write_manifest(
    folder: Path, model: Path, corpus: str, rows: Mapping[Space, int], *, exported: bool
) -> None:
    """Write the manifest, and then the checksums of all files: the index is complete.

    Args:
        folder: the index.
        model: the student that embeds its queries.
        corpus: fingerprint of the pairs.
        rows: how many vectors of each space are in the folder.
        exported: whether the student's export is.
    """
    manifest = {
        "schema": SCHEMA,
        "model": hash_student(model),
        "corpus": corpus,
        "spaces": list(rows),
        "rows": dict(rows),
        "exported": exported,
    }
    write_json(folder / MANIFEST, manifest)
    write_checksums(
        folder, *sorted(path.name for path in folder.iterdir() if path.name != CHECKSUMS)
    )


def require_whole(folder: Path, *names: str) -> None:
    """Refuse damaged files of an index, with an InputError that names the file."""
    verify_checksums(folder, *names, fix=REBUILD, most=_READ_AT_ONCE)


@contextlib.contextmanager
def unusable(path: Path) -> Iterator[None]:
    """Turn what a library raises about a file of an index into an InputError with its reason.

    The file's checksum was verified before: it is what was written.
    """
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:  # the libraries raise errors of their own, or bare ones
        if ran_out_of_memory(error):
            raise
        raise InputError(f"{path} cannot be used: {first_line(error)}.", REBUILD) from None


def read_manifest(folder: Path, model: Path) -> dict[str, Any]:
    """The manifest of an index that answers the queries of a student, verified.

    Raises:
        MissingArtifactError: there is no index.
        StaleArtifactError: another student made it, or another version of the project.
        InputError: there is no such student, or the manifest is damaged.
    """
    if not model.is_dir():
        raise InputError(
            f"{model} does not exist.",
            "name a student's folder; `dvc repro train` makes the default one.",
        )
    manifest = read_json(folder / MANIFEST, made_by="index")
    require_whole(folder, MANIFEST)
    if manifest.get("schema") != SCHEMA:
        raise StaleArtifactError(f"{folder} was built by another version of the project.", REBUILD)
    if manifest.get("model") != hash_student(model):
        raise StaleArtifactError(f"{folder} was built by another student than {model}.", REBUILD)
    spaces = manifest.get("spaces")
    if not isinstance(spaces, list) or any(space not in list(TARGET_OF) for space in spaces):
        raise InputError(f"{folder / MANIFEST} names no spaces.", REBUILD)
    return manifest
