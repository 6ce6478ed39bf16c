"""Around every answer: who may ask, the security headers, and never a traceback."""

import ipaddress
import os
import traceback
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.middleware.base import RequestResponseEndpoint
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from pipeline.core.progress import log
from pipeline.search.app.problems import answer

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def guard(app: FastAPI, names: frozenset[str]) -> None:
    """Let an application answer only requests to the host names of this server, in lower case.

    A page of another site can reach a server on this machine under its own name (DNS rebinding),
    which shows in Host, or by posting a form, which shows in Origin. A numeric address cannot be
    rebound, so any is accepted.
    """

    @app.middleware("http")
    async def _(request: Request, pass_on: RequestResponseEndpoint) -> Response:
        response = _refuse(request, names) or await _answer(request, pass_on)
        response.headers.update(_HEADERS)
        return response


def _refuse(request: Request, names: frozenset[str]) -> Response | None:
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    if not _is_known(host, names):
        fix = "name it with --allow-host when you start it."
        return answer(421, f"this server is not {host[:80]!r}.", fix)
    if origin not in {None, f"http://{host}", f"https://{host}"}:
        what = f"a page of {str(origin)[:80]!r} may not ask."
        return answer(403, what, "use the page of this server.")
    return None


def _is_known(host: str, names: frozenset[str]) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name in names or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


async def _answer(request: Request, pass_on: RequestResponseEndpoint) -> Response:
    try:
        return await pass_on(request)
    except ClientDisconnect:
        return Response(status_code=499)  # nobody will read it
    except Exception as error:  # noqa: BLE001  # the last resort
        # Without the error's text, which may hold what was uploaded.
        last = traceback.extract_tb(error.__traceback__)[-1]
        log.error("unexpected %s at %s:%s", type(error).__name__, last.name, last.lineno)
        if os.environ.get("KDMCSE_DEBUG"):
            traceback.print_exception(error)
        what = f"unexpected {type(error).__name__} in the server."
        return answer(500, what, "this is a bug; see the server's log.")
