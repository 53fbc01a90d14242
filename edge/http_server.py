"""uvicorn on a loop that is not its own: no signal handlers, no logging setup, a socket of ours."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import uvicorn
from starlette.types import ASGIApp

from edge.http_connection import ConnectionLimits, HttpConnection
from shared.errors import ConfigurationError
from shared.transport import joined

_LIMITS = ConnectionLimits()
# for the last bytes of answers that have ended, and to tell clients of those that have not
_LAST_BYTES_SECONDS = 3


def bind(host: str, port: int) -> socket.socket:
    """A socket at the address, not listening yet: what cannot be is known before a model is loaded.

    Raises:
        ConfigurationError: the port is taken, or the host is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
    except (OSError, UnicodeError) as error:
        raise _refused(host, port, error) from None
    return bound


class HttpServer:
    """``async with HttpServer(app, socket, host) as server``: ``app`` is served at
    ``server.address``, over connections within ``limits``; leaving the block waits for the last
    bytes of answers, but for an error.

    Raises:
        ConfigurationError: somebody else has begun to listen there.
    """

    def __init__(
        self,
        app: ASGIApp,
        bound: socket.socket,
        host: str,
        limits: ConnectionLimits = _LIMITS,
    ) -> None:
        self._host, self._port = host, int(bound.getsockname()[1])
        self.address = joined(host, self._port)
        self._socket = bound
        connection: Any = functools.partial(HttpConnection, limits=limits)
        self._server = _Server(
            uvicorn.Config(
                app,
                http=connection,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_LAST_BYTES_SECONDS,
            )
        )
        self._serving: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        self._serving = asyncio.create_task(
            self._server.serve(sockets=[self._socket]), name="http server"
        )
        begun = asyncio.create_task(self._server.listening.wait())
        try:
            await asyncio.wait({begun, self._serving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            begun.cancel()
        if self._serving.done():
            error = self._serving.exception()
            if isinstance(error, OSError):
                raise _refused(self._host, self._port, error) from None
            assert error is not None, "a server does not end by itself"
            raise error
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.should_exit = True
        self._server.force_exit = kind is not None
        await self._serving


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # whoever runs the daemon hears them


def _refused(host: str, port: int, error: Exception) -> ConfigurationError:
    reason = error.strerror if isinstance(error, OSError) else "it is no host name"
    return ConfigurationError(
        f"cannot listen on {joined(host, port)}: {reason}; is the port taken? Choose another with "
        "--port"
    )
