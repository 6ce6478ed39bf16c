"""Print the JSON schema of params.yaml, for editors."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.core.files import write_text
from pipeline.params.schema import params_schema
from stages._cli import run_stage


def main(
    out: Annotated[Path | None, typer.Option(help="Write this file instead.")] = None,
) -> None:
    """Print the JSON schema of params.yaml, for editors."""
    text = json.dumps(params_schema(), indent=2) + "\n"
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_text(out, text)


app = run_stage(main)

if __name__ == "__main__":
    app()
