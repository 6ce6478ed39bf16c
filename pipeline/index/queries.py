"""Queries as vectors: by the student exported to ONNX, which starts much faster than torch.

The export is verified against the student's own vectors; where they differ, there is no export.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from pipeline.core.checksums import write_checksums
from pipeline.core.device import ran_out_of_memory
from pipeline.core.errors import InputError, ResourceError
from pipeline.core.files import atomic_folder
from pipeline.core.progress import log
from pipeline.core.redact import first_line
from pipeline.index.format import (
    QUERY,
    REBUILD,
    SCHEMA,
    TOKENIZER,
    Target,
    Vectors,
    require_whole,
    unusable,
)
from pipeline.student.directory import hash_student

if TYPE_CHECKING:
    from pipeline.student.encoder import Student

_BATCH = 64
_TOLERANCE = 1e-4
"""Largest difference of a value of normalised vectors; float32 sums in another order give 1e-6."""
_LONG = " ".join(["red", *["blue"] * 600, "green"])
_PROBES = ("", "a", "two dogs on a beach", "A café, 3 rôles & 日本 🙂!", _LONG)


@dataclass(frozen=True)
class ExportedQueries:
    """The student as an ONNX graph; does not import torch."""

    session: Any
    tokenizer: Any

    @classmethod
    def open(cls, folder: Path) -> "ExportedQueries":
        """Open what `export_queries` wrote; InputError where a file cannot be used."""
        import onnxruntime
        from tokenizers import Tokenizer

        require_whole(folder, TOKENIZER, QUERY)
        with unusable(folder / TOKENIZER):
            tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        with unusable(folder / QUERY):
            session = onnxruntime.InferenceSession(
                str(folder / QUERY), providers=["CPUExecutionProvider"]
            )
        return cls(session, tokenizer)

    def embed(self, texts: Sequence[str], target: Target) -> Vectors:
        """One vector a text.

        They are sentence embeddings for `texts`, and vectors of the shared space for `images`; a
        student trained without pictures has only the former.
        """
        found: list[Vectors] = []
        for start in range(0, len(texts), _BATCH):
            encoded = self.tokenizer.encode_batch(list(texts[start : start + _BATCH]))
            lengths = np.array([len(one.ids) for one in encoded])
            mask = np.arange(lengths.max()) < lengths[:, None]
            ids = np.zeros(mask.shape, dtype=np.int64)
            ids[mask] = np.concatenate([one.ids for one in encoded])
            tokens = {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
            with unusable(Path(QUERY)):
                found.append(np.asarray(self.session.run([target], tokens)[0], dtype=np.float32))
            if not np.isfinite(found[-1]).all():
                raise InputError(f"{QUERY} gave a vector that is not finite.", REBUILD)
        return np.concatenate(found)


@dataclass(frozen=True)
class StudentQueries:
    """The student itself, for encoders that could not be exported."""

    student: "Student"

    def embed(self, texts: Sequence[str], target: Target) -> Vectors:
        """As `ExportedQueries.embed`."""
        vectors = self.student.encoder.encode(texts, batch_size=_BATCH)
        if target == "images" and self.student.sees_images:
            return self.student.ground_sentences(vectors)
        return vectors


Queries = ExportedQueries | StudentQueries


def export_queries(model: Path, kept: Path, folder: Path) -> bool:
    """Write the exported student, with its tokenizer, into the folder of an index.

    The export is kept for the next index.

    Returns:
        Whether it was written: not, with a warning, if the encoder cannot be exported or its
        export gives other vectors.

    Raises:
        ResourceError: the disk is full, or the place cannot be written.
    """
    made = kept / f"query-{SCHEMA}-{hash_student(model)[:32]}"
    try:
        if not _opens(made):
            _export(model, made)
    except ResourceError:
        raise
    except Exception as error:
        if ran_out_of_memory(error):
            raise
        log.warning("queries will be embedded by torch, which starts slower: %s", first_line(error))
        return False
    for name in (TOKENIZER, QUERY):
        shutil.copyfile(made / name, folder / name)
    return True


def _opens(folder: Path) -> bool:
    try:
        ExportedQueries.open(folder)
    except InputError:
        return False
    return True


def _export(model: Path, made: Path) -> None:
    """Export a student, and compare the vectors of both."""
    import torch

    from pipeline.student.encoder import Student
    from pipeline.student.export import export_student

    with atomic_folder(made) as folder:
        student = Student.load(model, torch.device("cpu"))
        export_student(student, folder / QUERY, folder / TOKENIZER)
        exported, own = ExportedQueries.open(folder), StudentQueries(student)
        for target in get_args(Target):
            expected, found = own.embed(_PROBES, target), exported.embed(_PROBES, target)
            lengths = np.linalg.norm(expected, axis=1, keepdims=True)
            if not np.abs((expected - found) / lengths).max() <= _TOLERANCE:
                msg = "the exported encoder gives other vectors"
                raise ValueError(msg)
        write_checksums(folder, TOKENIZER, QUERY)
