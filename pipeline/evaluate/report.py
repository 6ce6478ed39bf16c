"""CONTRACT of an evaluation report: headline numbers, every score, and how they were measured.

A report is one JSON object:

    sts, transfer, retrieval   the headline numbers of the first system, by task
    matryoshka                 its STS by number of dimensions, where shorter ones were trained
    systems                    a list: every system's name, how it was measured, all its scores

A CSV beside it holds the headline numbers of all systems, for plots.
"""

import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import TypeAdapter

from pipeline.core.checksums import hash_weights
from pipeline.core.errors import InputError, MissingArtifactError, ParamsError, StaleArtifactError
from pipeline.core.files import read_json, reports_unwritable, write_csv, write_json
from pipeline.core.progress import log
from pipeline.evaluate.score import AVERAGE, Score
from pipeline.evaluate.suite import Suite
from pipeline.student.encoder import SentenceEncoder

EVALUATOR = 3
"""Version of the evaluator: raised where a change can change a number."""

_IDENTITY = ("weights", "pooling", "normalised", "lower_case", "prompt", "max_length")
"""The facts that identify an encoder, whatever its folder is called."""
_DIGITS = 4
_LIBRARIES = (
    "numpy",
    "open_clip_torch",
    "pandas",
    "scikit-learn",
    "scipy",
    "torch",
    "transformers",
)
HEADLINES: Mapping[str, tuple[str, ...]] = {
    "sts": ("spearman",),
    "transfer": ("accuracy",),
    "retrieval": ("recall@1", "recall@5", "recall@10", "median_rank", "ndcg@10"),
}
"""The measures of each part that are headline numbers."""


@dataclass(frozen=True)
class System:
    """One encoder that was measured."""

    name: str
    about: Mapping[str, Any]
    """How: model, pooling, versions, data; see docs/evaluation.md."""
    scores: Sequence[Score]


_SYSTEMS = TypeAdapter(list[System])


def describe(suite: Suite, device: str, **model: Any) -> dict[str, Any]:
    """How a system was measured: the given facts of the model, and those of the evaluation."""
    libraries = {name: version(name) for name in _LIBRARIES}
    repeated = {}
    if pairs := suite.retrieval:
        repeated = {"retrieval": pairs.convention, "repeated": pairs.pairing.repeated()}
    return {
        **model,
        "evaluator": EVALUATOR,
        "data": {"training_text": None, **suite.data},
        **repeated,
        "settings": _settings(suite),
        "device": device,
        "libraries": {"python": platform.python_version(), **libraries},
    }


def describe_encoder(encoder: SentenceEncoder) -> dict[str, Any]:
    """The facts of a sentence encoder, after it was scored."""
    weights = hash_weights(encoder, without="pooler.")  # drawn at random where unused
    names = (*_IDENTITY[1:], "truncated")
    return {"weights": weights, **{name: getattr(encoder, name) for name in names}}


