"""Around every answer: who may ask, the security headers, and never a traceback."""

import ipaddress
import os
import traceback
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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


class Guard:
    """Passes on requests that browsers may make.

    A page of another site can reach a server on this machine under its own name (DNS rebinding),
    which shows in Host, or by posting a form, which shows in Origin. A numeric address cannot be
    rebound, so any is accepted.

    Args:
        app: answers what is passed on.
        names: the host names of this server, lower case, beside localhost.
    """

    def __init__(self, app: ASGIApp, names: frozenset[str]) -> None:
        self._app = app
        self._names = names | {"localhost"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI defines it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sender = _Sender(send)
        try:
            await self._refuse_or_pass(scope, receive, sender)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001  # the last resort
            _log_unexpected(error)
            if not sender.started:
                text = f"unexpected {type(error).__name__} in the server"
                problem = answer(500, f"{text}.", "this is a bug; see the server's log.")
                await problem(scope, receive, sender)

    async def _refuse_or_pass(self, scope: Scope, receive: Receive, send: "_Sender") -> None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._knows(host):
            problem = answer(
                421,
                f"this server is not {host[:80]!r}.",
                "name it with --allow-host when you start it.",
            )
            await problem(scope, receive, send)
        elif origin is not None and urlsplit(origin).netloc != host:
            problem = answer(
                403, f"a page of {origin[:80]!r} may not ask.", "use the page of this server."
            )
            await problem(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _knows(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self._names or _is_address(name)


class _Sender:
    """Adds the headers of every answer."""

    def __init__(self, send: Send) -> None:
        self.started = False
        self._send = send

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
        await self._send(message)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _log_unexpected(error: Exception) -> None:
    """Log one line, without the error's text, which may hold what was uploaded."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    log.error("unexpected %s at %s:%s", type(error).__name__, last.name, last.lineno)
    if os.environ.get("KDMCSE_DEBUG"):
        traceback.print_exception(error)
