"""Paths as people write them, and clear errors for those that do not exist."""

import os
import re
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote

from pydantic import AfterValidator

from pipeline.params.block import Text

_FILE = re.compile(r"file:(//(localhost)?)?(?=/)", re.IGNORECASE)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://|pipe:", re.IGNORECASE)
_FOLDER_OF_MODEL = re.compile(r"(?:local-dir:|transformers:)?")
_COPY = re.compile(r"(.*?)/\.dvc/tmp/exps/.")
"""Where DVC copies the project for experiments that do not touch the working folder."""


def expanded(written: str) -> str:
    """A path with the home folder for `~`, and with the values of `$VARIABLES`.

    This also applies to the path after `local-dir:`, `transformers:` or `file:`. Other addresses,
    and names of the hub, stay as they are.
    """
    if found := _FILE.match(written):
        return unquote(written[found.end() :])
    if is_address(written):
        return written
    prefix = written[: _FOLDER_OF_MODEL.match(written).end()]  # type: ignore[union-attr]  # or ""
    return prefix + os.path.expanduser(os.path.expandvars(written.removeprefix(prefix)))  # noqa: PTH111  # Path's own raises for unknown users


def is_address(written: str) -> bool:
    """Whether it is an address, such as https://..., s3://... or pipe:..., rather than a path."""
    return bool(_ADDRESS.match(written))


PathText = Annotated[Text, AfterValidator(expanded)]
"""A path, or a name that may be one; it is expanded."""


def why_missing(written: str, key: str, what: str = "does not exist") -> tuple[str, str]:
    """What is wrong, and what to do, where nothing usable is at a path as it was written.

    The param, option or variable `key` names it; `what` is wrong with it.
    """
    if is_address(written):
        return (
            f"{written} is an address, which {key} does not accept.",
            f"copy it to this machine, and set {key} to the path there.",
        )
    if Path(written).is_absolute():
        return f"{written} {what}.", f"check {key}."
    here = Path.cwd()
    if copied := _COPY.match(f"{here}/"):
        return (
            f"{written} {what} in the copy of the project that this experiment runs in.",
            f"set {key} to an absolute path, such as {Path(copied[1]) / written}.",
        )
    return f"{written} {what}.", f"check {key}; relative paths start at {here}."