def check_report_path(out: Path) -> None:
    """Find out before the work whether a report can be written there.

    Raises:
        ParamsError: the name does not end in .json, or belongs to a folder.
        ResourceError: the place cannot be written.
    """
    if out.suffix != ".json" or out.is_dir():
        raise ParamsError(
            f"--out {out} does not name a JSON file.",
            "name a file that ends in .json; a CSV goes beside it.",
        )
    with reports_unwritable(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass


def require_same_model(out: Path, encoder: Mapping[str, Any], *, asked_for: bool) -> None:
    """Refuse to replace the report of another model under a default name.

    Args:
        out: where the report goes.
        encoder: the facts of the model that is to be scored, as `describe_encoder`.
        asked_for: the user named `out`; a report of another model is replaced then, with a warning.

    Raises:
        ParamsError: the file there is not a report, or it is of another model.
    """
    if not out.exists():
        return
    try:
        about = read_report(out)[0].about
    except (InputError, IndexError):
        about = {}
    if about and all(about.get(key, encoder[key]) == encoder[key] for key in _IDENTITY):
        return
    which = (
        f"the report of {about['model']}" if "model" in about else "not a report of this version"
    )
    if not asked_for:
        raise ParamsError(
            f"{out} is {which}, another model.", "name another file with --out, or delete this one."
        )
    log.warning("%s is replaced: it was %s", out, which)


def write_report(out: Path, systems: Sequence[System]) -> None:
    """Write the report, and beside it its headline numbers as CSV for plots."""
    write_json(out, report(systems))
    write_csv(out.with_suffix(".csv"), plot_table(systems))


def report(systems: Sequence[System]) -> dict[str, Any]:
    """The JSON of an evaluation; the headline numbers are those of the first system."""
    short = shortened(systems[0].scores)
    return {
        **headline(systems[0].scores),
        **({"matryoshka": short} if short else {}),
        "systems": [
            {
                "name": system.name,
                "about": dict(system.about),
                "scores": [asdict(_rounded(score)) for score in system.scores],
            }
            for system in systems
        ],
    }


def headline(scores: Sequence[Score]) -> dict[str, Any]:
    """The headline numbers by part and task; those that are undefined are left out."""
    found: dict[str, Any] = {}
    for score in map(_rounded, filter(_is_headline, scores)):
        part = found.setdefault(score.part, {})
        if (score.part, score.task) == ("sts", AVERAGE):
            part["pairs_unseen" if score.unseen else "pairs"] = score.count
        if score.value is None:
            continue
        if score.part == "retrieval":
            part.setdefault(score.task, {})[score.measure] = score.value
        else:
            part[headline_name(score)] = score.value
    return found


def shortened(scores: Sequence[Score]) -> dict[str, dict[str, float | None]]:
    """STS of the first dimensions alone: Spearman x100 by number of dimensions and task."""
    found: dict[str, dict[str, float | None]] = {}
    for score in map(_rounded, scores):
        if score.dimensions is not None and _is_headline(replace(score, dimensions=None)):
            numbers = found.setdefault(str(score.dimensions), {})
            numbers[headline_name(score)] = score.value
    return found


def plot_table(systems: Sequence[System]) -> pd.DataFrame:
    """One row a headline number: system, part, task, measure, score, low, high, count."""
    columns = ["system", "part", "task", "measure", "score", "low", "high", "count"]
    rows = [
        (system.name, s.part, headline_name(s), s.measure, s.value, s.low, s.high, s.count)
        for system in systems
        for s in map(_rounded, filter(_is_headline, system.scores))
    ]
    return pd.DataFrame(rows, columns=columns)


def headline_name(score: Score) -> str:
    """A task's name in the headline numbers: `STS12`, `STS-B-dev`, `avg_unseen`."""
    dev = f"{score.task}-dev" if score.split == "dev" else score.task
    return f"{dev}_unseen" if score.unseen else dev


def read_report(path: Path) -> list[System]:
    """The systems of a report that an evaluation wrote.

    Raises:
        MissingArtifactError: there is no such file.
        InputError: it is not a report.
    """
    if not path.is_file():
        raise MissingArtifactError(path, made_by="evaluate")
    try:
        systems = _SYSTEMS.validate_python(read_json(path)["systems"])
        for system in systems:
            _ground(system.about)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not an evaluation report: {type(error).__name__} {error}.",
            "write it with `python -m stages.evaluate --out`.",
        ) from None
    return systems


def require_same_ground(suite: Suite, other: System, path: Path) -> None:
    """Refuse to show a system of the report at `path` beside one measured on this suite.

    Raises:
        StaleArtifactError: the evaluator, its settings, or data that both have differ.
    """
    mine = {"evaluator": EVALUATOR, **_settings(suite), **suite.data}
    theirs = _ground(other.about)
    for key in sorted(mine.keys() & theirs.keys()):
        if mine[key] != theirs[key]:
            raise StaleArtifactError(
                f"{path}: {other.name} was measured with a different {key}.",
                "evaluate it again on the data and params at hand.",
            )


def _settings(suite: Suite) -> dict[str, Any]:
    return suite.params.model_dump(include={"convention", "seed", "resamples"})


def _ground(about: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that must be equal for two scores to be comparable."""
    data = {part: print_ for part, print_ in about["data"].items() if print_ is not None}
    return {"evaluator": about["evaluator"], **about["settings"], **data}


def _is_headline(score: Score) -> bool:
    if score.measure not in HEADLINES[score.part] or score.subset or score.dimensions:
        return False
    if score.part != "sts":
        return True
    return score.aggregation == "all" and (not score.unseen or score.task == AVERAGE)


def _rounded(score: Score) -> Score:
    numbers = (score.value, score.low, score.high)
    value, low, high = (None if number is None else round(number, _DIGITS) for number in numbers)
    return replace(score, value=value, low=low, high=high)
