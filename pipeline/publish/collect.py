"""From a finished run to a folder for the model hub: the student, its card, its provenance.

What the card says is collected here and worded in `pipeline/publish/card.py`. Only what belongs
together is published: the student, its evaluation report, the summary over seeds and dvc.lock are
verified against each other first.
"""

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.core.errors import (
    InputError,
    ModelError,
    ParamsError,
    PipelineError,
    StaleArtifactError,
)
from pipeline.core.files import atomic_folder, read_json, write_json
from pipeline.download.sources import BY_NAME, OWN_KINDS, SCENES
from pipeline.evaluate.report import (
    HEADLINES,
    System,
    describe_encoder,
    headline,
    headline_name,
    read_report,
)
from pipeline.evaluate.score import AVERAGE, Score
from pipeline.features.identity import LOCAL_PREFIX, TRANSFORMERS_PREFIX
from pipeline.features.store import read_identity
from pipeline.params.block import dotted
from pipeline.params.places import expanded
from pipeline.params.schema import Params
from pipeline.publish.card import (
    HUB_DATASET,
    Corpus,
    Facts,
    Revision,
    ScoreRow,
    Selection,
    StudentFacts,
    make_card,
)
from pipeline.student.directory import hash_student
from pipeline.student.encoder import Student, load_student

PROVENANCE = "provenance.json"
SCHEMA = 1

_BLOCKS = {
    "download": "download",
    "teacher": "features",
    "student": "train",
    "loss": "train",
    "train": "train",
}
"""The blocks of params.yaml that shape a student, and the stage that records them in dvc.lock."""
_OWN = {
    "download.pairs": SCENES,
    "download.text": SCENES,
    "teacher.model": "local-dir:data/demo/teacher",
    "student.encoder": "data/demo/student",
}
"""A run of which all parts are the project's own, and so is the licence."""
_OWN_LICENCE = "apache-2.0"
_EVALUATED = "run `dvc repro evaluate summary`."

Lock = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Places:
    """Where a finished run lies."""

    models: Path
    """A folder with one student directory a seed."""
    train: Path
    """A folder with SEED/metrics.json."""
    evaluate: Path
    """A folder with SEED.json."""
    summary: Path
    features: Path
    lock: Path


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    seed: int | None
    """None: the seed with the best dev score."""
    licence: str | None
    """An identifier of the hub, such as `apache-2.0`."""
    repository: str | None
    """ORG/NAME on the hub, where it is to be pushed."""


def collect(places: Places, params: Params, request: Request) -> Facts:
    """Read and check everything that the card of a run says.

    Raises:
        ParamsError: the seed, licence or repository that was asked for cannot be.
        MissingArtifactError: a part of the run is not there.
        InputError: a part of the run cannot be read.
        StaleArtifactError: the parts belong to different runs.
    """
    _check_request(request)
    runs = _read_runs(places.summary)
    selection = _select(places.train, list(runs), request.seed)
    seed = selection.seed
    lock, student = (
        _read_lock(places.lock),
        load_student(_folder(places, seed), torch.device("cpu")),
    )
    systems = read_report(places.evaluate / f"{seed}.json")
    _check_student(places, student, systems[0], seed)
    _check_summary(places, systems[0], runs[seed])
    _check_lock(lock, places, seed)
    parameters, unrecorded = _parameters(params, lock, seed)
    spread = {entry["score"]: entry for entry in read_json(places.summary, "summary")["scores"]}
    return Facts(
        selection=selection,
        student=_student_facts(student, _folder(places, seed), parameters),
        teacher=_teacher(places.features, parameters),
        corpora=_corpora(parameters),
        parameters=parameters,
        parameters_unrecorded=unrecorded,
        revision=_revision(places.lock),
        stages={name: _hashes(lock, name) for name in _stage_names(seed)},
        scores=_score_rows(systems[0].scores, spread),
        baselines=_baselines(systems[1:]),
        seeds=tuple(_seed_row(run, selection) for run in runs.values()),
        matryoshka=read_json(places.evaluate / f"{seed}.json", "evaluate").get("matryoshka"),
        licence=request.licence or _known_licence(parameters),
        repository=request.repository,
    )


