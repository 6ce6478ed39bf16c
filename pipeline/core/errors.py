"""The error tree: every error that a user can see says what happened and how to fix it."""

from pathlib import Path
from typing import Any


class PipelineError(Exception):
    """An error with its fix; the command line prints both, one line each.

    Args:
        what: what is wrong, naming the file, key or row.
        fix: what the user can do about it.
    """

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(f"{what}\n  fix: {fix}")
        self.what = what
        self.fix = fix

    def __reduce__(self) -> tuple[Any, ...]:
        """For errors of other processes: a copy is made without `__init__`."""
        return type(self).__new__, (type(self), *self.args), self.__dict__


class ParamsError(PipelineError):
    """params.yaml or a command-line value is wrong."""


class MissingArtifactError(PipelineError):
    """A file or folder that an earlier step makes does not exist."""

    def __init__(self, path: Path, made_by: str) -> None:
        super().__init__(f"{path} does not exist.", f"run `dvc repro {made_by}`.")


class StaleArtifactError(PipelineError):
    """A file was made by another teacher, model or corpus than the current one."""


class InputError(PipelineError):
    """The content of a file cannot be used."""


class DownloadError(PipelineError):
    """A transfer failed, or its bytes are not the expected ones."""


class ModelError(PipelineError):
    """A teacher or student cannot be loaded or used."""


class TrainingError(PipelineError):
    """The optimisation cannot continue."""


class ResourceError(PipelineError):
    """Disk or memory ran out, or a file cannot be read or written."""


class InterruptedRunError(BaseException):
    """SIGINT or SIGTERM ended the work early.

    It is not an Exception, so that no handler on the way takes it for a fault of a file or library.
    """

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix
