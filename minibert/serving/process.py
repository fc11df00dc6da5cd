"""The process of the server: its socket, its signals, and how it stops."""

import logging
import signal
import socket
import sys
import time
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette

from minibert.serving.service import Service

__all__ = ["bound", "run"]


def bound(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address. It does not listen yet: clients are refused until it does.

    Raises:
        OSError: The address is in use, or is not one of this machine.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)  # of localhost, 127.0.0.1
        # asyncio switches TCP_NODELAY on only where the protocol is named. Without it, each answer waits about 40 ms.
        own = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", "it is no name of a host")
        raise OSError(f"the address {host} cannot be used: {reason}. Give another --host.") from error
    try:
        if sys.platform != "win32":  # there it means something else
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.bind(address)
    except OSError as error:
        own.close()
        raise OSError(
            f"the address {host}, port {port} cannot be used: {error.strerror}. Give another --port or --host."
        ) from error
    return own


def run(
    application: Starlette,
    service: Service,
    own: socket.socket,
    *,
    keep_alive: int,
    shutdown_delay: float,
    shutdown_timeout: float,
) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP, then drain and return.

    Args:
        application: The application.
        service: Its model.
        own: A bound socket.
        keep_alive: Seconds after which an idle connection is closed.
        shutdown_delay: Seconds between the first failing health check and the end of listening.
        shutdown_timeout: Seconds that requests in flight have at most.
    """
    config = uvicorn.Config(
        application,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,  # its lines have the queries of URLs, which could have texts
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=keep_alive,
        timeout_graceful_shutdown=shutdown_timeout,
    )
    server = _Server(config, service, shutdown_delay)
    for handler in logging.getLogger("minibert").handlers:  # on the command line, messages have one line
        logging.getLogger("uvicorn").addHandler(handler)
    hang_up = getattr(signal, "SIGHUP", None)
    # Under nohup, it is ignored, and stays so.
    if hang_up is not None and signal.getsignal(hang_up) is not signal.SIG_IGN:
        signal.signal(hang_up, server.handle_exit)
    server.run(sockets=[own])


class _Server(uvicorn.Server):  # type: ignore[misc]
    """uvicorn's server, but a signal first makes health checks fail, and is not raised again at the end."""

    def __init__(self, config: uvicorn.Config, service: Service, delay: float) -> None:
        super().__init__(config)
        self._service = service
        self._delay = delay
        self._stop_at = float("inf")

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say where the server listens, when it does."""
        await super().startup(sockets)
        host, port = sockets[0].getsockname()[:2] if sockets else ("", 0)
        sys.stderr.write(
            f"minibert: serving {self._service.name} ({self._service.width} dimensions) on "
            f"http://{f'[{host}]' if ':' in host else host}:{port}\n"
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Begin to stop. A second SIGINT does not wait for requests."""
        if self._service.stopping and sig == signal.SIGINT:
            self.force_exit = self.should_exit = True
        elif not self._service.stopping:
            self._service.stopping = True
            self._stop_at = time.monotonic() + self._delay

    async def on_tick(self, counter: int) -> Any:
        """Return whether to stop."""
        return await super().on_tick(counter) or time.monotonic() >= self._stop_at