def write_folder(out: Path, places: Places, facts: Facts) -> None:
    """Write the student, its card and provenance.json as the folder `out`.

    Raises:
        ParamsError: there is another folder or file at `out` already.
        ResourceError: the place cannot be written.
    """
    check_replaceable(out)
    card = make_card(facts)
    with atomic_folder(out) as folder:
        shutil.copytree(
            _folder(places, facts.selection.seed),
            folder,
            ignore=shutil.ignore_patterns("README.md"),
            copy_function=shutil.copyfile,  # files of DVC's cache are read-only
            dirs_exist_ok=True,
        )
        (folder / "README.md").write_text(str(card), encoding="utf-8")
        write_json(folder / PROVENANCE, {"schema": SCHEMA, **asdict(facts)})


def check_replaceable(out: Path) -> None:
    """Refuse to replace anything but a folder that was published here before.

    Raises:
        ParamsError: there is another folder or a file at `out`.
    """
    is_free = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    if not is_free and not (out / PROVENANCE).is_file():
        raise ParamsError(
            f"--out {out} is there already, and was not made by this command: no {PROVENANCE}.",
            "name another folder, or move this one away.",
        )


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Upload a published folder to the model hub, at HF_ENDPOINT where that is set.

    Args:
        folder: what `write_folder` wrote; it stays, whatever happens.
        repository: ORG/NAME; made where it is not there.
        private: whether it must be private.

    Returns:
        Its address.

    Raises:
        ModelError: it cannot be uploaded; there is no token, network or right to do so.
    """
    from huggingface_hub import HfApi, get_token, is_offline_mode

    if is_offline_mode():
        raise _not_pushed(
            folder, repository, "HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE and run it again."
        )
    if (token := get_token()) is None:
        raise _not_pushed(
            folder, repository, "there is no access token", "run `hf auth login`, or set HF_TOKEN."
        )
    api = HfApi(token=token)
    try:
        return _upload(api, folder, repository, private=private)
    except PipelineError:
        raise
    except Exception as error:  # noqa: BLE001  # the hub's library lets its transport's errors pass
        raise _refused(error, folder, repository, str(api.endpoint)) from None


def _upload(api: Any, folder: Path, repository: str, *, private: bool) -> str:
    address = api.create_repo(repository, private=private or None, exist_ok=True)
    if private and not api.model_info(repository).private:  # one that exists keeps its visibility
        raise _not_pushed(
            folder,
            repository,
            "the repository exists and is public",
            "make it private on the hub, name another one, or leave --private out.",
        )
    api.upload_folder(
        repo_id=repository, folder_path=folder, commit_message=f"Publish {folder.name}"
    )
    return str(address)


def _not_pushed(folder: Path, repository: str, why: str, fix: str) -> ModelError:
    return ModelError(f"{folder} was written, but not pushed to {repository}: {why}.", fix)


def _refused(error: Exception, folder: Path, repository: str, endpoint: str) -> ModelError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in _REFUSALS:
        return _not_pushed(folder, repository, *_REFUSALS[status])
    reason = " ".join((str(error) or type(error).__name__).split()).rstrip(".")[:300]
    return _not_pushed(
        folder,
        repository,
        f"{endpoint} did not take it ({reason})",
        "check the network and HF_ENDPOINT, and run it again.",
    )


_REFUSALS = {
    401: (
        "the hub does not accept the access token",
        "run `hf auth login` with a token that is valid, or set HF_TOKEN to it.",
    ),
    403: (
        "the access token has no right to write there",
        "use a token with write access to that organisation, or name another repository.",
    ),
    404: ("the hub knows no such repository or organisation", "check the name."),
}


def _check_request(request: Request) -> None:
    if request.licence is not None and not re.fullmatch("[a-z0-9][a-z0-9.-]*", request.licence):
        raise ParamsError(
            f"--licence {request.licence} is no licence identifier of the hub.",
            "write it as the hub does, such as apache-2.0 or cc-by-nc-4.0.",
        )
    if request.repository is not None:
        _check_repository(request.repository)


def _check_repository(repository: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repository)
        valid = "/" in repository
    except HFValidationError:
        valid = False
    if not valid:
        raise ParamsError(
            f"--push {repository} is no repository name.",
            "write ORG/NAME: letters, digits, '-', '_' and '.', at most 96 of them.",
        )


def _folder(places: Places, seed: int) -> Path:
    return places.models / str(seed)


def _read_runs(summary: Path) -> dict[int, dict[str, Any]]:
    """The run of every seed, in the order of the summary."""
    content = read_json(summary, "summary")
    try:
        runs = {int(run["seed"]): run for run in content["reports"]}
        _ = [float(entry["mean"]) for entry in content["scores"] if entry["score"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{summary} is no summary over seeds: {type(error).__name__} {error}.",
            "run `dvc repro -f summary`.",
        ) from None
    if not runs:
        raise InputError(f"{summary} has no report.", "run `dvc repro -f summary`.")
    return runs


def _select(reports: Path, seeds: list[int], asked: int | None) -> Selection:
    """The seed that was asked for, or the one with the best dev score; ties go to the first."""
    if asked is not None and asked not in seeds:
        known = ", ".join(map(str, seeds))
        raise ParamsError(f"--seed {asked}: there is no such run.", f"choose from {known}.")
    dev_best = {seed: _dev_best(reports / str(seed) / "metrics.json") for seed in seeds}
    best = max(seeds, key=lambda seed: dev_best[seed])
    return Selection(best if asked is None else asked, asked is not None, dev_best)


def _dev_best(path: Path) -> float:
    try:
        return float(read_json(path, "train")["dev_best"])
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path} has no dev_best.", "run `dvc repro -f train`.") from None


def _check_student(places: Places, student: Student, system: System, seed: int) -> None:
    folder, report = _folder(places, seed), places.evaluate / f"{seed}.json"
    if student.seed != seed:
        raise StaleArtifactError(
            f"{folder} was trained with seed {student.seed}.", "run `dvc repro train`."
        )
    if system.about.get("weights") != describe_encoder(student.encoder)["weights"]:
        raise StaleArtifactError(f"{report} was measured on another student.", _EVALUATED)


def _check_summary(places: Places, system: System, run: Mapping[str, Any]) -> None:
    """Hold the summary's copy of the headline numbers against the report."""
    measured = headline(system.scores)
    for part in HEADLINES:
        if dict(dotted(run.get(part) or {})) != dict(dotted(measured.get(part) or {})):
            raise StaleArtifactError(
                f"{places.summary} was made of another report than "
                f"{places.evaluate / str(run['seed'])}.json: {part} differs.",
                _EVALUATED,
            )


