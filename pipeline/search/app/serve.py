"""Listening, and serving until a signal arrives."""

import errno
import ipaddress
import os
import socket

import uvicorn
from fastapi import FastAPI

from pipeline.core.errors import ResourceError

_MAX_HEAD_BYTES = 4 * 1024**2
"""Of a request's first line and headers, so that a query that is too long gets its own error."""
_SECONDS_TO_END = 5
_SECONDS_IDLE = 60
"""That a connection is kept open for the next request."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections.

    Args:
        host: a name or address of this machine.
        port: 0 takes any that is free.

    Raises:
        ResourceError: the port is in use or not allowed, or the host is not this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise _refused(host, port, error) from None


def address_of(listener: socket.socket, host: str) -> str:
    """The address for a browser."""
    port = listener.getsockname()[1]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def is_local(host: str) -> bool:
    """Whether only this machine can reach the host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT; requests in progress get 5 s to finish.

    Then the signal is raised again for the former handler.
    """
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
        timeout_keep_alive=_SECONDS_IDLE,
        timeout_graceful_shutdown=_SECONDS_TO_END,
    )
    uvicorn.Server(config).run([listener])


def _refused(host: str, port: int, error: OSError) -> ResourceError:
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return ResourceError(f"{host} is not an address of this machine.", "use --host 127.0.0.1.")
    remedy = "use another one with --port; 0 takes any that is free."
    if error.errno == errno.EADDRINUSE:
        return ResourceError(f"port {port} of {host} is in use.", remedy)
    reason = os.strerror(error.errno).lower() if error.errno else str(error)
    return ResourceError(f"port {port} of {host} cannot be used: {reason}.", remedy)
