"""CONTRACT of the student: a sentence encoder, its pooling and its grounding heads.

A student directory loads in plain `transformers.AutoModel` and in
`sentence_transformers.SentenceTransformer`; the pooling is saved in it:

    config.json, model.safetensors, tokenizer*     transformers
    modules.json, 1_Pooling/, sentence_bert_config.json   sentence-transformers
    config_sentence_transformers.json              the prompt, where there is one
    heads.json, heads.safetensors                  the grounding heads and their objective
    README.md                                      the model card
    checksums.json                                 sha256 of the files that make an embedding
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import normalizers
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.batching import fetched, length_batches
from pipeline.core.device import choose_device
from pipeline.core.errors import (
    InputError,
    MissingArtifactError,
    ModelError,
    PipelineError,
    StaleArtifactError,
)
from pipeline.core.pretrained import LOAD_HINT, is_pickled
from pipeline.core.progress import progress
from pipeline.core.redact import first_line
from pipeline.student.directory import (
    POOLING_FILE,
    PROMPTS_FILE,
    TEXT_FILE,
    verify_student_checksums,
    write_student_checksums,
)
from pipeline.student.settings import POOLING_KEYS, Pooling, Settings, read_settings

if TYPE_CHECKING:
    import pandas as pd

Tokens = Mapping[str, Int[Tensor, "batch tokens"]]
RunBackbone = Callable[[nn.Module, Tokens], Tensor]

_NO_LIMIT = 1 << 20
"""Tokens, for models that name no limit."""
_TOKENIZED_AT_ONCE = 8192
"""Sentences whose encodings, which are large, are in memory together."""
_USUAL_TOKENS = 32
"""Tokens per sentence; batches of longer sentences have fewer of them, for the same memory."""


@dataclass(frozen=True)
class TokenizedSentences:
    """Sentences as token ids, special tokens included, cut to the model's length."""

    ids: list[NDArray[np.int32]]
    truncated: int
    """Sentences that were cut."""


