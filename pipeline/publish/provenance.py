"""What dvc.lock and git record about a run: parameters, hashes of files, the state of the code."""

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.core.errors import InputError, ParamsError, StaleArtifactError
from pipeline.core.redact import first_line
from pipeline.download.sources import OWN_KINDS, SCENES
from pipeline.features.identity import LOCAL_PREFIX, TRANSFORMERS_PREFIX
from pipeline.params.block import dotted
from pipeline.params.places import expanded
from pipeline.params.schema import Params
from pipeline.params.yaml import parse_yaml

_RECORDED_BY = {
    "download": "download",
    "teacher": "features",
    "student": "train@{seed}",
    "loss": "train@{seed}",
    "train": "train@{seed}",
    "train.seeds": "summary",
}
"""The blocks and keys of params.yaml that shape a student, and the stage that records them in
dvc.lock; a student does not depend on the other seeds."""

Lock = Mapping[str, Mapping[str, Any]]
"""The stages of dvc.lock by name."""


def read_lock(path: Path) -> Lock:
    """Read dvc.lock; no stages where the file does not exist.

    Raises:
        InputError: it cannot be read.
    """
    if not path.is_file():
        return {}
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"), path.name)
        return {str(name): dict(stage) for name, stage in content["stages"].items()}
    except (ParamsError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be used: {first_line(error)}.", "run `dvc repro`."
        ) from None


def read_stages(lock: Lock, seed: int) -> dict[str, dict[str, dict[str, str]] | None]:
    """The md5 of the deps and outs of every stage, by path; None where it is not recorded."""
    names = ("download", "features", f"train@{seed}", f"evaluate@{seed}")
    return {
        name: {
            kind: {public(one["path"]): one.get("md5", "") for one in lock[name].get(kind, [])}
            for kind in ("deps", "outs")
        }
        if name in lock
        else None
        for name in names
    }


def require_recorded(student: Path, path: Path, lock: Lock, seed: int) -> None:
    """Refuse a student whose files are not those that dvc.lock (`path`) records for a seed.

    Raises:
        StaleArtifactError: they differ.
    """
    outs = lock.get(f"train@{seed}", {}).get("outs", [])
    recorded = {out["path"]: out.get("md5") for out in outs}.get(student.as_posix())
    if recorded not in {None, folder_md5(student)}:
        raise StaleArtifactError(
            f"{student} is not the student that {path} records for train@{seed}.",
            "run `dvc repro train`, or `dvc commit train` if you trained it by hand.",
        )


def folder_md5(folder: Path) -> str:
    """The hash that DVC gives a folder in dvc.lock."""
    files = {
        path.relative_to(folder).as_posix(): _md5(path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }
    listing = [{"md5": md5, "relpath": name} for name, md5 in sorted(files.items())]
    return _md5(json.dumps(listing).encode()) + ".dir"


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def read_parameters(params: Params, lock: Lock, seed: int) -> tuple[dict[str, Any], list[str]]:
    """The parameters of a training run by dotted key, as dvc.lock records them.

    Returns:
        The values, and the blocks or keys that dvc.lock lacks: these are taken from `params`.
    """
    current = params.model_dump(include={key.partition(".")[0] for key in _RECORDED_BY})
    recorded: dict[str, Any] = {}
    for prefix, stage in _RECORDED_BY.items():
        found = lock.get(stage.format(seed=seed), {}).get("params", {}).get("params.yaml", {})
        recorded |= {k: v for k, v in dotted(found) if f"{k}.".startswith(f"{prefix}.")}
    values = dict(dotted(current)) | recorded
    used = {values[f"download.{part}"] for part in ("pairs", "text", "evaluation")}
    unused = {SCENES, *OWN_KINDS} - used | (set() if used & set(OWN_KINDS) else {"splits"})
    hidden = tuple(f"download.{block}." for block in unused)  # they made no part of the corpora
    values = {key: public(value) for key, value in values.items() if not key.startswith(hidden)}
    known = {key.partition(".")[0] for key in recorded}
    missing = [key for key in values if key not in recorded]
    blocks = [key if (block := key.partition(".")[0]) in known else block for key in missing]
    return values, list(dict.fromkeys(blocks))


def public(value: Any) -> Any:
    """A parameter without what is private to this machine.

    Of an absolute path only the last part is kept; a URL loses its user, password and query.
    """
    if isinstance(value, list):
        return [public(one) for one in value]
    if not isinstance(value, str):
        return value
    if value.startswith(("http://", "https://")):
        return re.sub(r"(?<=://)[^/?#]*@|[?#].*", "", value, flags=re.DOTALL)
    prefix = next(filter(value.startswith, (LOCAL_PREFIX, TRANSFORMERS_PREFIX)), "")
    path = Path(expanded(value.removeprefix(prefix)))
    return prefix + path.name if path.is_absolute() else value


def read_revision(lock: Path) -> dict[str, Any] | None:
    """The commit and DVC experiment (known by its dvc.lock) of the working folder, and changes."""
    commit = _git("rev-parse", "--verify", "HEAD")
    if commit is None:
        return None
    name, experiment = _find_experiment(commit, lock)
    changed = _git("diff", "--name-only", "--relative", experiment or commit) or ""
    new = _git("ls-files", "--others", "--exclude-standard") or ""
    return {
        "commit": commit,
        "experiment": name,
        "experiment_commit": experiment,
        "changed": [*changed.splitlines(), *new.splitlines()],
    }


def _find_experiment(commit: str, lock: Path) -> tuple[str | None, str | None]:
    """Name and commit of the newest DVC experiment on `commit` that has the same dvc.lock.

    DVC keeps each as a commit under refs/exps, grouped by the commit it started from.
    """
    mine = _git("hash-object", str(lock))
    if mine is None or mine == _git("rev-parse", f"{commit}:./{lock}"):
        return None, None
    refs = f"refs/exps/{commit[:2]}/{commit[2:]}/"
    form = "--format=%(objectname) %(refname:lstrip=4)"
    for line in (_git("for-each-ref", "--sort=-committerdate", form, refs) or "").splitlines():
        found, _, name = line.partition(" ")
        if _git("rev-parse", f"{found}:./{lock}") == mine:
            return name, found
    return None, None


def _git(*arguments: str) -> str | None:
    """What git prints; None where it fails or is not installed."""
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "-c", "core.quotePath=off", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.strip() if done.returncode == 0 else None
