"""Training text as token ids: tokenised once, packed, and mapped from disk in later runs.

    KEY/ids.npy           (tokens,) int32, all sentences one after another
    KEY/ends.npy          (sentences,) int64, where each ends
    KEY/checksums.json    of both

KEY is a hash of the tokenizer and its library, the cut and the text, so that nothing stale is ever
read.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int32, Int64
from torch import Tensor

from pipeline.core.checksums import CHECKSUMS, hash_strings, verify_checksums, write_checksums
from pipeline.core.errors import InputError
from pipeline.core.files import atomic_folder, save_array
from pipeline.core.progress import log, progress
from pipeline.student.encoder import SentenceEncoder

_TOKENIZED_AT_ONCE = 1 << 16
_KEPT_STORES = 8
"""Stores that stay on disk: those used last."""
_FILES = ("ids.npy", "ends.npy")

Rows = Int64[np.ndarray, " batch"]
Arrays = tuple[Int32[np.ndarray, " tokens"], Int64[np.ndarray, " sentences"]]
"""The ids, and where each sentence ends."""


@dataclass(frozen=True)
class PackedTokens:
    """Sentences as token ids, special tokens included, cut to the training length."""

    ids: Int32[np.ndarray, " tokens"]
    ends: Int64[np.ndarray, " sentences"]
    padding: int
    """The id that fills up shorter sentences of a batch."""

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def lengths(self) -> Int64[np.ndarray, " sentences"]:
        """Tokens of every sentence."""
        return np.diff(self.ends, prepend=0)

    def batch(self, rows: Rows) -> dict[str, Tensor]:
        """Sentences `rows`, padded on the right to the longest of them, and their mask."""
        ends = self.ends[rows]
        starts = np.where(rows > 0, self.ends[rows - 1], 0)
        lengths = ends - starts
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids = np.full(mask.shape, self.padding, dtype=np.int64)
        ids[mask] = np.concatenate(
            [self.ids[start:end] for start, end in zip(starts, ends, strict=True)]
        )
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        }


def pack_tokens(
    encoder: SentenceEncoder, sentences: Sequence[str], max_length: int, folder: Path | None = None
) -> PackedTokens:
    """Tokenise sentences, or map what an earlier run left.

    Args:
        encoder: its tokenizer is used.
        sentences: the text.
        max_length: tokens a sentence is cut to.
        folder: of all stores; None: the tokens stay in memory.

    Raises:
        ResourceError: the disk is full, or the place cannot be written.
    """
    padding = encoder.tokenizer.pad_token_id or 0
    if folder is None:
        return PackedTokens(*_tokenize(encoder, sentences, max_length), padding)
    made_by = [*tokenizer_parts(encoder), version("tokenizers"), str(max_length)]
    store = folder / hash_strings([*made_by, hash_strings(sentences)])[:32]
    if (arrays := _open(store)) is None:
        arrays = _tokenize(encoder, sentences, max_length)
        with atomic_folder(store) as temporary:
            for name, array in zip(_FILES, arrays, strict=True):
                save_array(temporary / name, array)
            write_checksums(temporary, *_FILES)
    _drop_old(folder, used=store)
    return PackedTokens(*arrays, padding)


def tokenizer_parts(encoder: SentenceEncoder) -> tuple[str, ...]:
    """All that identifies a tokenizer, however it was last called."""
    backend = json.loads(encoder.tokenizer.backend_tokenizer.to_str())
    backend |= {"truncation": None, "padding": None}
    settings = (str(encoder.tokenizer.init_kwargs), str(encoder.max_length), encoder.prompt)
    return json.dumps(backend, sort_keys=True), *settings


def _tokenize(encoder: SentenceEncoder, sentences: Sequence[str], max_length: int) -> Arrays:
    ids: list[Int32[np.ndarray, " _"]] = [np.empty(0, np.int32)]
    lengths: list[int] = []
    for start in progress(
        range(0, len(sentences), _TOKENIZED_AT_ONCE), what="tokenising", unit="part"
    ):
        part = sentences[start : start + _TOKENIZED_AT_ONCE]
        tokenized = encoder.tokenize_all(part, max_length).ids
        ids.append(np.concatenate(tokenized))
        lengths += map(len, tokenized)
    return np.concatenate(ids), np.cumsum(lengths, dtype=np.int64)


def _open(store: Path) -> Arrays | None:
    """The arrays of a store; None where it is missing or damaged."""
    if not all((store / name).is_file() for name in (*_FILES, CHECKSUMS)):
        return None
    try:
        verify_checksums(store, *_FILES, fix="")
    except InputError as error:
        log.warning("%s; tokenising again", error.what.rstrip("."))
        return None
    return np.load(store / "ids.npy", mmap_mode="r"), np.load(store / "ends.npy")


def _drop_old(folder: Path, used: Path) -> None:
    """Keep the stores used last."""
    with contextlib.suppress(FileNotFoundError):  # another process may do the same at this moment
        os.utime(used)
        stores = [path for path in folder.iterdir() if not path.name.startswith(".")]
        for store in sorted(stores, key=lambda path: path.stat().st_mtime)[:-_KEPT_STORES]:
            shutil.rmtree(store, ignore_errors=True)
