"""Print the JSON schema of params.yaml, for editors."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.core.files import atomic_file
from pipeline.params.json_schema import params_schema
from stages._cli import run_stage


def main(
    out: Annotated[Path | None, typer.Option(help="Write this file instead.")] = None,
) -> None:
    """Print the JSON schema of params.yaml, for editors."""
    text = json.dumps(params_schema(), indent=2) + "\n"
    if out is None:
        typer.echo(text, nl=False)
        return
    with atomic_file(out) as temporary:
        temporary.write_text(text, encoding="utf-8")


app = run_stage(main)

if __name__ == "__main__":
    app()
