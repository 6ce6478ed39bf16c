"""Queries as vectors: the student exported once to ONNX, which starts much faster than torch.

The export is a copy of the student, not another model: `export_queries` holds its vectors against
the student's own and leaves none where they differ.
"""

import contextlib
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

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
    from torch import nn

    from pipeline.student.encoder import Student

_BATCH = 64
_TOLERANCE = 1e-4
"""Largest difference of a value of normalised vectors; float32 sums in another order give 1e-6."""
_MOST_BYTES = 2_000_000_000
"""Of weights; protobuf's limit of 2 GiB is that of a whole file."""
_PROBES = (
    "",
    "a",
    "two dogs on a beach",
    "A café, 3 rôles & 日本 🙂!",
    " ".join(["red", *["blue"] * 600, "green"]),
)


@runtime_checkable
class Queries(Protocol):
    """What makes a query's vector."""

    def embed(self, texts: Sequence[str], target: Target) -> Vectors:
        """A vector a text.

        Args:
            texts: the queries.
            target: `texts` gives sentence embeddings, `images` vectors of the shared space; of a
                student that never saw pictures, sentence embeddings too.
        """


@dataclass(frozen=True)
class ExportedQueries:
    """The student as an ONNX graph; does not import torch."""

    session: Any
    tokenizer: Any

    @classmethod
    def open(cls, folder: Path) -> "ExportedQueries":
        """Open what `export_queries` wrote into an index.

        Raises:
            InputError: a file is missing, is not what was written, or its library refuses it.
        """
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
        """As `Queries.embed`."""
        parts = [
            self._embed_batch(texts[start : start + _BATCH], target)
            for start in range(0, len(texts), _BATCH)
        ]
        return np.concatenate(parts)

    def _embed_batch(self, texts: Sequence[str], target: Target) -> Vectors:
        encoded = [one.ids for one in self.tokenizer.encode_batch(list(texts))]
        lengths = np.array([len(ids) for ids in encoded])
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids = np.zeros(mask.shape, dtype=np.int64)
        ids[mask] = np.concatenate(encoded)
        tokens = {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
        with unusable(Path(QUERY)):
            (found,) = self.session.run([target], tokens)
            vectors = np.asarray(found, dtype=np.float32)
        if not np.isfinite(vectors).all():
            raise InputError(f"{QUERY} gave a vector that is not finite.", REBUILD)
        return vectors


@dataclass(frozen=True)
class StudentQueries:
    """The student itself, for encoders that could not be exported."""

    student: "Student"

    def embed(self, texts: Sequence[str], target: Target) -> Vectors:
        """As `Queries.embed`."""
        vectors = self.student.encoder.encode(texts, batch_size=_BATCH)
        if target == "images" and self.student.sees_images:
            return self.student.ground_sentences(vectors)
        return vectors


def export_queries(model: Path, kept: Path, folder: Path) -> bool:
    """Write the student for queries into the index, with its tokenizer.

    Args:
        model: the student.
        kept: where its export is kept for the next index.
        folder: the index, which exists.

    Returns:
        Whether it is there: not, with a warning, where the encoder cannot be exported or its
        export gives other vectors.

    Raises:
        ResourceError: the disk is full, or the place cannot be written.
    """
    made = kept / f"query-{SCHEMA}-{hash_student(model)[:32]}"
    try:
        if not _opens(made):
            with atomic_folder(made) as target:
                _export(model, target)
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


def _export(model: Path, folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer

    from pipeline.student.encoder import load_student

    student = load_student(model, torch.device("cpu"))
    encoder = student.encoder
    _require_one_file(student)
    tokenizer = Tokenizer.from_str(encoder.tokenizer.backend_tokenizer.to_str())
    side = encoder.tokenizer.truncation_side
    tokenizer.enable_truncation(encoder.max_length, direction=side)
    tokenizer.no_padding()
    (folder / TOKENIZER).write_text(tokenizer.to_str(), encoding="utf-8")
    # onnxruntime reads no data file behind a link, which files of a DVC cache may be.
    _export_graph(student).save(folder / QUERY, external_data=False)
    _compare(student, ExportedQueries.open(folder))
    write_checksums(folder, *(path.name for path in folder.iterdir()))


def _require_one_file(student: "Student") -> None:
    """Refuse what one ONNX file and one tokenizer cannot hold.

    Raises:
        ValueError: saying what that is.
    """
    if student.encoder.prompt:
        msg = "its prompt is no part of its tokenizer"
        raise ValueError(msg)
    parts = (*student.encoder.parameters(), *student.heads.parameters())
    size = sum(part.numel() * part.element_size() for part in parts)
    if size > _MOST_BYTES:
        msg = f"its weights take {size:,} bytes, and an ONNX file holds {_MOST_BYTES:,}"
        raise ValueError(msg)


def _export_graph(student: "Student") -> Any:
    """The graph, in memory: its exporter would not say why a file cannot be written.

    The exporter notes at each node which lines of which files it comes of. That is taken out: the
    same student gives the same bytes wherever the project lies.
    """
    import torch
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ids = torch.tensor([[2, 3, 4], [5, 6, 7]])
    tokens = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with warnings.catch_warnings(), torch.inference_mode(), _quiet():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _as_module(student),
            kwargs=tokens,
            input_names=list(tokens),
            output_names=["texts", "images"],
            dynamic_shapes=dict.fromkeys(tokens, free),
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # as it is by dynamo
    ClearMetadataAndDocStringPass()(program.model)
    return program


def _as_module(student: "Student") -> "nn.Module":
    from torch import Tensor, nn

    class BothSpaces(nn.Module):
        """Sentence embeddings, and the same in the shared space."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = student.encoder
            self.heads = student.heads

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
            vectors = self.encoder({"input_ids": input_ids, "attention_mask": attention_mask})
            if not student.sees_images:
                return vectors, vectors.clone()
            return vectors, self.heads.ground_sentences(vectors)

    return BothSpaces().eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's reports off the user's screen."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _compare(student: "Student", exported: ExportedQueries) -> None:
    targets: tuple[Target, ...] = ("texts", "images")
    for target in targets:
        own = StudentQueries(student).embed(_PROBES, target)
        other = exported.embed(_PROBES, target)
        length = np.linalg.norm(own, axis=1, keepdims=True)
        if not np.abs((own - other) / length).max() <= _TOLERANCE:
            msg = "the exported encoder gives other vectors"
            raise ValueError(msg)
