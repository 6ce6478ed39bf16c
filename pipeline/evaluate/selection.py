"""Selection of the best student during training: Spearman on STS dev, tokenised once."""

import numpy as np
import pandas as pd

from pipeline.core.errors import InputError
from pipeline.evaluate.correlation import require_correlation, spearman
from pipeline.evaluate.embeddings import row_cosines, unit_rows
from pipeline.evaluate.geometry import alignment, mcse_batches, uniformity
from pipeline.student.encoder import SentenceEncoder, TokenizedSentences

SELECTION_TASKS = ("STS-B", "SCENES", "STS-B-cased")
"""Tasks whose dev split selects the student: that of the first one which is there."""


def dev_pairs(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of sts.parquet that select the student; InputError where there are none."""
    dev = table[table["split"] == "dev"]
    found = next((task for task in SELECTION_TASKS if dev["task"].eq(task).any()), None)
    if found is None:
        raise InputError(
            f"the STS table has no dev pairs of {' or '.join(SELECTION_TASKS)}.",
            "run `dvc repro -f download`.",
        )
    return pd.DataFrame(dev[dev["task"] == found])


class DevScorer:
    """Scores on all dev pairs of sts.parquet together; they are tokenised at the first call.

    Raises:
        InputError: the table has no dev pairs, or all their gold scores are equal.
    """

    def __init__(self, table: pd.DataFrame, batch_size: int) -> None:
        dev = dev_pairs(table)
        both = pd.concat([dev["sentence1"], dev["sentence2"]], ignore_index=True)
        codes, sentences = pd.factorize(both)
        self._first, self._second = np.split(codes, 2)
        self._sentences = list(sentences)
        self._gold = dev["score"].to_numpy(np.float64)
        self._batch_size = batch_size
        self._tokenized: TokenizedSentences | None = None

    def __call__(self, encoder: SentenceEncoder) -> dict[str, float]:
        """Score an encoder; every call must use the same tokenizer.

        Returns:
            sts_dev: Spearman x100, which selects the student. alignment and uniformity: as MCSE
            takes them, lower is better.

        Raises:
            ModelError: all cosines are equal, as those of a collapsed encoder.
        """
        self._tokenized = self._tokenized or encoder.tokenize_all(self._sentences)
        rows = unit_rows(encoder.encode_tokenized(self._tokenized, batch_size=self._batch_size))
        first, second = rows[self._first], rows[self._second]
        cosines = row_cosines(first, second)
        require_correlation(cosines, self._gold, "STS dev")
        batches = mcse_batches([np.arange(len(first))])
        return {
            "sts_dev": spearman(cosines, self._gold),
            "alignment": alignment(first, second, self._gold, batches),
            "uniformity": uniformity(first, second, batches),
        }
