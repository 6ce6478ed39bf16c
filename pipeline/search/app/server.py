"""The application: its addresses, and the files of the page."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response

from pipeline.core.errors import StaleArtifactError
from pipeline.download.records import read_pairs
from pipeline.features.teacher import Teacher
from pipeline.search.app.guard import guard
from pipeline.search.app.problems import answer_problems, problems
from pipeline.search.app.service import Service
from pipeline.search.app.upload import REQUEST_BODY, TEXTS_BODY
from pipeline.search.searcher import Searcher

StaticName = Literal["page.css", "page.js", "icon.svg"]

_DESCRIPTION = (
    "Sentences and pictures, ranked by cosine. Every error is "
    '`{"error": what is wrong, "fix": what to do about it}`.'
)
_JPEG: dict[int | str, dict[str, object]] = {
    200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}}
}


def create_app(
    systems: Mapping[str, Searcher],
    teacher: Callable[[], Teacher] | None,
    pairs: Path,
    names: Collection[str] = (),
) -> FastAPI:
    """The search page and its API over models with their indexes, all of one corpus.

    Args:
        systems: by the name that users see; the first is asked where none is named.
        teacher: loads the teacher for pictures that are queries; called once, when first needed.
        pairs: the folder of the corpus.
        names: host names of this server, beside localhost and numeric addresses.

    Raises:
        InputError: the pairs cannot be read.
        MissingArtifactError: there are no pairs.
        StaleArtifactError: an index is of other pairs.
    """
    corpus = read_pairs(pairs)
    for name, searcher in systems.items():
        if searcher.corpus != corpus.fingerprint():
            raise StaleArtifactError(
                f"the index of {name} was built from other pairs than {pairs}.",
                "run `dvc repro index`, or name its own pairs with --pairs.",
            )
    app = FastAPI(
        title="KDMCSE search",
        description=_DESCRIPTION,
        docs_url=None,  # both pages would load scripts from another host
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    guard(app, frozenset(name.lower() for name in ("localhost", *names)))
    answer_problems(app)
    _add_addresses(app, Service(systems, teacher, corpus))
    return app


def _add_addresses(app: FastAPI, service: Service) -> None:
    app.get("/health")(service.health)
    app.get("/about")(service.about)
    app.get("/search", responses=problems(404, 409, 422, 503))(service.search)
    of_picture: dict[str, Any] = {
        "responses": problems(404, 408, 409, 413, 422, 503),
        "openapi_extra": {"requestBody": REQUEST_BODY},
    }
    app.post("/search/image", **of_picture)(service.search_by_image)
    app.post("/embed/image", **of_picture)(service.embed_image)
    app.post(
        "/embed",
        responses=problems(404, 408, 413, 422, 503),
        openapi_extra={"requestBody": TEXTS_BODY},
    )(service.embed)
    app.get(
        "/image/{version}/{image_id}",
        responses=_JPEG | problems(404, 422, 503),
        response_class=Response,
    )(service.image)
    app.get("/", include_in_schema=False)(_page)
    app.get("/static/{name}", include_in_schema=False)(_static)


async def _page() -> Response:
    return _file("page.html")


async def _static(name: StaticName) -> Response:
    return _file(name)


def _file(name: str) -> Response:
    path = Path(__file__).parent / "static" / name
    return FileResponse(path, headers={"Cache-Control": "no-cache"})