def _check_lock(lock: Lock, places: Places, seed: int) -> None:
    """Refuse a student that is not the one whose parameters dvc.lock has."""
    folder = _folder(places, seed)
    hashes = _hashes(lock, f"train@{seed}") or {"outs": {}}
    recorded = hashes["outs"].get(folder.as_posix())
    if recorded is not None and recorded != _folder_md5(folder):
        raise StaleArtifactError(
            f"{folder} is not the student that {places.lock} records for train@{seed}.",
            "run `dvc repro train`, or `dvc commit train` if it was trained by hand.",
        )


def _folder_md5(folder: Path) -> str:
    """The hash of a folder as DVC has it in dvc.lock."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): _md5(path.read_bytes()) for path in paths}
    listing = [{"md5": md5, "relpath": name} for name, md5 in sorted(files.items())]
    return _md5(json.dumps(listing).encode()) + ".dir"


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _read_lock(path: Path) -> Lock:
    """The stages of dvc.lock by name; none where there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        return {str(name): dict(stage) for name, stage in content["stages"].items()}
    except (YAMLError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} cannot be read: {reason}.", "run `dvc repro`.") from None


def _stage_names(seed: int) -> tuple[str, ...]:
    return ("download", "features", f"train@{seed}", f"evaluate@{seed}")


def _hashes(lock: Lock, stage: str) -> dict[str, dict[str, str]] | None:
    """The md5 of what a stage read and wrote, by path; None: not recorded."""
    if stage not in lock:
        return None
    return {
        kind: {str(_public(e["path"])): str(e.get("md5", "")) for e in lock[stage].get(kind, [])}
        for kind in ("deps", "outs")
    }


