"""CONTRACT of the index, and the only user of faiss.

    captions.faiss   student embeddings of the captions, L2-normalised, inner product
    images.faiss     images through the image head, L2-normalised; absent for a text-only student
    rows.parquet     what each vector is: kind, row, id, text, archive, member
    manifest.json    schema, model hash, corpus fingerprint, kind, counts

Scores are cosines. `row` is the vector's number in the file of its `kind` (caption or image); an
image's `text` is its first caption. A GPU index is never saved: the files open anywhere.
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

SCHEMA = 1
Kind = Literal["caption", "image"]
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

    searchers: dict[Kind, Any]
    """The FAISS index of each kind."""
    rows: pd.DataFrame

    def search(
        self, kind: Kind, queries: Vectors, k: int
    ) -> tuple[Float32[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]:
        """The cosines and row numbers of the k nearest vectors, best first.

        Raises:
            InputError: the index holds no vectors of this kind.
        """
        if kind not in self.searchers:
            raise InputError(
                f"the index holds no {kind}s: its student was trained without pictures.",
                "run `dvc exp run -S train.objective=kdmcse`.",
            )
        searcher = self.searchers[kind]
        return searcher.search(normalise(queries), min(k, searcher.ntotal))  # type: ignore[no-any-return]

    def rows_of(self, kind: Kind) -> pd.DataFrame:
        """The rows of one kind, in the order of its vectors."""
        return self.rows[self.rows["kind"] == kind].reset_index(drop=True)


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
    captions = pairs.captions
    vectors: dict[Kind, Vectors] = {
        "caption": student.encoder.encode(
            list(captions["caption"]), batch_size=params.batch_size, show_progress=True
        )
    }
    tables = [_caption_rows(pairs)]
    if student.sees_images:
        vectors["image"] = np.concatenate(
            [student.ground_images(block) for _, block in blocks(features.images)]
        )
        tables.append(_image_rows(pairs, features))
    counts = {f"{kind}s": len(rows) for kind, rows in vectors.items()}
    with atomic_folder(folder) as target:
        for kind, rows in vectors.items():
            faiss.write_index(_flat_index(rows), str(target / f"{kind}s.faiss"))
        write_table(target / "rows.parquet", pd.concat(tables), ROWS)
        write_json(
            target / "manifest.json",
            {
                "schema": SCHEMA,
                "model": hash_student(model),
                "corpus": pairs.fingerprint(),
                "kind": params.kind,
                **counts,
            },
        )
    return {**counts, "bytes": sum(path.stat().st_size for path in folder.iterdir())}


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
    kinds: tuple[Kind, ...] = ("caption", "image")
    searchers = {kind: _open(folder / f"{kind}s.faiss") for kind in kinds if f"{kind}s" in manifest}
    index = Index(searchers, read_table(folder / "rows.parquet", ROWS, made_by="index"))
    for kind, searcher in searchers.items():
        if not searcher.ntotal == len(index.rows_of(kind)) == manifest[f"{kind}s"]:
            raise InputError(f"{folder}: {kind}s.faiss does not fit its rows table.", _REBUILD)
    return index


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
