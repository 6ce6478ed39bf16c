"""Sentence encoders as a teacher: their vectors of captions and of text-only sentences."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers
from jaxtyping import Float, Float32, Int64
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.core.checksums import hash_strings, hash_weights
from pipeline.core.errors import ModelError
from pipeline.core.progress import counter
from pipeline.features.cache import FeatureCache
from pipeline.features.encode import NewCaptions, ShardResult, encode_texts
from pipeline.features.identity import (
    PROBE_TEXTS,
    TeacherIdentity,
    describe_text_teacher,
    describe_tokenizer,
    hash_architecture,
    hash_encoder_source,
    hash_tokenizer,
)
from pipeline.params.teacher import TextTeacherParams
from pipeline.student.encoder import SentenceEncoder, TokenizedSentences
from pipeline.student.settings import Pooling, read_settings

_PROBES = ("Two dogs run after a red ball.", "The committee has not decided yet, it said in 2019.")


class TextEncoder:
    """A frozen sentence encoder in float32, whose vectors are scaled to length 1.

    Args:
        name: a directory or hub name.
        pooling: where it does not say how it pools.
        device: where it runs.

    Raises:
        ModelError: it cannot be loaded, or nothing says how it pools.
    """

    def __init__(self, name: str, pooling: Pooling | None, device: torch.device) -> None:
        own = read_settings(name).pooling
        if own is None and pooling is None:
            raise ModelError(
                f"{name} does not say how it pools its tokens.",
                "set teacher.text.pooling to cls or mean.",
            )
        encoder = SentenceEncoder.load(name, None if own else pooling).to(device).eval()
        backbone, limit = cast(Any, encoder.backbone), encoder.max_length
        rules = [*describe_tokenizer(encoder.tokenizer), encoder.prompt, str(limit)]
        self.identity = TeacherIdentity(
            model=name,
            pretrained="",
            source=hash_encoder_source(name),
            architecture=hash_architecture(backbone, backbone.config.to_dict()),
            weights=hash_weights(backbone, without="pooler."),
            preprocessing=f"sentence vectors of length 1; {encoder.pooling} pooling",
            tokenizer=hash_tokenizer(rules, encoder.tokenize(PROBE_TEXTS)["input_ids"]),
            library=f"transformers {transformers.__version__}",
            dtype="float32",
        )
        self.dim = encoder.dim
        self._encoder = encoder

    def encode(
        self, cache: FeatureCache, texts: NewCaptions, *, batch_size: int
    ) -> Iterator[ShardResult]:
        """Cache the vectors of texts, as `encode_texts`."""
        bar = counter(self.identity.model, "text", texts.total)
        return encode_texts(self, cache, texts, batch_size, bar)

    def tokenize(self, texts: Sequence[str], /) -> TokenizedSentences:
        """Token ids, cut to the encoder's own length."""
        return self._encoder.tokenize_all(texts)

    def lengths(self, tokens: TokenizedSentences, /) -> Int64[np.ndarray, " texts"]:
        """Tokens of each text."""
        return np.array([len(ids) for ids in tokens.ids], np.int64)

    def encode_tokens(
        self, tokens: TokenizedSentences, rows: NDArray[np.intp], /
    ) -> Float[Tensor, "batch dim"]:
        """Vectors of these rows of `tokens`, on the CPU, of length 1."""
        chosen = TokenizedSentences([tokens.ids[row] for row in rows], 0)
        vectors = self._encoder.encode_tokenized(chosen, batch_size=len(rows))
        return F.normalize(torch.from_numpy(vectors), dim=-1)

    def probe(self) -> Float32[np.ndarray, "two dim"]:
        """Vectors of two fixed texts, which show when a library gives other numbers."""
        vectors = self.encode_tokens(self.tokenize(_PROBES), np.arange(len(_PROBES)))
        return cast(NDArray[np.float32], vectors.numpy())


@dataclass(frozen=True)
class TextTeacher:
    """Sentence encoders, each with its cache, and the text-only sentences."""

    encoders: list[tuple[TextEncoder, FeatureCache]]
    shares: list[float]
    """Of the encoders in the average of their cosines."""
    sentences: Sequence[str]
    attributes: dict[str, str]
    """Of a feature file: encoders, their files, fingerprint of the sentences."""

    @property
    def dim(self) -> int:
        """Width of a row: of all encoders together."""
        return sum(encoder.dim for encoder, _ in self.encoders)


@contextlib.contextmanager
def open_text_teacher(
    params: TextTeacherParams, store: Path, sentences: Sequence[str], device: torch.device
) -> Iterator[TextTeacher]:
    """The text teacher, whose caches are in use while the block runs.

    Raises:
        ModelError: an encoder cannot be loaded.
        ResourceError: a cache is being pruned, or cannot be read.
    """
    attributes = describe_text_teacher(params) | {"sentences": hash_strings(sentences)}
    with contextlib.ExitStack() as stack:
        encoders = []
        for name in params.encoders:
            encoder = TextEncoder(name, params.pooling, device)
            cache = FeatureCache(store, encoder.identity, encoder.probe())
            stack.enter_context(cache.in_use())
            encoders.append((encoder, cache))
        yield TextTeacher(encoders, params.shares, sentences, attributes)
