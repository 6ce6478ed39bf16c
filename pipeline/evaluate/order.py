"""The order in which the reference toolkits read a task; it fixes batches and folds."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Shaped
from numpy.typing import NDArray


def protocol_order(
    first: Iterable[str], second: Iterable[str], last: Shaped[np.ndarray, " rows"]
) -> NDArray[np.intp]:
    """Rows by the tokens of both sentences, then by `last` (a label or gold score); stable.

    Args:
        first: the first sentences, tokens joined by spaces.
        second: the second ones; empty where a row has one sentence.
        last: what decides between rows of equal lengths.
    """
    tokens = [np.array([len(text.split()) for text in texts]) for texts in (first, second)]
    return np.lexsort((last, tokens[1], tokens[0]))
