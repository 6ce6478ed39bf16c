"""DVC experiments on top of HEAD: which there are, what they wrote, and how one is run."""

import contextlib
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import InputError, ParamsError, PipelineError, StaleArtifactError
from pipeline.core.extras import require_extra
from pipeline.params.block import dotted
from pipeline.params.places import expanded
from pipeline.results.grid import Grid
from pipeline.results.scores import Configuration, read_summary

MIRROR_VARIABLE = "DATA_MIRROR"
HEAD = "HEAD"

_STDERR = 2
_FINISHED = {None, "Success"}
"""States of experiments; DVC gives none to those that did not run from its queue."""


def list_experiments() -> tuple[dict[str, str], set[str]]:
    """The commits of the finished experiments on HEAD by name, and the names of the queued ones.

    Raises:
        ParamsError: the working folder is not a DVC project with a commit.
        ResourceError: DVC is not installed.
    """
    require_extra("repro", "this command", "dvc")
    import dvc.api

    with _dvc_errors():
        rows = [row for row in dvc.api.exp_show() if row["Experiment"]]
    finished = {str(r["Experiment"]): str(r["rev"]) for r in rows if r["State"] in _FINISHED}
    queued = {str(r["Experiment"]) for r in rows if r["State"] in {"Queued", "Running"}}
    return dict(sorted(finished.items())), queued


def read_experiment(name: str, commit: str, summary: Path) -> Configuration:
    """The reports of an experiment, from the summary that it wrote in the project.

    Raises:
        InputError: it has none.
    """
    import dvc.api

    try:
        with _dvc_errors():
            text = str(dvc.api.read(summary.as_posix(), rev=commit))
    except (PipelineError, OSError) as error:
        raise InputError(
            f"{name} has no {summary}.",
            "run it again, as `dvc exp run` or `python -m stages.grid` does; for HEAD, run "
            "`dvc repro` and commit.",
        ) from error
    return read_summary(text, name)


def require_same_changes(grid: Grid, commits: Mapping[str, str]) -> None:
    """Refuse finished experiments that have the name of a configuration, but not its params.

    Raises:
        StaleArtifactError: naming every such experiment and the keys that differ.
    """
    faults = []
    for name in grid.configurations:
        if name in commits:
            theirs, changes = _params(commits[name]), dotted(grid.changes(name))
            if other := [key for key, value in changes if theirs.get(key, ...) != value]:
                faults.append(f"{name} ({', '.join(other)})")
    if faults:
        raise StaleArtifactError(
            f"there are experiments with other params than the grid says: {', '.join(faults)}.",
            "replace them with `python -m stages.grid --force`, or rename the configurations.",
        )


def label_experiments(commits: Mapping[str, str]) -> dict[str, str]:
    """Labels by experiment: the params in which each differs from HEAD, else its name."""
    ours = _params(HEAD)
    labels = {}
    for name, commit in commits.items():
        changed = {k: v for k, v in _params(commit).items() if ours.get(k, ...) != v}
        shown = (f"{key}={'null' if value is None else value}" for key, value in changed.items())
        labels[name] = ", ".join(shown) or name
    often = Counter(labels.values())
    return {name: f"{one} ({name})" if often[one] > 1 else one for name, one in labels.items()}


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
        except BaseException:  # interrupt DVC and the stage it runs; both clean up
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
            process.wait()
            raise


def remove_experiments(names: Sequence[str]) -> None:
    """Forget finished experiments; ParamsError where DVC refuses."""
    from dvc.repo import Repo

    if names:  # DVC takes an empty list for a mistake
        with _dvc_errors(), Repo() as repo:
            repo.experiments.remove(list(names))


def _params(commit: str) -> dict[str, Any]:
    """The params of a revision by dotted key."""
    import dvc.api

    with _dvc_errors():
        return dict(dotted(dvc.api.params_show(rev=commit)))


def _environment(kept: Mapping[str, Path]) -> dict[str, str]:
    """Stages are run by this interpreter; mirror and kept folders are those of this folder.

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
