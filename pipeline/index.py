"""CONTRACT of the index, and the only user of faiss.

    captions.faiss   student embeddings of the captions, L2-normalised, inner product
    grounded.faiss   the same captions in the space shared with the teacher, L2-normalised
    images.faiss     images in that space, L2-normalised
    rows.parquet     what each vector is: kind, row, id, text, archive, member
    manifest.json    schema, model hash, corpus fingerprint, kind, counts

Scores are cosines. `row` is the vector's number in the files of its `kind` (caption or image); an
image's `text` is its first caption. A text-only student has captions.faiss alone. A GPU index is
never saved: the files open anywhere.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Float32, Int64

from pipeline.download.records import Pairs, read_table, write_table
from pipeline.encoder import Student, hash_student
from pipeline.errors import InputError, MissingArtifactError, StaleArtifactError
from pipeline.features.store import Features, blocks
from pipeline.params.index import IndexParams
from pipeline.runtime import atomic_folder, write_json

SCHEMA = 2
Kind = Literal["caption", "image"]
Space = Literal["captions", "grounded", "images"]
"""A file of vectors."""
KIND_OF: dict[Space, Kind] = {"captions": "caption", "grounded": "caption", "images": "image"}
Vectors = Float32[np.ndarray, "rows dim"]

ROWS = pa.schema(
    [
        ("kind", pa.string()),
        ("row", pa.int64()),
        ("id", pa.int64()),
        ("text", pa.string()),
        ("archive", pa.string()),
        ("member", pa.string()),
    ]
)

_REBUILD = "run `dvc repro -f index`."


@dataclass(frozen=True)
class Index:
    """An opened index."""

    searchers: dict[Space, Any]
    """The FAISS index of each file."""
    rows: dict[Kind, pd.DataFrame]
    """What the vectors of each kind are, in their order."""

    def search(
        self, space: Space, queries: Vectors, k: int
    ) -> tuple[Float32[np.ndarray, "queries found"], Int64[np.ndarray, "queries found"]]:
        """The cosines and row numbers of the k nearest vectors, best first.

        Raises:
            InputError: the index holds no such vectors.
        """
        if space not in self.searchers:
            raise InputError(
                f"the index holds no {space} vectors: its student was trained without pictures.",
                "run `dvc exp run -S train.objective=kdmcse`.",
            )
        searcher = self.searchers[space]
        return searcher.search(normalise(queries), min(k, searcher.ntotal))  # type: ignore[no-any-return]


def build_index(
    folder: Path,
    student: Student,
    model: Path,
    pairs: Pairs,
    features: Features,
    params: IndexParams,
) -> dict[str, Any]:
    """Embed all captions and images, and write the index.

    Args:
        folder: where the index goes.
        student: the loaded student.
        model: its directory, for its hash.
        pairs: captions and images.
        features: the teacher's features of the same pairs.
        params: the index block.

    Returns:
        Metrics: counts and bytes.

    Raises:
        StaleArtifactError: the features are of another teacher than the student's.
    """
    student.require_teacher(features.teacher)
    vectors = _embed(student, pairs, features, params)
    tables = [_caption_rows(pairs)]
    if student.sees_images:
        tables.append(_image_rows(pairs, features))
    counts = {
        f"{kind}s": len(vectors[space]) for space, kind in KIND_OF.items() if space in vectors
    }
    with atomic_folder(folder) as target:
        for space, rows in vectors.items():
            faiss.write_index(_flat_index(rows), str(target / f"{space}.faiss"))
        write_table(target / "rows.parquet", pd.concat(tables), ROWS)
        write_json(
            target / "manifest.json",
            {
                "schema": SCHEMA,
                "model": hash_student(model),
                "corpus": pairs.fingerprint(),
                "kind": params.kind,
                "spaces": list(vectors),
                **counts,
            },
        )
    return {**counts, "bytes": sum(path.stat().st_size for path in folder.iterdir())}


def _embed(
    student: Student, pairs: Pairs, features: Features, params: IndexParams
) -> dict[Space, Vectors]:
    captions = student.encoder.encode(
        list(pairs.captions["caption"]), batch_size=params.batch_size, show_progress=True
    )
    if not student.sees_images:
        return {"captions": captions}
    images = [student.ground_images(block) for _, block in blocks(features.images)]
    return {
        "captions": captions,
        "grounded": student.ground_sentences(captions),
        "images": np.concatenate(images),
    }


def open_index(folder: Path, model: Path) -> Index:
    """Open an index for the queries of one student.

    Raises:
        MissingArtifactError: there is none.
        StaleArtifactError: another student made it, or another version of the project.
        InputError: a file is damaged, or the files do not belong together.
    """
    manifest = _read_manifest(folder)
    for key, wanted in (("schema", SCHEMA), ("model", hash_student(model))):
        if manifest.get(key) != wanted:
            raise StaleArtifactError(
                f"{folder} was built by another {'student' if key == 'model' else 'version'} "
                f"than {model}.",
                _REBUILD,
            )
    table = read_table(folder / "rows.parquet", ROWS, made_by="index")
    kinds: tuple[Kind, ...] = ("caption", "image")
    rows = {kind: table[table["kind"] == kind].reset_index(drop=True) for kind in kinds}
    searchers = {
        space: _open(folder / f"{space}.faiss")
        for space in KIND_OF
        if space in manifest.get("spaces", ())
    }
    for space, searcher in searchers.items():
        kind = KIND_OF[space]
        if not searcher.ntotal == len(rows[kind]) == manifest.get(f"{kind}s"):
            raise InputError(f"{folder}: {space}.faiss does not fit its rows table.", _REBUILD)
    return Index(searchers, rows)


def normalise(vectors: Vectors) -> Vectors:
    """L2-normalised copy, so that inner products are cosines."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(norms, 1e-12), dtype=np.float32)


def _flat_index(vectors: Vectors) -> Any:
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(normalise(vectors))
    return index


def _caption_rows(pairs: Pairs) -> pd.DataFrame:
    table = pairs.captions.merge(pairs.images, on="image_id", how="left", validate="many_to_one")
    return _as_rows("caption", table, "caption_id")


def _image_rows(pairs: Pairs, features: Features) -> pd.DataFrame:
    first = pairs.captions.drop_duplicates("image_id")
    images = pairs.images.set_index("image_id").loc[features.image_ids].reset_index()
    return _as_rows("image", images.merge(first, on="image_id", how="left"), "image_id")


def _as_rows(kind: Kind, table: pd.DataFrame, id_column: str) -> pd.DataFrame:
    renamed = table.rename(columns={"caption": "text"})
    renamed = renamed.assign(kind=kind, row=range(len(table)), id=table[id_column])
    return pd.DataFrame(renamed[ROWS.names])


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise MissingArtifactError(folder, made_by="index") from None
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} cannot be read: {error}.", _REBUILD) from None


def _open(path: Path) -> Any:
    try:
        return faiss.read_index(str(path))
    except RuntimeError:  # faiss raises nothing narrower
        raise InputError(f"{path} is missing or damaged.", _REBUILD) from None
