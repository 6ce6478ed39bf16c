"""The state of an unfinished training run, on disk."""

import hashlib
import pickle
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.encoder import SentenceEncoder
from pipeline.runtime import atomic_file, hash_file, hash_strings, hash_weights, log
from pipeline.train.batches import TrainingData
from pipeline.train.run_params import RunParams

State = dict[str, Any]
"""Tensors, numbers and plain containers of them."""

_FORMAT = 1


class Checkpoint:
    """One file that keeps the state of one run; a run of anything else starts anew.

    Args:
        path: the file; it is replaced as a whole.
        fingerprint: of all that the run depends on (`run_fingerprint`).
        every: seconds from one saving to the next.
    """

    def __init__(self, path: Path, fingerprint: str, every: float) -> None:
        self._path = path
        self._key = {"format": _FORMAT, "run": fingerprint}
        self._every = every
        self._saved = time.monotonic()

    def load(self) -> State | None:
        """The state to go on from; None where there is none, or it belongs to another run."""
        try:
            content = torch.load(self._path, map_location="cpu", weights_only=True)
            key, state = content["key"], content["state"]
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as e:
            reason = " ".join(str(e).split())[:100]
            log.warning("%s cannot be read (%s): training starts anew", self._path, reason)
            return None
        if key != self._key:
            log.info("%s belongs to another run: training starts anew", self._path)
            return None
        log.info("training goes on after step %d, from %s", state["step"], self._path)
        return dict(state)

    def is_due(self) -> bool:
        """Whether the last saving is as long ago as it should be at most."""
        return time.monotonic() - self._saved >= self._every

    def save(self, state: State) -> None:
        """Replace the file.

        Raises:
            ResourceError: the disk is full, or the place cannot be written; the file of before
                stays.
        """
        with atomic_file(self._path) as temporary:
            torch.save({"key": self._key, "state": state}, temporary)
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Forget the run, once its results are written."""
        self._path.unlink(missing_ok=True)


def run_fingerprint(
    data: TrainingData, params: RunParams, seed: int, dev_sentences: Iterable[str]
) -> str:
    """A hash of what decides the bits of a trained student, on one kind of machine."""
    blocks = (params.student, params.loss, params.train)
    settings = [block.model_dump_json(exclude={"seeds"}) for block in blocks]
    encoder = SentenceEncoder.load(params.student.encoder, params.student.pooling)
    features = data.pairs.features
    arrays = (data.pairs.caption_rows, data.pairs.image_rows, features.images, features.captions)
    return hash_strings(
        [
            *settings,
            str(seed),
            torch.__version__,
            *(hash_file(path) for path in sorted(Path(__file__).parent.glob("*.py"))),
            hash_weights(encoder),
            *(_hash_array(array) for array in arrays),
            hash_strings(data.pairs.captions),
            hash_strings(data.sentences),
            hash_strings(dev_sentences),
        ]
    )


def _hash_array(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
