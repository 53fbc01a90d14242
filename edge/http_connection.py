"""One connection to the daemon: how long it may be silent, and how many there may be."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from edge.openai_errors import RequestError, error_response


@dataclass(frozen=True)
class ConnectionLimits:
    """How many may be open, and the seconds that each has for a request's headers."""

    most: int = 256
    header_seconds: float = 10.0


class HttpConnection(H11Protocol):
    """uvicorn's, with a deadline for the headers of each request.

    Where there are too many, the one that has asked for nothing for longest makes room: a client
    that only connects locks nobody out.  If all are at work, the new one is told so.
    """

    def __init__(self, *arguments: Any, limits: ConnectionLimits, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._limits = limits
        self._idle_since = self.loop.time()
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room for it."""
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > self._limits.most and not self._make_room():
            self.app = _refuse

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        self._forget()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Whatever has come: a whole request, or a part of one."""
        super().handle_events()
        self._watch()

    def on_response_complete(self) -> None:
        """An answer is out: the next request may come."""
        self._idle_since = self.loop.time()
        super().on_response_complete()

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _watch(self) -> None:
        if not self._idle or self.transport.is_closing():
            self._forget()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self._limits.header_seconds, self.transport.abort)

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _make_room(self) -> bool:
        others = [
            other
            for other in self.connections
            if isinstance(other, HttpConnection) and other is not self and other._idle
        ]
        if not others:
            return False
        longest = min(others, key=lambda other: other._idle_since)
        self.connections.discard(longest)
        longest.transport.abort()
        return True


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    error = RequestError(
        "the daemon has as many connections at work as it takes: try again in a moment",
        code="too_many_connections",
        status=503,
    )
    response = error_response(error)
    response.headers["connection"] = "close"
    await response(scope, receive, send)