def _parameters(params: Params, lock: Lock, seed: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The parameters of the run by dotted key, and the blocks or keys that dvc.lock lacks."""
    current = dict(dotted(params.model_dump(include=set(_BLOCKS))))
    recorded = dict(_recorded_parameters(lock, seed))
    recorded |= dict(_recorded_seeds(lock))
    values = {key: _public(value) for key, value in (current | recorded).items()}
    unused = _unused_blocks(values)
    values = {key: value for key, value in values.items() if not key.startswith(unused)}
    known_blocks = {key.partition(".")[0] for key in recorded}
    missing = [key for key in values if key not in recorded]
    blocks = [_block(key) if _block(key) not in known_blocks else key for key in missing]
    return values, tuple(dict.fromkeys(blocks))


def _unused_blocks(parameters: Mapping[str, Any]) -> tuple[str, ...]:
    """The blocks of `download` that no part of the corpora is made by, each with its dot."""
    used = {parameters[f"download.{part}"] for part in ("pairs", "text", "evaluation")}
    unused = {SCENES, *OWN_KINDS} - used | (set() if used & set(OWN_KINDS) else {"splits"})
    return tuple(f"download.{block}." for block in unused)


def _block(key: str) -> str:
    return key.partition(".")[0]


def _recorded_parameters(lock: Lock, seed: int) -> Iterator[tuple[str, Any]]:
    for block, stage in _BLOCKS.items():
        entry = lock.get(f"train@{seed}" if stage == "train" else stage, {})
        recorded = (entry.get("params") or {}).get("params.yaml") or {}
        yield from (item for item in dotted(recorded) if _block(item[0]) == block)


def _recorded_seeds(lock: Lock) -> Iterator[tuple[str, Any]]:
    """`train.seeds`, which the summary has: a student does not depend on the other seeds."""
    recorded = (lock.get("summary", {}).get("params") or {}).get("params.yaml") or {}
    yield from (item for item in dotted(recorded) if item[0] == "train.seeds")


def _public(value: Any) -> Any:
    """Keep of an absolute path its last part: where folders lie here is nobody's business.

    Of a URL, name and password of a user and its query, where tokens stand, are left out.
    """
    if isinstance(value, list):
        return [_public(one) for one in value]
    if not isinstance(value, str):
        return value
    if value.startswith(("http://", "https://")):
        scheme, _, rest = re.split(r"[?#]", value)[0].partition("://")
        host, slash, path = rest.partition("/")
        return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
    prefix = next(filter(value.startswith, (LOCAL_PREFIX, TRANSFORMERS_PREFIX)), "")
    path = Path(expanded(value.removeprefix(prefix)))
    return prefix + path.name if path.is_absolute() else value


def _student_facts(student: Student, folder: Path, parameters: Mapping[str, Any]) -> StudentFacts:
    name = str(parameters["student.encoder"])
    return StudentFacts(
        objective=student.objective,
        encoder=name,
        hub_encoder=_is_hub_name(name),
        pooling=student.encoder.pooling,
        max_length=student.encoder.max_length,
        head_dims=tuple(student.heads.dims),
        matryoshka=student.matryoshka,
        weights=describe_encoder(student.encoder)["weights"],
        files=hash_student(folder),
    )


def _is_hub_name(name: str) -> bool:
    """Whether an encoder's name can only be one of the hub: no folder here, no path."""
    parts = name.split("/")
    return not Path(name).exists() and len(parts) <= 2 and all(map(_HUB_PART.fullmatch, parts))  # noqa: PLR2004


_HUB_PART = re.compile(r"[A-Za-z0-9][\w.-]*")


def _teacher(features: Path, parameters: Mapping[str, Any]) -> dict[str, str] | None:
    """The teacher's identity in the feature file; None where that is not there."""
    if not features.is_file():
        return None
    identity = asdict(read_identity(features))
    found = {name: str(_public(value)) for name, value in identity.items()}
    if found["model"] != parameters["teacher.model"]:
        raise StaleArtifactError(
            f"{features} was made by another teacher, {found['model']}, than the run's.",
            "run `dvc repro`.",
        )
    return found


def _corpora(parameters: Mapping[str, Any]) -> tuple[Corpus, ...]:
    parts = ("pairs", "text", "evaluation")
    return tuple(_corpus(part, parameters) for part in parts)


def _corpus(part: str, parameters: Mapping[str, Any]) -> Corpus:
    name = str(parameters[f"download.{part}"])
    if name in OWN_KINDS:
        return _own_corpus(part, name, parameters)
    source = BY_NAME.get(name)
    if source is None:
        return Corpus(part, name, "Apache-2.0, as the project", "rendered by the project", ())
    addresses = tuple(file.address for file in source.files)
    return Corpus(part, name, source.licence, source.citation, addresses)


def _own_corpus(part: str, kind: str, parameters: Mapping[str, Any]) -> Corpus:
    """What a publisher brought; only a data set of the hub has a place that others can see."""
    source, dataset = OWN_KINDS[kind], parameters.get("download.hub.dataset")
    if kind != "hub" or dataset is None:
        return Corpus(part, f"own pairs ({kind})", source.licence, source.citation, ())
    return Corpus(
        part, str(dataset), source.licence, source.citation, (HUB_DATASET + str(dataset),)
    )


def _known_licence(parameters: Mapping[str, Any]) -> str | None:
    is_own = all(parameters.get(key) == value for key, value in _OWN.items())
    return _OWN_LICENCE if is_own else None


def _score_rows(
    scores: Sequence[Score], spread: Mapping[str, Mapping[str, Any]]
) -> tuple[ScoreRow, ...]:
    shown = [score for score in scores if _is_shown(score)]
    unseen = {_summary_name(score): score for score in shown if score.unseen}
    return tuple(_score_row(score, unseen, spread) for score in shown if not score.unseen)


def _is_shown(score: Score) -> bool:
    """Headline numbers, and STS over the unseen pairs of every task."""
    whole = "all" if score.part == "sts" else ""
    is_whole = score.aggregation == whole and not score.subset and score.dimensions is None
    return is_whole and score.measure in HEADLINES[score.part]


def _summary_name(score: Score) -> str:
    name = f"{score.part}.{headline_name(score)}"
    return f"{name}.{score.measure}" if score.part == "retrieval" else name


def _score_row(
    score: Score, unseen: Mapping[str, Score], spread: Mapping[str, Mapping[str, Any]]
) -> ScoreRow:
    name = _summary_name(score)
    other = unseen.get(f"{name}_unseen")
    facts = ("value", "low", "high", "count")
    return ScoreRow(
        score=name,
        part=score.part,
        task=headline_name(score),
        **{key: getattr(score, key) for key in ("measure", "split", *facts)},
        unseen={key: getattr(other, key) for key in facts} if other else None,
        seeds=spread.get(name),
        unseen_seeds=spread.get(f"{name}_unseen"),
    )


def _baselines(systems: Iterable[System]) -> dict[str, float]:
    return {
        system.name: score.value
        for system in systems
        for score in system.scores
        if (score.part, score.task, score.unseen) == ("sts", AVERAGE, False)
        and _is_shown(score)
        and score.value is not None
    }


def _seed_row(run: Mapping[str, Any], selection: Selection) -> dict[str, Any]:
    sts = run.get("sts") or {}
    seed = int(run["seed"])
    return {"seed": seed, "dev_best": selection.dev_best[seed], "sts_avg": sts.get("avg")}


def _revision(lock: Path) -> Revision | None:
    """The commit, DVC experiment and uncommitted changes of the working folder."""
    commit = _git("rev-parse", "--verify", "HEAD")
    if commit is None:
        return None
    name, experiment = _experiment(commit, lock)
    base = experiment or commit
    changed = _git("diff", "--name-only", "--relative", base) or ""
    new = _git("ls-files", "--others", "--exclude-standard") or ""
    return Revision(commit, name, experiment, (*changed.splitlines(), *new.splitlines()))


def _experiment(commit: str, lock: Path) -> tuple[str | None, str | None]:
    """Name and commit of the newest DVC experiment upon `commit` whose dvc.lock is this one.

    DVC keeps each as a commit under refs/exps, named by the commit it started from.
    """
    mine = _git("hash-object", str(lock))
    if mine is None or mine == _git("rev-parse", f"{commit}:./{lock}"):
        return None, None
    where = f"refs/exps/{commit[:2]}/{commit[2:]}/"
    form = "--format=%(objectname) %(refname:lstrip=4)"
    for line in (_git("for-each-ref", "--sort=-committerdate", form, where) or "").splitlines():
        found, _, name = line.partition(" ")
        if _git("rev-parse", f"{found}:./{lock}") == mine:
            return name, found
    return None, None


def _git(*arguments: str) -> str | None:
    """What git prints; None where it fails, or is not installed."""
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "-c", "core.quotePath=off", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.strip() if done.returncode == 0 else None
