"""Errors as answers: a status, and as JSON one line of what is wrong and one of what to do."""

from http import HTTPStatus

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request

from pipeline.core.errors import (
    InputError,
    ModelError,
    PipelineError,
    ResourceError,
    StaleArtifactError,
)
from pipeline.search.app.messages import Problem

SEE_SCHEMA = "see /openapi.json for what can be asked."


class RequestError(InputError):
    """A request that cannot be answered, with the status that says why."""

    def __init__(self, status: int, what: str, fix: str) -> None:
        super().__init__(what, fix)
        self.status = status


_STATUS = {StaleArtifactError: 409, ModelError: 409, InputError: 422, ResourceError: 503}
"""Of the errors of other rooms; all others are 500."""
_MEANINGS = {
    404: "There is no such system or picture, or it cannot be read.",
    408: "The body did not arrive in time.",
    409: "Model, index and teacher do not belong together.",
    413: "The body is too large.",
    422: "A parameter, a text or the picture cannot be used.",
    503: "Too many requests are waiting.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, object]]:
    """The errors of an endpoint, for the schema."""
    return {one: {"model": Problem, "description": _MEANINGS[one]} for one in statuses}


def answer(status: int, error: str, fix: str) -> JSONResponse:
    """A problem as a response."""
    headers = {"Cache-Control": "no-store"}
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = "1"
    return JSONResponse(Problem(error=error, fix=fix).model_dump(), status, headers)


def answer_problems(app: FastAPI) -> None:
    """Make an application answer every known error in this form."""
    app.add_exception_handler(PipelineError, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_refusal)


def _answer_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, PipelineError)
    status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
    return answer(getattr(error, "status", status), error.what, error.fix)


def _answer_invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = ".".join(map(str, first["loc"][1:])) or "the request"
    given = "" if first["type"] == "missing" else f" (given: {str(first['input'])[:60]!r})"
    return answer(422, f"{name}: {first['msg']}{given}.", SEE_SCHEMA)


def _answer_refusal(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.NOT_FOUND:
        return answer(404, f"there is nothing at {request.url.path[:80]!r}.", SEE_SCHEMA)
    response = answer(error.status_code, f"{error.detail}.", SEE_SCHEMA)
    response.headers.update(error.headers or {})
    return response
