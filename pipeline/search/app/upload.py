"""The body of a request, of limited size: texts, or a picture, which may be the file of a form."""

from collections.abc import AsyncGenerator

from anyio import fail_after
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from pipeline.core.errors import InputError
from pipeline.search.app.messages import Texts
from pipeline.search.app.problems import SEE_SCHEMA, RequestError

MAX_UPLOAD_BYTES = 16 * 1024**2
_MAX_TEXTS_BYTES = 8 * 1024**2
_ENVELOPE = 16 * 1024
"""Bytes of a form beside its file, at most."""
_RECEIVED = 64 * 1024**2
"""Bytes after which a body that is too large is no longer received."""
_SECONDS = 30

_BINARY = {"type": "string", "format": "binary"}
_FORM = {"type": "object", "properties": {"picture": _BINARY}, "required": ["picture"]}
REQUEST_BODY = {
    "required": True,
    "content": {"image/*": {"schema": _BINARY}, "multipart/form-data": {"schema": _FORM}},
}
"""What `read_upload` takes, for the schema."""
TEXTS_BODY = {
    "required": True,
    "content": {"application/json": {"schema": Texts.model_json_schema()}},
}
"""What `read_texts` takes, for the schema."""


async def read_texts(request: Request) -> Texts:
    """The texts that a request holds as JSON.

    Raises:
        RequestError: there are more than 8 MiB (413), or they took longer than 30 s (408).
        RequestValidationError: they are not what the schema says.
    """
    body = await _receive(request, _MAX_TEXTS_BYTES, "request")
    try:
        return Texts.model_validate_json(body)
    except ValidationError as error:
        found = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        raise RequestValidationError(found) from None


async def read_upload(request: Request) -> bytes:
    """The bytes of the picture, which are never written to the disk.

    Raises:
        RequestError: there are more than 16 MiB (413), or they took longer than 30 s (408).
        InputError: there is no picture.
    """
    is_form = request.headers.get("content-type", "").startswith("multipart/form-data")
    envelope = _ENVELOPE if is_form else 0
    body = await _receive(request, MAX_UPLOAD_BYTES, "picture", envelope)
    picture = await _read_form(request, body) if is_form else body
    if len(picture) > MAX_UPLOAD_BYTES:
        raise _too_large("picture", MAX_UPLOAD_BYTES)
    if not picture:
        raise InputError("there is no picture in the request.", "send one as its body.")
    return picture


async def _receive(request: Request, limit: int, what: str, envelope: int = 0) -> bytes:
    """The body, which is a picture or a request of limited size, in an envelope.

    Raises:
        RequestError: it is larger (413), or takes longer than 30 s (408).
    """
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > _RECEIVED:
        raise _too_large(what, limit)
    try:
        with fail_after(_SECONDS):
            body = await _receive_within(request, limit + envelope)
    except TimeoutError:
        reason = f"the {what} took longer than {_SECONDS} s."
        raise RequestError(408, reason, "send it again.") from None
    if body is None:
        raise _too_large(what, limit)
    return body


async def _receive_within(request: Request, limit: int) -> bytes | None:
    """The body; None if it is larger than the limit.

    One that is too large is received to its end, up to a limit, but not kept: a sender that is cut
    off in the middle sees a broken connection and no answer.
    """
    body, received = bytearray(), 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > _RECEIVED:
            break
        body += chunk
        if received > limit:
            body.clear()
    return None if received > limit else bytes(body)


async def _read_form(request: Request, body: bytes) -> bytes:
    async def once() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(request.headers, once(), max_files=1, max_fields=0)
    parser.spool_max_size = MAX_UPLOAD_BYTES + _ENVELOPE  # nothing is spooled to the disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InputError(f"the form cannot be read: {error.message}", SEE_SCHEMA) from None
    try:
        picture = form.get("picture")
        if not isinstance(picture, UploadFile):
            raise InputError("the form has no file named picture.", SEE_SCHEMA)
        return bytes(await picture.read())
    finally:
        await form.close()


def _too_large(what: str, limit: int) -> RequestError:
    reason = f"the {what} is larger than {limit // 1024**2} MiB."
    return RequestError(413, reason, "use a smaller one.")
