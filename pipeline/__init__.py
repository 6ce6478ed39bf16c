"""KDMCSE: sentence embeddings distilled from a frozen CLIP teacher.

The public names are loaded when they are first used, so that importing the package is quick and
each name needs only the packages of its own part. docs/library.md has an example of each.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.core.errors import PipelineError
    from pipeline.evaluate.api import evaluate_sts, evaluate_transfer
    from pipeline.features.cached_teacher import CachedTeacher
    from pipeline.search.search_index import search_index
    from pipeline.student.encoder import Student
    from pipeline.train.adapacse_loss import AdapACSELoss
    from pipeline.train.losses import (
        adap_acse_loss,
        applied_margins,
        cosines,
        distillation_loss,
        simcse_loss,
    )

__all__ = [
    "AdapACSELoss",
    "CachedTeacher",
    "PipelineError",
    "Student",
    "adap_acse_loss",
    "applied_margins",
    "cosines",
    "distillation_loss",
    "evaluate_sts",
    "evaluate_transfer",
    "search_index",
    "simcse_loss",
]

_MODULES = {
    "AdapACSELoss": "train.adapacse_loss",
    "CachedTeacher": "features.cached_teacher",
    "PipelineError": "core.errors",
    "Student": "student.encoder",
    "adap_acse_loss": "train.losses",
    "applied_margins": "train.losses",
    "cosines": "train.losses",
    "distillation_loss": "train.losses",
    "evaluate_sts": "evaluate.api",
    "evaluate_transfer": "evaluate.api",
    "search_index": "search.search_index",
    "simcse_loss": "train.losses",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
