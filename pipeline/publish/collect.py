"""What the card and provenance.json of a finished run say, as one JSON object.

    selection      seed; named: whether the user chose it; dev_best: STS dev x100 by seed
    student        objective, encoder: what training started from, hub_encoder: whether that is a
                   name on the hub, pooling, max_length, head_dims: widths of embeddings, teacher
                   features and shared space, matryoshka; sha256 of weights and of files; numbers
                   of parameters, and of those that embed tokens
    teacher        its identity in the feature file, or null
    corpora        a list: part, name, licence, citation, addresses, hub_datasets
    parameters     by dotted key; parameters_unrecorded: those that dvc.lock lacks
    revision       commit, experiment, experiment_commit, changed files; null without git
    stages         md5 of deps and outs by stage, or null
    leak           a list: how much of each test occurs in the training text, as
                   `pipeline.evaluate.leak` has it, or null
    scores         a list of headline numbers: value and 95 % bootstrap interval, the same over
                   unseen pairs, mean and spread over seeds
    baselines      STS average of the other systems of the report
    seeds          a list: seed, dev_best, sts_avg
    matryoshka     STS by number of dimensions and task, or null
    licence, repository
    format         student, or sentence-transformers: a directory with a Router
    image_tower    of a Router: its form, transformers or onnx, and the reason for onnx; or null
    onnx           headline STS of each ONNX file of a student, by task, or null

The last three are known once the model is written. Only what belongs together is published: the
student, its evaluation report, the summary over seeds and dvc.lock are verified against each other.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.core.errors import InputError, ParamsError, StaleArtifactError
from pipeline.core.files import read_json
from pipeline.download.sources import BY_NAME, NO_TEXT, OWN_KINDS, SCENES
from pipeline.evaluate.report import (
    HEADLINES,
    System,
    describe_encoder,
    headline,
    headline_name,
    read_report,
    shortened,
)
from pipeline.evaluate.score import AVERAGE, Score
from pipeline.features.store import read_identity
from pipeline.params.block import dotted
from pipeline.params.schema import Params
from pipeline.publish.provenance import (
    public,
    read_lock,
    read_parameters,
    read_revision,
    read_stages,
    require_recorded,
)
from pipeline.student.directory import hash_student
from pipeline.student.encoder import Student

Facts = dict[str, Any]

_HUB_DATASET = "hf://datasets/"
_HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")
_OWN = {
    "download.pairs": SCENES,
    "download.text": SCENES,
    "teacher.model": "local-dir:data/demo/teacher",
    "student.encoder": "data/demo/student",
}
"""A run whose parts all belong to the project; its licence then applies to the student too."""
_OWN_LICENCE = "apache-2.0"
_EVALUATED = "run `dvc repro evaluate summary`."


@dataclass(frozen=True)
class RunPaths:
    """The files of a finished run."""

    models: Path
    """A folder with one student directory a seed."""
    train: Path
    """A folder with SEED/metrics.json."""
    evaluate: Path
    """A folder with SEED.json."""
    summary: Path
    features: Path
    lock: Path


def collect(
    paths: RunPaths,
    params: Params,
    *,
    seed: int | None = None,
    licence: str | None = None,
    repository: str | None = None,
) -> Facts:
    """Read and verify everything that the card of a run says.

    Args:
        paths: where the run is.
        params: for what dvc.lock does not record.
        seed: of the student; None: the one with the best score on STS dev.
        licence: an identifier of the hub, such as `apache-2.0`.
        repository: ORG/NAME on the hub to push to.

    Raises:
        ParamsError: there is no such seed.
        MissingArtifactError: a part of the run does not exist.
        InputError: a part of the run cannot be read.
        StaleArtifactError: the parts belong to different runs.
    """
    runs, spread = _read_summary(paths.summary)
    selection = _select(paths.train, list(runs), seed)
    seed, dev_best = selection["seed"], selection["dev_best"]
    lock, folder = read_lock(paths.lock), paths.models / str(seed)
    report = paths.evaluate / f"{seed}.json"
    student, (system, *others) = Student.load(folder, torch.device("cpu")), read_report(report)
    _verify(student, folder, system, report, runs[seed])
    require_recorded(folder, paths.lock, lock, seed)
    parameters, unrecorded = read_parameters(params, lock, seed)
    encoder = parameters["student.encoder"]
    backbone: Any = student.encoder.backbone
    is_own = _OWN.items() <= parameters.items()
    averages = {other.name: headline(other.scores).get("sts", {}).get(AVERAGE) for other in others}
    return {
        "selection": selection,
        "student": {
            "objective": student.objective,
            "encoder": encoder,
            "hub_encoder": bool(_HUB_NAME.fullmatch(encoder)) and not Path(encoder).exists(),
            "pooling": student.encoder.pooling,
            "max_length": student.encoder.max_length,
            "head_dims": student.heads.dims,
            "matryoshka": student.matryoshka,
            "weights": system.about["weights"],
            "files": hash_student(folder),
            "parameters": sum(one.numel() for one in backbone.parameters()),
            "token_parameters": backbone.get_input_embeddings().weight.numel(),
        },
        "teacher": _read_teacher(paths.features, parameters["teacher.model"]),
        "corpora": [
            _corpus(part, parameters)
            for part in ("pairs", "text", "evaluation")
            if part != "text" or _reads_text(parameters)
        ],
        "parameters": parameters,
        "parameters_unrecorded": unrecorded,
        "revision": read_revision(paths.lock),
        "stages": read_stages(lock, seed),
        "leak": system.about.get("leak"),
        "scores": _scores(system.scores, spread),
        "baselines": {name: average for name, average in averages.items() if average is not None},
        "seeds": [
            {"seed": seed, "dev_best": dev_best[seed], "sts_avg": (run.get("sts") or {}).get("avg")}
            for seed, run in runs.items()
        ],
        "matryoshka": shortened(system.scores) or None,
        "licence": licence or (_OWN_LICENCE if is_own else None),
        "repository": repository,
    }


def _reads_text(parameters: Mapping[str, Any]) -> bool:
    return bool(parameters["download.text"] != NO_TEXT and parameters["train.pair_every"] != 1)


def _read_summary(path: Path) -> tuple[dict[int, Any], dict[str, Any]]:
    """The run of every seed in the order of the summary, and the spread of every score."""
    content, redo = read_json(path, "summary"), "run `dvc repro -f summary`."
    try:
        runs = {int(run["seed"]): run for run in content["reports"]}
        spread = {entry["score"]: entry for entry in content["scores"]}
    except (KeyError, TypeError, ValueError) as error:
        why = f"{type(error).__name__} {error}"
        raise InputError(f"{path} is not a summary over seeds: {why}.", redo) from None
    if not runs:
        raise InputError(f"{path} has no report.", redo)
    return runs, spread


def _select(reports: Path, seeds: list[int], asked: int | None) -> dict[str, Any]:
    """The seed that was asked for, or the one with the best dev score; ties go to the first."""
    if asked is not None and asked not in seeds:
        known = ", ".join(map(str, seeds))
        raise ParamsError(f"--seed {asked}: there is no such run.", f"choose from {known}.")
    dev_best = {}
    for seed in seeds:
        path = reports / str(seed) / "metrics.json"
        try:
            dev_best[seed] = float(read_json(path, "train")["dev_best"])
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{path} has no dev_best.", "run `dvc repro -f train`.") from None
    best = max(seeds, key=dev_best.__getitem__)
    seed = best if asked is None else asked
    return {"seed": seed, "named": asked is not None, "dev_best": dev_best}


def _verify(
    student: Student, folder: Path, system: System, report: Path, run: Mapping[str, Any]
) -> None:
    """Refuse a student, its report and its run in the summary that do not belong together."""
    if student.seed != int(run["seed"]):
        what = f"{folder} was trained with seed {student.seed}."
        raise StaleArtifactError(what, "run `dvc repro train`.")
    if system.about.get("weights") != describe_encoder(student.encoder)["weights"]:
        raise StaleArtifactError(f"{report} was measured on another student.", _EVALUATED)
    measured = headline(system.scores)
    for part in HEADLINES:
        if dict(dotted(run.get(part) or {})) != dict(dotted(measured.get(part) or {})):
            what = f"the summary was made from another report than {report}: {part} differs."
            raise StaleArtifactError(what, _EVALUATED)


def _read_teacher(features: Path, model: str) -> dict[str, str] | None:
    """The teacher's identity in the feature file; None where there is no such file."""
    if not features.is_file():
        return None
    identity = {name: str(public(value)) for name, value in asdict(read_identity(features)).items()}
    if identity["model"] != model:
        raise StaleArtifactError(
            f"{features} was made by another teacher, {identity['model']}, than the run's.",
            "run `dvc repro`.",
        )
    return identity


