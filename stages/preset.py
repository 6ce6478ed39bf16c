"""Show what a preset changes in params.yaml, or change it."""

import difflib
import json
from typing import Annotated

import typer

from pipeline.core.files import write_text
from pipeline.params.presets import (
    Data,
    Method,
    TeacherName,
    changed_values,
    edit_params,
    read_preset,
)
from stages._cli import PARAMS_FILE, read_params, run_stage


def main(
    data: Annotated[Data, typer.Argument(help="Data and models.")],
    method: Annotated[Method, typer.Argument(help="Settings of the method.")],
    teacher: Annotated[
        TeacherName | None, typer.Option(help="Another teacher than the preset's own.")
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Also write params.yaml.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: old and new values.")
    ] = False,
) -> None:
    """Show what a preset changes in params.yaml; with --write, change it."""
    preset = read_preset(data, method, teacher)
    name = f"{data} {method} with {teacher}" if teacher else f"{data} {method}"
    changed = changed_values(read_params(), preset)
    before = PARAMS_FILE.read_text(encoding="utf-8")
    after = edit_params(before, {key: preset[key] for key in changed}) if changed else before
    if as_json:
        typer.echo(json.dumps(changed, indent=2))
    elif changed:  # as `git apply -p0` reads it
        old, new, file = before.splitlines(), after.splitlines(), str(PARAMS_FILE)
        typer.echo("\n".join(difflib.unified_diff(old, new, file, file, lineterm="")))
    if not changed:
        outcome = f"{PARAMS_FILE} is {name} already; nothing changes."
    elif write:
        write_text(PARAMS_FILE, after)
        outcome = f"{PARAMS_FILE} is {name} now."
    else:
        outcome = f"nothing was written; --write makes {PARAMS_FILE} {name}."
    typer.echo(outcome, err=True)


app = run_stage(main)

if __name__ == "__main__":
    app()
