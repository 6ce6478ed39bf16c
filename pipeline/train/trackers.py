"""Curves for TensorBoard, Weights & Biases or DVCLive, beside the project's own tables."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import ParamsError

Report = Callable[[int, Mapping[str, float]], None]
"""Takes the values of one step, by curve."""

_PROJECT = "kdmcse"


@contextlib.contextmanager
def open_trackers(names: Sequence[str], folder: Path) -> Iterator[Report]:
    """Trackers for one run, closed with the block.

    Args:
        names: which; see `train.report_to`.
        folder: where those that write files put them.

    Yields:
        What passes values on to all of them.

    Raises:
        ParamsError: one is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ParamsError(
                f"train.report_to names {name}, which is not installed.",
                f"run `pip install {name}`, or remove it from train.report_to.",
            )
    trackers = [_start(name, folder / name) for name in names]

    def report(step: int, values: Mapping[str, float]) -> None:
        for tracker in trackers:
            tracker.log(dict(values), step=step)

    try:
        yield report
    finally:
        for tracker in trackers:
            tracker.finish()


def _start(name: str, folder: Path) -> Any:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    folder.mkdir(parents=True, exist_ok=True)
    options: dict[str, dict[str, Any]] = {
        "tensorboard": {"run_name": _PROJECT, "logging_dir": folder},
        "wandb": {"run_name": _PROJECT, "dir": str(folder)},
        "dvclive": {"dir": str(folder), "save_dvc_exp": False, "dvcyaml": None},
    }
    tracker = LOGGER_TYPE_TO_CLASS[name](**options[name])
    tracker.start()
    return tracker
