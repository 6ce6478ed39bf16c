"""Listening, and serving until a signal arrives."""

import ipaddress
import os
import socket

import uvicorn
from fastapi import FastAPI

from pipeline.core.errors import ResourceError


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections; port 0 takes any that is free.

    Raises:
        ResourceError: the port is in use or not allowed, or the host is not this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        is_name = isinstance(error, socket.gaierror)  # its numbers are not those of the system
        reason = error.strerror if is_name else os.strerror(error.errno or 0)
        raise ResourceError(
            f"port {port} of {host} cannot be used: {str(reason).lower()}.",
            "name another --port (0 takes any that is free), or a --host of this machine.",
        ) from None


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
    """Serve until SIGTERM or SIGINT, which is raised again for the former handler."""
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
        h11_max_incomplete_event_size=4 * 1024**2,  # a query that is too long gets its own error
        timeout_keep_alive=60,
        timeout_graceful_shutdown=5,
    )
    uvicorn.Server(config).run([listener])
