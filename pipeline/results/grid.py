"""A grid of configurations: what they share, what each changes, and how DVC is told so."""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator
from ruamel.yaml import YAML

from pipeline.core.errors import ParamsError
from pipeline.params.block import Block, dotted, load_params
from pipeline.params.changes import Changes, apply_changes
from pipeline.params.schema import Params

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_-]|\.(?!\.|$|lock$))*")
"""Names that are valid for a DVC experiment, which is a git ref, and for a folder."""

_OUTSIDE = re.compile(r"(?:^|:)\.\.(?:/|$)")
"""Paths that leave the project's folder, also after `local-dir:`."""


class Grid(Block):
    """One grid file."""

    baseline: str
    """The configuration that all others are tested against."""
    sweep: str | None = None
    """The dotted key whose values a line plot shows; every configuration sets it to a number."""
    shared: Changes = Field(default_factory=dict)
    """Changes to params.yaml that all configurations have."""
    configurations: Annotated[dict[str, Changes], Field(min_length=1)]
    """What each changes besides; a name is that of its DVC experiment."""

    @field_validator("configurations")
    @classmethod
    def _names_are_valid(cls, configurations: dict[str, Changes]) -> dict[str, Changes]:
        if wrong := [name for name in configurations if not _NAME.fullmatch(name)]:
            msg = (
                f"{', '.join(map(repr, wrong))} cannot name an experiment; use letters, digits, "
                "single dots, - and _"
            )
            raise ValueError(msg)
        return configurations

    @model_validator(mode="after")
    def _baseline_and_sweep_are_set(self) -> "Grid":
        if self.baseline not in self.configurations:
            msg = f"baseline must be one of {', '.join(self.configurations)}"
            raise ValueError(msg)
        numbers = (int, float)  # of which a bool is one, to Python
        if without := [name for name, value in self.swept().items() if type(value) not in numbers]:
            msg = f"{', '.join(without)} must set the sweep's {self.sweep} to a number"
            raise ValueError(msg)
        return self

    def changes(self, name: str) -> Changes:
        """All changes of one configuration to params.yaml."""
        return {**self.shared, **self.configurations[name]}

    def swept(self) -> dict[str, Any]:
        """The value of the swept key, a number, by configuration; empty without a sweep."""
        if self.sweep is None:
            return {}
        return {name: self.changes(name).get(self.sweep) for name in self.configurations}


def read_grid(path: Path) -> Grid:
    """Read a grid file; the ParamsError of a wrong one names every fault."""
    return load_params(path, Grid)


def check_grid(grid: Grid, params: Path) -> None:
    """Check every configuration of `params`, a params.yaml, before the first is run.

    Raises:
        ParamsError: naming every fault of every configuration, or of params.yaml itself.
    """
    content = load_params(params, Params).model_dump()
    faults = [
        f"{name}: {fault}"
        for name in grid.configurations
        for fault in _faults(apply_changes(content, grid.changes(name)))
    ]
    if faults:
        raise ParamsError("; ".join(faults) + ".", "correct the grid; nothing was run.")


def overrides(changes: Changes) -> list[str]:
    """Changes as `KEY=VALUE` for `dvc exp run -S`, which reads values by Hydra's grammar."""
    return [f"{key}={_hydra(value)}" for key, value in dotted(changes)]


def _hydra(value: Any) -> str:
    """Text in single quotes, so that it is not read as number, list, sweep or interpolation."""
    if isinstance(value, list):
        return f"[{','.join(map(_hydra, value))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    # backslashes are escapes only before a quote, so they are doubled there
    escaped = re.sub(r"(\\*)('|\Z)", lambda m: m[1] * 2 + m[2].replace("'", "\\'"), value)
    return "'" + escaped.replace("${", "\\${") + "'"


def _faults(content: Mapping[str, Any]) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "params.yaml")
        with path.open("w", encoding="utf-8") as stream:
            YAML().dump(dict(content), stream)
        try:
            load_params(path, Params)
        except ParamsError as error:
            yield error.what.removeprefix(f"{path}: ").removesuffix(".")
    for key, value in dotted(content):
        if isinstance(value, str) and _OUTSIDE.search(value):
            yield f"{key}: {value} leaves the project, of which experiments run in a copy"