def _corpus(part: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    name, addresses = str(parameters[f"download.{part}"]), list[str]()
    dataset = str(parameters.get("download.hub.dataset"))
    if name == "hub" and ("/" not in dataset or Path(dataset).exists()):
        name = "folder"  # of this machine
    licence, citation = "Apache-2.0, as the project", "rendered by the project"
    if source := BY_NAME.get(name) or OWN_KINDS.get(name):
        licence, citation = source.licence, source.citation
        addresses = [file.address for file in source.files]
    if name == "hub":  # the only own pairs that others can see
        name = dataset
        addresses = [f"{_HUB_DATASET}{name}"]
    elif name in OWN_KINDS:
        name = f"own {part} ({name})"
    on_hub = re.findall(f"{_HUB_DATASET}([^/ ]+/[^/@ ]+)", " ".join(addresses))
    return {
        "part": part,
        "name": name,
        "licence": licence,
        "citation": citation,
        "addresses": addresses,
        "hub_datasets": list(dict.fromkeys(on_hub)),
    }


def _scores(scores: Sequence[Score], spread: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Headline numbers, and STS over the unseen pairs of every task beside them."""
    named = {_summary_name(score): score for score in scores if _is_shown(score)}
    numbers = ("value", "low", "high", "count")
    return [
        {
            "score": name,
            "task": headline_name(score),
            **{key: getattr(score, key) for key in ("part", "measure", "split", *numbers)},
            "unseen": {key: getattr(unseen, key) for key in numbers} if unseen else None,
            "seeds": spread.get(name),
            "unseen_seeds": spread.get(f"{name}_unseen"),
        }
        for name, score in named.items()
        if not score.unseen
        for unseen in [named.get(f"{name}_unseen")]
    ]


def _is_shown(score: Score) -> bool:
    whole = "all" if score.part == "sts" else ""
    is_whole = score.aggregation == whole and not score.subset and score.dimensions is None
    return is_whole and score.measure in HEADLINES[score.part]


def _summary_name(score: Score) -> str:
    name = f"{score.part}.{headline_name(score)}"
    return f"{name}.{score.measure}" if score.part == "retrieval" else name
