"""ONNX graphs: of the student with its tokenizer, which start without torch, and of its parts."""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from tokenizers import Tokenizer
from torch import Tensor, nn

from pipeline.student.encoder import SentenceEncoder, Student, run_padded

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
    texts = Tokenizer.from_str(encoder.tokenizer.backend_tokenizer.to_str())
    texts.enable_truncation(encoder.max_length, direction=encoder.tokenizer.truncation_side)
    texts.no_padding()
    tokenizer.write_text(texts.to_str(), encoding="utf-8")
    ids = torch.tensor([[2, 3, 4], [5, 6, 7]])
    tokens = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    export_graph(_BothSpaces(student), tokens, graph, outputs=("texts", "images"))


class _Tokens(nn.Module):
    """The last hidden states of a sentence encoder."""

    def __init__(self, encoder: SentenceEncoder) -> None:
        super().__init__()
        self.backbone = encoder.backbone

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        tokens = {"input_ids": input_ids, "attention_mask": attention_mask}
        return run_padded(self.backbone, tokens)


def export_backbone(encoder: SentenceEncoder, graph: Path, int8: Path) -> None:
    """Write the encoder without its pooling, as sentence-transformers reads it, and in 8 bits.

    The graphs take `input_ids` and `attention_mask` and give `last_hidden_state`.

    Raises:
        ValueError: the encoder does not fit one ONNX file.
    """
    from onnxruntime.quantization import quantize_dynamic

    ids = torch.tensor([[2, 3, 4], [5, 6, 7]])
    tokens = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    export_graph(_Tokens(encoder), tokens, graph, outputs=("last_hidden_state",))
    with _quiet():
        quantize_dynamic(graph, int8)


def export_graph(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    graph: Path,
    *,
    outputs: tuple[str, ...],
    free: tuple[int, ...] = (0, 1),
) -> None:
    """Write a module as one ONNX file.

    Args:
        module: on the CPU.
        inputs: examples by the name of the module's argument.
        graph: the .onnx file, weights included.
        outputs: names of what the module gives.
        free: dimensions of the inputs that may have any length.

    Raises:
        ValueError: its weights do not fit one file.
    """
    with _quiet(), torch.inference_mode():
        program = torch.onnx.export(
            module.eval(),
            kwargs=dict(inputs),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=dict.fromkeys(inputs, dict.fromkeys(free, torch.export.Dim.DYNAMIC)),
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # as it is by dynamo
    values = (value.const_value for value in program.model.graph.initializers.values())
    size = sum(value.nbytes for value in values if value is not None)
    if size > _MOST_BYTES:
        msg = f"its weights take {size:,} bytes, and an ONNX file holds {_MOST_BYTES:,}"
        raise ValueError(msg)
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
