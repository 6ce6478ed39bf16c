"""The application: its addresses, and the files of the page."""

from collections.abc import Callable, Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from fastapi import FastAPI
from fastapi.responses import Response

from pipeline.core.errors import InputError, StaleArtifactError
from pipeline.download.records import Pairs, read_pairs
from pipeline.features.teacher import Teacher
from pipeline.search.app.guard import guard
from pipeline.search.app.messages import Problem
from pipeline.search.app.problems import PROBLEMS, answer_problems
from pipeline.search.app.service import Service, System
from pipeline.search.app.upload import REQUEST_BODY

StaticName = Literal["page.css", "page.js", "icon.svg"]

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_DESCRIPTION = (
    "Sentences and pictures, ranked by cosine. Every error is "
    '`{"error": what is wrong, "fix": what to do about it}`.'
)
_UPLOAD_PROBLEMS: dict[int | str, dict[str, object]] = {
    408: {"model": Problem, "description": "The picture did not arrive in time."},
    413: {"model": Problem, "description": "The picture is too large."},
}
_JPEG: dict[int | str, dict[str, object]] = {
    200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}},
    404: {"model": Problem, "description": "No such picture, or it cannot be read."},
    422: {"model": Problem, "description": "A parameter is unusable."},
    503: {"model": Problem, "description": "Too many requests are waiting."},
}


def create_app(
    systems: Sequence[System],
    teacher: Callable[[], Teacher] | None,
    pairs: Path,
    names: Collection[str] = (),
) -> FastAPI:
    """The search page and its API over systems of one corpus.

    Args:
        systems: what can be asked; the first is asked where none is named.
        teacher: loads the teacher for pictures that are queries; called once, when first needed.
        pairs: the folder of the corpus.
        names: host names of this server, beside localhost and numeric addresses.

    Raises:
        InputError: two systems have the same name, or the pairs cannot be read.
        MissingArtifactError: there are no pairs.
        StaleArtifactError: an index is of other pairs.
    """
    corpus = read_pairs(pairs)
    service = Service(_by_name(systems, corpus), teacher, corpus)
    app = FastAPI(
        title="KDMCSE search",
        description=_DESCRIPTION,
        docs_url=None,  # both pages would load scripts from another host
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    guard(app, frozenset(name.lower() for name in ("localhost", *names)))
    answer_problems(app)
    _add_addresses(app, service)
    return app


def _by_name(systems: Sequence[System], corpus: Pairs) -> dict[str, System]:
    """The systems by name; all must be built from this corpus."""
    fingerprint = corpus.fingerprint()
    named = {system.name: system for system in systems}
    if len(named) < len(systems):
        raise InputError(f"two systems have the name {systems[0].name}.", "use --beside-name.")
    for name, system in named.items():
        if system.searcher.corpus != fingerprint:
            raise StaleArtifactError(
                f"the index of {name} was built from other pairs than {corpus.folder}.",
                "run `dvc repro index`, or name its own pairs with --pairs.",
            )
    return named


def _add_addresses(app: FastAPI, service: Service) -> None:
    app.get("/health")(service.health)
    app.get("/about")(service.about)
    app.get("/search", responses=PROBLEMS)(service.search)
    app.post(
        "/search/image",
        responses=PROBLEMS | _UPLOAD_PROBLEMS,
        openapi_extra={"requestBody": REQUEST_BODY},
    )(service.search_by_image)
    picture = "/image/{version}/{image_id}"
    app.get(picture, responses=_JPEG, response_class=Response)(service.image)
    app.get("/", include_in_schema=False)(_page)
    app.get("/static/{name}", include_in_schema=False)(_static)


async def _page() -> Response:
    return _file("page.html")


async def _static(name: StaticName) -> Response:
    return _file(name)


def _file(name: str) -> Response:
    kind = _TYPES[name.rpartition(".")[2]]
    return Response(_read(name), media_type=kind, headers={"Cache-Control": "no-cache"})


@cache
def _read(name: str) -> bytes:
    return (Path(__file__).parent / "static" / name).read_bytes()
