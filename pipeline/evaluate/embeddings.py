"""Every distinct sentence of all tasks is embedded once; the tasks look up their rows."""

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd
from jaxtyping import Float32, Float64, Shaped
from numpy.typing import NDArray


@runtime_checkable
class Encoder(Protocol):
    """Anything that embeds sentences."""

    def encode(
        self, sentences: Sequence[str], *, batch_size: int, show_progress: bool
    ) -> Float32[np.ndarray, "sentences dim"]:
        """One row a sentence."""
        ...


class Embeddings:
    """The vectors of distinct sentences."""

    def __init__(
        self, sentences: Iterable[str], vectors: Float32[np.ndarray, "sentences dim"]
    ) -> None:
        self._rows = pd.Index(list(sentences))
        self.vectors = vectors

    def first(self, dimensions: int) -> "Embeddings":
        """The same sentences, their vectors cut to their first dimensions."""
        return Embeddings(self._rows, self.vectors[:, :dimensions])

    def of(self, sentences: Iterable[str]) -> Float32[np.ndarray, "given dim"]:
        """The vector of each sentence; KeyError for one that was not embedded."""
        wanted = list(sentences)
        rows = self._rows.get_indexer(pd.Index(wanted))
        if (rows < 0).any():
            raise KeyError(wanted[int(np.argmin(rows))])
        return self.vectors[rows]


def embed(encoder: Encoder, texts: Iterable[pd.Series], *, batch_size: int) -> Embeddings:
    """Embed the distinct sentences of all columns, but for nulls, in one pass."""
    distinct = list(dict.fromkeys(text for column in texts for text in column.dropna()))
    vectors = encoder.encode(distinct, batch_size=batch_size, show_progress=True)
    return Embeddings(distinct, vectors)


def unit_rows(vectors: Float32[np.ndarray, "rows dim"]) -> Float64[np.ndarray, "rows dim"]:
    """L2-normalised in float64, where rounding cannot decide a rank; zero rows stay zero."""
    rows = vectors.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1.0)


def row_cosines(
    first: Float64[np.ndarray, "pairs dim"], second: Float64[np.ndarray, "pairs dim"]
) -> Float64[np.ndarray, " pairs"]:
    """The cosine of each pair of rows of `unit_rows`.

    Rounded to twelve decimals, so that pairs of one sentence with itself tie at 1 and the last bit
    does not rank them.
    """
    cosines: NDArray[np.float64] = np.einsum("ij,ij->i", first, second).round(12)
    return cosines


def protocol_order(
    first: Iterable[str], second: Iterable[str], last: Shaped[np.ndarray, " rows"]
) -> NDArray[np.intp]:
    """The order in which the reference toolkits read a task; it fixes batches and folds.

    Rows by the tokens of the first and of the second sentence, which is empty where there is none,
    then by `last`, a label or gold score; stable.
    """
    tokens = [np.array([len(text.split()) for text in texts]) for texts in (first, second)]
    return np.lexsort((last, tokens[1], tokens[0]))
