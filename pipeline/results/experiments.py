"""DVC experiments on top of HEAD: which there are, what they wrote, how one is run.

The only user of DVC's Python interface.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.core.errors import InputError, ParamsError, PipelineError, StaleArtifactError
from pipeline.params.block import dotted
from pipeline.params.places import expanded
from pipeline.results.compare import Configuration
from pipeline.results.grid import Grid
from pipeline.results.summary import read_summary

MIRROR_VARIABLE = "DATA_MIRROR"
HEAD = "HEAD"

_STDERR = 2


def finished_experiments() -> dict[str, str]:
    """The commits of all experiments on top of HEAD by name, in the order of the names.

    Raises:
        ParamsError: the working folder is no DVC project with a commit.
    """
    from dvc.repo import Repo

    with _dvc_errors(), Repo() as repo:
        found = repo.experiments.ls(rev=HEAD)
    return dict(sorted(entry for entries in found.values() for entry in entries))


def queued_experiments() -> set[str]:
    """The names of the experiments that wait in DVC's queue or run from it."""
    from dvc.repo import Repo

    with _dvc_errors(), Repo() as repo:
        queue = repo.experiments.celery_queue
        return {entry.name for entry in (*queue.iter_queued(), *queue.iter_active()) if entry.name}


def read_experiment(name: str, commit: str, summary: Path) -> Configuration:
    """The reports of an experiment, from the summary it wrote.

    Args:
        name: what to call it.
        commit: where it is.
        summary: path of the summary in the project.

    Raises:
        InputError: it has none.
    """
    return read_summary(_read_at(name, commit, summary), name)


def require_same_changes(grid: Grid, commits: Mapping[str, str], params: Path) -> None:
    """Refuse finished experiments that have the name of a configuration, but not its params.

    Args:
        grid: whose configurations are looked for.
        commits: of the finished experiments, by name.
        params: path of the params in the project.

    Raises:
        StaleArtifactError: naming every such experiment and the keys that differ.
        InputError: an experiment has no params.
    """
    other = {
        name: _other_keys(grid.changes(name), dict(dotted(_read_yaml(name, commits[name], params))))
        for name in grid.configurations
        if name in commits
    }
    faults = [f"{name} ({', '.join(keys)})" for name, keys in other.items() if keys]
    if faults:
        raise StaleArtifactError(
            f"there are experiments with other params than the grid says: {', '.join(faults)}.",
            "replace them with `python -m stages.grid --force`, or name the configurations anew.",
        )


def label_experiments(commits: Mapping[str, str], params: Path) -> dict[str, str]:
    """Labels by experiment: the params in which each differs from HEAD, else its name.

    Raises:
        InputError: an experiment has no params.
    """
    ours = dict(dotted(_read_yaml(HEAD, HEAD, params)))
    labels = {
        name: _differences(ours, dict(dotted(_read_yaml(name, commit, params)))) or name
        for name, commit in commits.items()
    }
    often = [label for label in labels.values() if list(labels.values()).count(label) > 1]
    return {
        name: f"{label} ({name})" if label in often else label for name, label in labels.items()
    }


def run_experiment(
    name: str, overrides: Sequence[str], target: str, *, queue: bool, kept: Mapping[str, Path]
) -> int:
    """Run an experiment in a temporary copy of the project, or queue it.

    The working tree is not touched: the copy is of HEAD and of changes to tracked files, and takes
    finished work from the cache. What DVC and the stages print goes to stderr.

    Args:
        name: of the experiment.
        overrides: of params.yaml, as `KEY=VALUE`.
        target: the stage to bring up to date.
        queue: only queue it.
        kept: folders outside the copy for what stages keep between runs, by environment variable.

    Returns:
        The exit status of DVC.
    """
    where = "--queue" if queue else "--temp"
    changes = [argument for override in overrides for argument in ("-S", override)]
    command = [sys.executable, "-m", "dvc", "exp", "run", where, "--name", name, *changes, target]
    with subprocess.Popen(  # noqa: S603  # our own interpreter; the values are checked params
        command, stdout=_STDERR, env=_environment(kept), start_new_session=True
    ) as process:
        try:
            return process.wait()
        except BaseException:
            _interrupt(process)
            raise


def remove_experiments(names: Sequence[str]) -> None:
    """Forget finished experiments.

    Raises:
        ParamsError: DVC refuses.
    """
    from dvc.repo import Repo

    if names:  # DVC takes no name for a wrong one
        with _dvc_errors(), Repo() as repo:
            repo.experiments.remove(list(names))


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """Interrupt DVC together with the stage it runs, and wait: both then clean up."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    process.wait()


def _environment(kept: Mapping[str, Path]) -> dict[str, str]:
    """The stages are run by this interpreter; mirror and kept folders are those of this folder.

    DVC removes its copy of the project when it is stopped, and checkpoints in it would go too.
    """
    environment = dict(os.environ)
    binaries = str(Path(sys.executable).parent)
    environment["PATH"] = os.pathsep.join([binaries, environment.get("PATH", os.defpath)])
    mirror = expanded(environment.get(MIRROR_VARIABLE, ""))
    if mirror and Path(mirror).is_dir():
        environment[MIRROR_VARIABLE] = str(Path(mirror).absolute())
    for variable, folder in kept.items():
        environment.setdefault(variable, str(folder.absolute()))
    return environment


@contextlib.contextmanager
def _dvc_errors() -> Iterator[None]:
    from dvc.exceptions import DvcException
    from scmrepo.exceptions import SCMError

    try:
        yield
    except (DvcException, SCMError) as error:
        reason = " ".join(str(error).split()).removesuffix(".")
        raise ParamsError(
            f"DVC cannot manage experiments here: {reason}.",
            "run the command in the project's folder, a git repository with a commit.",
        ) from None


def _read_at(name: str, commit: str, path: Path) -> str:
    import dvc.api

    try:
        with _dvc_errors():
            return str(dvc.api.read(path.as_posix(), rev=commit))
    except (PipelineError, OSError) as error:
        raise InputError(
            f"{name} has no {path}.",
            "run it again, as `dvc exp run` or `python -m stages.grid` does; for HEAD, run "
            "`dvc repro` and commit.",
        ) from error


def _read_yaml(name: str, commit: str, path: Path) -> Any:
    return YAML(typ="safe", pure=True).load(_read_at(name, commit, path))


def _other_keys(changes: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    return [key for key, value in dotted(changes) if theirs.get(key, ...) != value]


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    changed = {key: value for key, value in theirs.items() if ours.get(key, ...) != value}
    return ", ".join(f"{key}={_show(value)}" for key, value in changed.items())


def _show(value: object) -> str:
    return "null" if value is None else str(value)
