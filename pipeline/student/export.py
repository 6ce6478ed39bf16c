"""The student exported to one ONNX graph and one tokenizer file, which start without torch."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from tokenizers import Tokenizer
from torch import Tensor, nn

from pipeline.student.encoder import Student

_MOST_BYTES = 2_000_000_000
"""Of weights; protobuf's limit of 2 GiB is that of a whole file."""


class _BothSpaces(nn.Module):
    """Sentence embeddings, and the same in the space shared with the teacher."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.encoder = student.encoder
        self.heads = student.heads
        self._ground = student.heads.ground_sentences if student.sees_images else torch.clone

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        vectors = self.encoder({"input_ids": input_ids, "attention_mask": attention_mask})
        return vectors, self._ground(vectors)


def export_student(student: Student, graph: Path, tokenizer: Path) -> None:
    """Write a student as an ONNX graph from token ids to vectors, and its tokenizer.

    The graph takes `input_ids` and `attention_mask`, both int64 (batch, tokens), and gives `texts`
    (batch, dim), the sentence embeddings, and `images`, the same in the space shared with the
    teacher; for a student trained without pictures both are the same. The same student gives the
    same bytes.

    Args:
        student: on the CPU.
        graph: the .onnx file, weights included.
        tokenizer: the .json file; it cuts texts to the student's length and does not pad.

    Raises:
        ValueError: the student does not fit one ONNX file and one tokenizer.
    """
    encoder = student.encoder
    if encoder.prompt:
        msg = "its prompt is not part of its tokenizer"
        raise ValueError(msg)
    parts = (*encoder.parameters(), *student.heads.parameters())
    size = sum(part.numel() * part.element_size() for part in parts)
    if size > _MOST_BYTES:
        msg = f"its weights take {size:,} bytes, and an ONNX file holds {_MOST_BYTES:,}"
        raise ValueError(msg)
    texts = Tokenizer.from_str(encoder.tokenizer.backend_tokenizer.to_str())
    texts.enable_truncation(encoder.max_length, direction=encoder.tokenizer.truncation_side)
    texts.no_padding()
    tokenizer.write_text(texts.to_str(), encoding="utf-8")
    ids = torch.tensor([[2, 3, 4], [5, 6, 7]])
    tokens = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with _quiet(), torch.inference_mode():
        program = torch.onnx.export(
            _BothSpaces(student).eval(),
            kwargs=tokens,
            input_names=list(tokens),
            output_names=["texts", "images"],
            dynamic_shapes=dict.fromkeys(tokens, free),
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # as it is by dynamo
    # The exporter notes the source lines of each node: the bytes would depend on where they are.
    ClearMetadataAndDocStringPass()(program.model)
    # The exporter itself does not say why a file cannot be written. onnxruntime does not read a
    # data file behind a link, which files of a DVC cache may be.
    program.save(graph, external_data=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's reports off the user's screen."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
