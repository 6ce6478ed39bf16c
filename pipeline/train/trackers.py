"""Curves for TensorBoard, Weights & Biases or DVCLive, beside the project's own tables."""

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import ParamsError

_CLASSES = {
    "tensorboard": "TensorBoardTracker",
    "wandb": "WandBTracker",
    "dvclive": "DVCLiveTracker",
}
"""Of accelerate, by the module that each needs."""
_PROJECT = "kdmcse"


class Trackers:
    """Passes points of the curves on."""

    def __init__(self, trackers: Sequence[Any] = ()) -> None:
        self._trackers = trackers

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the values of one step, by curve."""
        for tracker in self._trackers:
            tracker.log(dict(values), step=step)


@contextlib.contextmanager
def open_trackers(names: Sequence[str], folder: Path) -> Iterator[Trackers]:
    """Trackers for one run, closed with the block.

    Args:
        names: which; see `train.track`.
        folder: of the files of those that write files here.

    Raises:
        ParamsError: one is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ParamsError(
                f"train.track names {name}, which is not installed.",
                f"run `pip install {name}`, or take it out of train.track.",
            )
    trackers = [_start(name, folder / name) for name in names]
    try:
        yield Trackers(trackers)
    finally:
        for tracker in trackers:
            tracker.finish()


def _start(name: str, folder: Path) -> Any:
    from accelerate import tracking

    folder.mkdir(parents=True, exist_ok=True)
    options: dict[str, dict[str, Any]] = {
        "tensorboard": {"run_name": _PROJECT, "logging_dir": folder},
        "wandb": {"run_name": _PROJECT, "dir": str(folder)},
        "dvclive": {"dir": str(folder), "save_dvc_exp": False, "dvcyaml": None},
    }
    tracker = getattr(tracking, _CLASSES[name])(**options[name])
    tracker.start()
    return tracker
