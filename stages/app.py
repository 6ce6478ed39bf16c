"""Serve the search page and its JSON API."""

import os
import sys
import webbrowser
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

from pipeline.core.errors import InputError
from pipeline.core.extras import require_extra
from pipeline.core.progress import log
from pipeline.search.searcher import Searcher
from stages import paths
from stages._cli import read_params, run_stage


def main(
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.", min=0, max=65535)] = 8000,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Another host name of this machine.")
    ] = None,
    open_page: Annotated[
        bool | None, typer.Option("--open/--no-open", help="Default: if there is a screen.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the model. Default: its folder.")] = None,
    model: Annotated[Path | None, typer.Option(help="Default: the first seed's student.")] = None,
    index: Path = paths.INDEX,
    beside_name: Annotated[
        str | None, typer.Option(help="Of the other model. Default: its folder.")
    ] = None,
    beside_model: Annotated[
        Path | None, typer.Option(help="Another experiment's student, to compare with.")
    ] = None,
    beside_index: Annotated[Path | None, typer.Option(help="Its index.")] = None,
    pairs: Path = paths.PAIRS,
) -> None:
    """Serve the search page and its JSON API; prints the address, and stops on Ctrl-C."""
    require_extra("app", "the search page", "fastapi", "uvicorn", "python_multipart")
    import torch

    from pipeline.features.teacher import Teacher
    from pipeline.search.app.serve import address_of, is_local, listen, serve
    from pipeline.search.app.server import create_app

    params = read_params()
    model = model or paths.first_model(params)
    named = {name or str(model): (model, index)}
    named |= _beside(beside_name, beside_model, beside_index, named)
    with listen(host, port) as listener:
        systems = {one: Searcher.open(*folders) for one, folders in named.items()}
        app = create_app(
            systems,
            lambda: Teacher(params.teacher, torch.device("cpu")),
            pairs,
            [host, *(allow_host or [])],
        )
        if not is_local(host):
            log.warning("others on the network can search here and see the corpus")
        address = address_of(listener, host)
        typer.echo(address)
        if _has_screen() if open_page is None else open_page:
            webbrowser.open(address)
        serve(app, listener)


def _beside(
    name: str | None, model: Path | None, index: Path | None, taken: Collection[str]
) -> dict[str, tuple[Path, Path]]:
    """The other system, if there is one."""
    if model is None and index is None:
        return {}
    if model is None or index is None:
        missing = "--beside-model" if model is None else "--beside-index"
        raise InputError(f"{missing} is missing.", "name both the other model and its index.")
    name = name or str(model)
    if name in taken:
        raise InputError(f"two systems have the name {name}.", "use --beside-name.")
    return {name: (model, index)}


def _has_screen() -> bool:
    """Whether a browser would open a window; a text browser would take over the terminal."""
    if sys.platform in {"darwin", "win32"}:
        return sys.stdout.isatty()
    has_display = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    return has_display and sys.stdout.isatty()


app = run_stage(main)

if __name__ == "__main__":
    app()
