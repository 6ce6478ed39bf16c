"""The state of an unfinished training run, on disk."""

import contextlib
import hashlib
import os
import time
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
import torch

from pipeline.core.checksums import hash_strings, hash_weights
from pipeline.core.device import choose_device
from pipeline.core.files import atomic_file, output_file
from pipeline.core.progress import log
from pipeline.core.redact import one_line
from pipeline.student.encoder import SentenceEncoder
from pipeline.train.batches import TrainingData
from pipeline.train.code import hash_code
from pipeline.train.run_params import RunParams
from pipeline.train.token_store import tokenizer_parts

if TYPE_CHECKING:
    import pandas as pd

State = dict[str, Any]
"""Tensors, numbers and plain containers of them."""

_PACKAGE = Path(__file__).parents[1]
_CODE = ("pipeline.train.loop", "pipeline.evaluate.selection")
"""What trains and what selects the student. Other code makes another run."""
_LIBRARIES = ("accelerate", "numpy", "tokenizers", "torch", "transformers")


class Checkpoint:
    """One file that keeps the state of one run; a run of anything else has another file.

    Args:
        folder: where the file is, `FINGERPRINT.pt`; it is replaced as a whole.
        fingerprint: of all that the run depends on (`run_fingerprint`).
        every: seconds between two saves.
    """

    def __init__(self, folder: Path, fingerprint: str, every: float) -> None:
        self._path = folder / f"{fingerprint}.pt"
        self._clean()
        self._every = every
        self._saved = time.monotonic()

    def load(self) -> State | None:
        """The state to resume from; None where there is none, or it is damaged."""
        if not self._path.is_file():
            return None
        try:
            with zipfile.ZipFile(self._path) as file:  # torch does not check its CRC-32s
                if damaged := file.testzip():
                    raise ValueError(f"{damaged} is damaged")  # noqa: TRY301
            state = dict(torch.load(self._path, map_location="cpu", weights_only=True))
            log.info("training resumes after step %d, from %s", state["step"], self._path)
        except Exception as error:  # noqa: BLE001  # damaged files fail in any way
            log.warning(
                "%s cannot be read (%s): training starts anew",
                self._path,
                one_line(str(error), 100),
            )
            return None
        return state

    def is_due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() - self._saved >= self._every

    def save(self, state: State) -> None:
        """Replace the file.

        Where another process of the very same run ends at this moment, it removes what is being
        written; this one then goes on without.

        Raises:
            ResourceError: the disk is full, or the place cannot be written; the old file stays.
        """
        with (
            contextlib.suppress(FileNotFoundError),
            atomic_file(self._path) as temporary,
            output_file(temporary) as stream,
        ):
            torch.save(state, cast(IO[bytes], stream))
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Forget the run, once its results are written."""
        self._path.unlink(missing_ok=True)
        self._clean()

    def _clean(self) -> None:
        """Remove what a kill while saving left."""
        for leftover in self._path.parent.glob(f".{self._path.name}.*"):
            leftover.unlink(missing_ok=True)


def run_fingerprint(
    data: TrainingData,
    params: RunParams,
    seed: int,
    dev: "pd.DataFrame",
    encoder: SentenceEncoder,
) -> str:
    """A hash of what decides the bits of a trained student, on one kind of machine.

    Args:
        data: both streams.
        params: the blocks of training.
        seed: of the run.
        dev: the pairs that select the student, and no others.
        encoder: what training starts from.
    """
    blocks = (params.student, params.loss, params.train)
    settings = [block.model_dump_json(exclude={"seeds", "report_to"}) for block in blocks]
    features = data.pairs.features
    arrays = [data.pairs.caption_rows, data.pairs.image_rows]
    if not features.digest:  # they were never in a file
        arrays += [features.images[:], features.captions[:]]
    return hash_strings(
        [
            *settings,
            str(seed),
            str(choose_device()),
            os.environ.get("WORLD_SIZE", "1"),
            *map(version, _LIBRARIES),
            hash_code(_PACKAGE, *_CODE),
            hash_weights(encoder),
            str(cast(Any, encoder.backbone).config),
            *tokenizer_parts(encoder),
            *(hashlib.sha256(np.ascontiguousarray(one).data).hexdigest() for one in arrays),
            features.digest,
            hash_strings(data.pairs.captions),
            hash_strings(data.sentences),
            dev.to_csv(index=False),
        ]
    )