class SentenceEncoder(nn.Module):
    """A transformers encoder with its tokenizer and pooling.

    Args:
        backbone: a transformers model that returns `last_hidden_state`.
        tokenizer: its fast tokenizer.
        pooling: `cls` (first token) or `mean` (over all tokens that are not padding).
        settings: how texts are read and vectors normalised; `pooling` and `folder` are not used.
    """

    def __init__(
        self,
        backbone: nn.Module,
        tokenizer: Any,
        pooling: Pooling,
        settings: Settings = Settings(),  # noqa: B008  # frozen
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.pooling: Pooling = pooling
        self.normalised = settings.normalised
        self.lower_case = settings.lower_case
        self.prompt = settings.prompt
        if settings.max_length is not None:
            tokenizer.model_max_length = settings.max_length
        if settings.lower_case:  # before all else, as sentence-transformers does
            backend = tokenizer.backend_tokenizer
            own = [] if backend.normalizer is None else [backend.normalizer]
            backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
        self.run_backbone: RunBackbone = run_padded
        """Computes the last hidden states; training may replace it by a faster way."""
        self.truncated = 0
        """Sentences that `encode` had to cut so far."""

    @classmethod
    def load(cls, name: str | Path, pooling: Pooling | None = None) -> "SentenceEncoder":
        """Load a sentence-transformers or plain transformers directory, or a hub name.

        Args:
            name: the directory (a Path is never looked up on the hub) or hub name.
            pooling: overrides the pooling and normalisation of the directory; the embedding is
                then the plain pooled vector.

        Raises:
            MissingArtifactError: `name` is a Path that does not exist.
            ModelError: it cannot be loaded, has an unsupported setting (settings.py), or names no
                pooling and none was given.
        """
        if isinstance(name, Path) and not name.is_dir():
            raise MissingArtifactError(name, made_by="train")
        settings = read_settings(name, pooling)
        if settings.pooling is None:
            raise ModelError(
                f"{name} does not say how it pools its tokens.",
                "pass --pooling cls or --pooling mean.",
            )
        loaded = _load_transformers(name, settings.folder)
        encoder = cls(*loaded, settings.pooling, settings)
        encoder._probe(name)
        return encoder

    def _probe(self, name: str | Path) -> None:
        """Embed one sentence, so that an unsuitable model is refused before any work."""
        try:
            self.encode_tokenized(self.tokenize_all(["a probe"]), batch_size=1)
        except PipelineError:
            raise
        except Exception as error:  # noqa: BLE001  # unsuitable models fail in many ways
            raise ModelError(
                f"{name} does not embed sentences as a BERT-like encoder: {first_line(error)}",
                "use an encoder whose last_hidden_state has one vector per token.",
            ) from None

    @property
    def dim(self) -> int:
        """Width H of the embeddings."""
        return int(cast(Any, self.backbone).config.hidden_size)

    @property
    def max_length(self) -> int:
        """Most tokens that the model reads, special tokens included."""
        config = cast(Any, self.backbone).config
        positions = int(getattr(config, "max_position_embeddings", 0) or 0)
        embeddings = getattr(self.backbone, "embeddings", None)
        if (padding := getattr(embeddings, "padding_idx", None)) is not None:
            positions -= int(padding) + 1  # RoBERTa's positions start after it
        limits = [int(self.tokenizer.model_max_length), positions]
        return min(limit for limit in (*limits, _NO_LIMIT) if limit > 0)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def tokenize(
        self, sentences: Sequence[str], max_length: int | None = None
    ) -> dict[str, Tensor]:
        """Tokenise, cut to `max_length` (default: the model's own) and pad to the longest."""
        return self._pad(self.tokenize_all(sentences, max_length).ids)

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch dim"]:
        """Sentence vectors h, before any head; normalised only if the model says so."""
        hidden = self.run_backbone(self.backbone, tokens)
        vectors = pool(hidden, tokens["attention_mask"], self.pooling)
        return F.normalize(vectors, dim=-1) if self.normalised else vectors

    def tokenize_all(
        self, sentences: Sequence[str], max_length: int | None = None
    ) -> TokenizedSentences:
        """Tokenise once, for `encode_tokenized`; cut to `max_length` (default: the model's own)."""
        most = min(max_length or self.max_length, self.max_length)
        ids: list[NDArray[np.int32]] = []
        truncated = 0
        for start in range(0, len(sentences), _TOKENIZED_AT_ONCE):
            part = sentences[start : start + _TOKENIZED_AT_ONCE]
            chunk = [self.prompt + sentence for sentence in part]
            encoded = self.tokenizer(chunk, truncation=True, max_length=most)
            ids += [np.array(one, dtype=np.int32) for one in encoded["input_ids"]]
            truncated += sum(bool(one.overflowing) for one in encoded.encodings or [])
        return TokenizedSentences(ids, truncated)

    def encode(
        self, sentences: Sequence[str], *, batch_size: int, show_progress: bool = False
    ) -> Float32[np.ndarray, "sentences dim"]:
        """Embed sentences without dropout, in length order; the rows keep the given order.

        Raises:
            ModelError: a value is not finite.
        """
        tokenized = self.tokenize_all(sentences)
        self.truncated += tokenized.truncated
        return self.encode_tokenized(tokenized, batch_size=batch_size, show_progress=show_progress)

    @torch.inference_mode()
    def encode_tokenized(
        self, tokenized: TokenizedSentences, *, batch_size: int, show_progress: bool = False
    ) -> Float32[np.ndarray, "sentences dim"]:
        """As `encode`, for the result of `tokenize_all`."""
        result = np.empty((len(tokenized.ids), self.dim), dtype=np.float32)
        lengths = [len(ids) for ids in tokenized.ids]
        batches = length_batches(lengths, batch_size, most=batch_size * _USUAL_TOKENS)
        was_training = self.training
        self.eval()
        try:
            shown = progress(batches, what="encoding", unit="batch", show=show_progress)
            vectors = (self(self._pad([tokenized.ids[row] for row in rows])) for rows in shown)
            for rows, part in zip(batches, fetched(vectors), strict=True):
                result[rows] = _to_numpy(part)
        finally:
            self.train(was_training)
        finite = np.isfinite(result).all(axis=1)
        if not finite.all():
            ids = tokenized.ids[int(np.argmin(finite))]
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            raise ModelError(
                f"the encoder gave an embedding that is not finite, first for {text[:80]!r}.",
                "check or retrain the model.",
            )
        return result

    def _pad(self, sentences: list[NDArray[np.int32]]) -> dict[str, Tensor]:
        """Token ids, padded on the right to the longest, and the attention mask."""
        lengths = np.array([len(ids) for ids in sentences])
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids = np.full(mask.shape, self.tokenizer.pad_token_id or 0, dtype=np.int64)
        ids[mask] = np.concatenate(sentences)
        tokens = {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
        return {key: torch.from_numpy(value).to(self.device) for key, value in tokens.items()}


def run_padded(backbone: nn.Module, tokens: Tokens) -> Float[Tensor, "batch tokens dim"]:
    """The last hidden states, computed for padding too."""
    return cast(Tensor, backbone(**tokens).last_hidden_state)


def pool(
    hidden: Float[Tensor, "batch tokens dim"],
    attention_mask: Int[Tensor, "batch tokens"],
    pooling: Pooling,
) -> Float[Tensor, "batch dim"]:
    """One vector per sentence: that of the first token, or the mean over all but padding."""
    if pooling == "cls":
        return hidden[:, 0]
    mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


class Head(nn.Sequential):
    """A linear layer and tanh."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__(nn.Linear(dim_in, dim_out), nn.Tanh())


class GroundingHeads(nn.Module):
    """The four heads of the method (METHOD: z, p, a and b before their normalisation).

    Args:
        student_dim: H, width of the student's sentence vectors.
        teacher_dim: width of the teacher's features.
        grounding_dim: width of the shared space; None: it is the teacher's own, and the student's
            head is linear, since a teacher's features need not lie within 1.
    """

    def __init__(self, student_dim: int, teacher_dim: int, grounding_dim: int | None) -> None:
        super().__init__()
        self.dims = (student_dim, teacher_dim, grounding_dim)
        self.text = Head(student_dim, student_dim)
        if grounding_dim is None:
            self.grounding: nn.Module = nn.Linear(student_dim, teacher_dim)
            self.image: nn.Module = nn.Identity()
            self.caption: nn.Module = nn.Identity()
        else:
            self.grounding = Head(student_dim, grounding_dim)
            self.image = Head(teacher_dim, grounding_dim)
            self.caption = Head(teacher_dim, grounding_dim)

    def ground_sentences(
        self, vectors: Float[Tensor, "batch student"]
    ) -> Float[Tensor, "batch grounding"]:
        """p: sentence vectors in the shared space, L2-normalised."""
        return _project(self.grounding, vectors)

    def ground_images(
        self, features: Float[Tensor, "batch teacher"]
    ) -> Float[Tensor, "batch grounding"]:
        """a: teacher image features of any scale in the shared space, L2-normalised."""
        return _project(self.image, _unit_rms(features))

    def ground_captions(
        self, features: Float[Tensor, "batch teacher"]
    ) -> Float[Tensor, "batch grounding"]:
        """b: teacher caption features of any scale in the shared space, L2-normalised."""
        return _project(self.caption, _unit_rms(features))


def _project(
    head: nn.Module, vectors: Float[Tensor, "batch dim"]
) -> Float[Tensor, "batch grounding"]:
    projected: Tensor = F.normalize(head(vectors), dim=-1)
    return projected


def _unit_rms(features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
    """Scale rows to a root mean square of 1.

    Teachers differ widely in scale (norms of 1 to 20), and so may the two towers of one. At unit
    RMS a fresh head neither saturates nor is dominated by its bias, so that it starts as a random
    projection, which keeps the teacher's angles.
    """
    return F.normalize(features, dim=-1) * math.sqrt(features.shape[-1])


@dataclass(frozen=True)
class Student:
    """The result of training: the encoder, the heads, and how they were trained."""

    encoder: SentenceEncoder
    heads: GroundingHeads
    objective: str
    seed: int | None = None
    """Seed of the training run."""
    matryoshka: tuple[int, ...] = ()
    """Lengths of shorter embeddings, by their first dimensions, that were trained too."""
    teacher: str = ""
    """sha256 of the weights of the teacher whose features the heads read, or its name where these
    were imported; empty: not recorded."""

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | None = None) -> "Student":
        """Read a student directory that `save_student` wrote.

        Args:
            folder: the directory.
            device: where its weights go; None: the first GPU, else the CPU.

        Raises:
            MissingArtifactError: the directory does not exist.
            ModelError: it cannot be loaded.
            InputError: the heads are missing or do not fit, or a file changed since it was saved.
        """
        folder, device = Path(folder), device or choose_device()
        verify_student_checksums(folder)
        encoder = SentenceEncoder.load(folder)
        try:
            about = json.loads((folder / "heads.json").read_text(encoding="utf-8"))
            heads = GroundingHeads(*about["dims"])
            heads.load_state_dict(load_file(folder / "heads.safetensors"))
            return cls(
                encoder.to(device).eval(),
                heads.to(device).eval(),
                str(about["objective"]),
                about.get("seed"),
                tuple(map(int, about.get("matryoshka", ()))),
                str(about.get("teacher", "")),
            )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise InputError(
                f"{folder} has no usable grounding heads: {first_line(error)}.",
                "run `dvc repro -f train`, or get the model again.",
            ) from None

    def encode(
        self, texts: Sequence[str], *, batch_size: int = 128, show_progress: bool = False
    ) -> Float32[np.ndarray, "texts dim"]:
        """Embed texts; the rows are compared by cosine.

        Raises:
            ModelError: a value is not finite.
        """
        return self.encoder.encode(texts, batch_size=batch_size, show_progress=show_progress)

    def search(
        self, queries: Sequence[str], texts: Sequence[str], *, k: int = 10, batch_size: int = 128
    ) -> "pd.DataFrame":
        """The k nearest of some texts to each query, by comparing all; without an index.

        Args:
            queries: what to look for.
            texts: where, as many as fit into memory; `pipeline.search_index` searches more.
            k: results a query at most.
            batch_size: texts a forward pass.

        Returns:
            A table with query, rank (from 1), score (cosine), row (in `texts`) and text, best first
            for each query.
        """
        import pandas as pd

        wanted, found = (
            F.normalize(torch.from_numpy(self.encode(some, batch_size=batch_size)), dim=-1)
            for some in (queries, texts)
        )
        scores, rows = (wanted @ found.T).topk(min(k, len(texts)))
        ranks = range(1, rows.shape[1] + 1)
        return pd.DataFrame(
            {
                "query": [query for query in queries for _ in ranks],
                "rank": [*ranks] * len(queries),
                "score": scores.flatten().tolist(),
                "row": rows.flatten().tolist(),
                "text": [texts[row] for row in rows.flatten().tolist()],
            }
        )

    def require_teacher(self, weights: str) -> None:
        """Refuse features of another teacher than the heads were trained on.

        Args:
            weights: the hash of the teacher that made the features; empty: not recorded.

        Raises:
            StaleArtifactError: it is another teacher.
        """
        if self.teacher and weights and self.teacher != weights:
            made, trained = (one if ":" in one else one[:12] for one in (weights, self.teacher))
            raise StaleArtifactError(
                "the teacher's features were made by another teacher than the student's heads "
                f"were trained on ({made} and {trained}).",
                "run `dvc repro train`, or set the teacher that the student was trained with.",
            )

    def ground_sentences(
        self, embeddings: Float[np.ndarray, "rows dim"]
    ) -> Float32[np.ndarray, "rows grounding"]:
        """Sentence vectors in the shared space, L2-normalised; errors as `ground_images`."""
        return self._ground(self.heads.ground_sentences, embeddings, self.heads.dims[0])

    def ground_images(
        self, features: Float[np.ndarray, "rows teacher"]
    ) -> Float32[np.ndarray, "rows grounding"]:
        """Teacher image features in the shared space, L2-normalised.

        Raises:
            ModelError: the image head was never trained, or expects another width.
        """
        return self._ground(self.heads.ground_images, features, self.heads.dims[1])

    @property
    def sees_images(self) -> bool:
        """Whether training used images, so that text and images can be compared."""
        return self.objective != "simcse"

    def require_images(self) -> None:
        """Refuse work in the shared space by a student trained without images: a ModelError."""
        if not self.sees_images:
            raise ModelError(
                "this student was trained without images (train.objective: simcse).",
                "train with `dvc exp run -S train.objective=kdmcse`.",
            )

    @torch.inference_mode()
    def _ground(
        self, project: Callable[[Tensor], Tensor], rows: NDArray[Any], width: int
    ) -> NDArray[np.float32]:
        self.require_images()
        if rows.shape[1] != width:
            raise ModelError(
                f"the features are {rows.shape[1]} wide, the student's head expects {width}.",
                "run `dvc repro train`, so that student and teacher match.",
            )
        device = next(self.heads.parameters()).device
        return _to_numpy(project(torch.as_tensor(rows, dtype=torch.float32, device=device)))


def _to_numpy(values: Tensor) -> NDArray[np.float32]:
    return cast(NDArray[np.float32], values.float().cpu().numpy())


def save_student(folder: Path, student: Student, card: str) -> None:
    """Write a student directory into an existing folder; see the module's docstring."""
    encoder = student.encoder
    cast(Any, encoder.backbone).save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    _write_sentence_transformers_files(folder, encoder)
    heads = {key: value.contiguous().cpu() for key, value in student.heads.state_dict().items()}
    save_file(heads, folder / "heads.safetensors")
    facts = ("objective", "seed", "matryoshka", "teacher")
    about = {"dims": student.heads.dims} | {name: getattr(student, name) for name in facts}
    _write(folder / "heads.json", about)
    (folder / "README.md").write_text(card, encoding="utf-8")
    write_student_checksums(folder)


def is_student(folder: Path) -> bool:
    """Whether `save_student` wrote this directory."""
    return (folder / "heads.json").is_file()


def _load_transformers(name: str | Path, folder: str) -> tuple[nn.Module, Any]:
    """Load weights and tokenizer, without running code from the directory."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    cast(Any, logging).set_verbosity_error()  # no reports about unused or fresh weights
    cast(Any, logging).disable_progress_bar()
    pickled = is_pickled(Path(name) / folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(name), subfolder=folder, trust_remote_code=False
        )
        backbone, info = AutoModel.from_pretrained(
            str(name),
            subfolder=folder,
            dtype=torch.float32,
            use_safetensors=not pickled,
            weights_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # noqa: BLE001  # transformers raises many kinds of errors
        raise ModelError(
            f"{name} cannot be loaded as an encoder: {first_line(error)}.", LOAD_HINT
        ) from None
    lacking = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if lacking:  # they would be random; the pooler is never used
        raise ModelError(
            f"{name} lacks {len(lacking)} of its weights, the first {lacking[0]}.",
            "get all weights of the model again.",
        )
    return backbone, tokenizer


def _write_sentence_transformers_files(folder: Path, encoder: SentenceEncoder) -> None:
    package = "sentence_transformers.models"
    modules = [
        {"idx": idx, "name": str(idx), "path": path, "type": f"{package}.{kind}"}
        for idx, (path, kind) in enumerate([("", "Transformer"), ("1_Pooling", "Pooling")])
    ]
    _write(folder / "modules.json", modules)
    text = {"max_seq_length": encoder.max_length, "do_lower_case": encoder.lower_case}
    _write(folder / TEXT_FILE, text)
    if encoder.prompt:
        prompts = {"prompts": {"default": encoder.prompt}, "default_prompt_name": "default"}
        _write(folder / PROMPTS_FILE, prompts)
    (folder / POOLING_FILE).parent.mkdir(exist_ok=True)
    flags = {key: mode == encoder.pooling for mode, key in POOLING_KEYS.items()}
    _write(folder / POOLING_FILE, {"word_embedding_dimension": encoder.dim, **flags})


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
